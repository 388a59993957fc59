//! The command line of a process, without the secrets that people type into it.
//!
//! What a command line may hold is not known, so this errs on the side of hiding: what follows a name like `password`, the
//! password of a URL, header fields that authenticate, the flags by which some programs take a password, and what has the
//! form of a well-known token. A secret that is given by its place alone (`htpasswd -b FILE USER PASSWORD`) is not found.

use regex::{Captures, Regex, RegexBuilder};

use super::process::cut;

/// Longest command line that is told, bytes; it ends with `...` when there was more.
pub(super) const COMMAND_LINE_LIMIT: usize = 1024;
/// What stands for a secret.
const HIDDEN: &str = "***";
const MORE: &str = "...";

/// Names of what is secret: anywhere in a name, or one of its parts. Letters and blanks here are those of ASCII: those of
/// all scripts would take ten times the memory.
const SECRET: &str = r"(?:[0-9A-Za-z_.-]*(?:passw(?:or)?d|passphrase|passwd|pwd|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key|credential|requirepass)[0-9A-Za-z_.-]*|(?:[0-9A-Za-z_.-]*[-_.])?(?:pass|auth|pw|masterauth)(?:[-_.][0-9A-Za-z_.-]*)?)";

/// Programs, and their flags whose value is a secret (`-p secret`, `-psecret`).
const FLAGS: &[(&[&str], &[&str])] = &[
    (&["mysql", "mysqladmin", "mysqldump", "mysqlimport", "mysqlcheck", "mysqlshow", "mysqlsh"], &["-p"]),
    (&["mariadb", "mariadb-admin", "mariadb-dump", "mariadb-import", "mariadb-check"], &["-p"]),
    (&["sshpass", "mongo", "mongosh", "mongodump", "mongorestore", "login"], &["-p"]),
    (&["redis-cli", "keydb-cli", "valkey-cli"], &["-a"]),
    (&["ldapsearch", "ldapmodify", "ldapadd", "ldapdelete", "ldappasswd", "ldapwhoami"], &["-w"]),
    (&["mosquitto_pub", "mosquitto_sub", "zip", "unzip"], &["-P"]),
    (&["7z", "7za", "7zr", "rar", "unrar"], &["-p"]),
    (&["curl"], &["-u", "-U", "--user", "--proxy-user", "-b", "--cookie"]),
    (&["smbclient", "rpcclient"], &["-U", "--user"]),
];

/// Hides secrets in command lines.
#[derive(Debug)]
pub(super) struct Redaction {
    /// `--password=...` as a whole argument.
    assigned: Regex,
    /// A flag whose value is the next argument.
    flag: Regex,
    /// What is replaced within an argument, with what.
    within: Vec<(Regex, &'static str)>,
}

impl Redaction {
    pub(super) fn new() -> Result<Redaction, regex::Error> {
        let pattern = |text: &str| RegexBuilder::new(text).case_insensitive(true).build();
        let exactly = |text: &str| Regex::new(text);
        Ok(Redaction {
            assigned: pattern(&format!(r"^(-{{0,2}}{SECRET}=).+"))?,
            flag: pattern(&format!(r"^--?{SECRET}$"))?,
            within: vec![
                // RFC 9110 section 11, and what is usual beside it.
                (
                    pattern(
                        r#"(?-u:\b)((?:proxy-)?authorization|(?:set-)?cookie|x-[0-9A-Za-z_-]*(?:key|token|secret|auth)[0-9A-Za-z_-]*)[ \t\r\n]*:[^'"]*"#,
                    )?,
                    "$1: ***",
                ),
                // RFC 3986 section 3.2.1: user information.
                (pattern(r"([a-z][a-z0-9+.-]*://[^ \t\r\n/:@]*):[^ \t\r\n/@]*@")?, "$1:***@"),
                (pattern(r"(https?://)[^ \t\r\n/:@]+@")?, "${1}***@"),
                (pattern(r"([0-9A-Za-z_.%+-]+):[^ \t\r\n:@/]+@")?, "$1:***@"),
                (pattern(&format!(r#"({SECRET}["']?[ \t\r\n]*[:=][ \t\r\n]*["']?)[^ \t\r\n"'&,;]+"#))?, "$1***"),
                (pattern(&format!(r#"(--?{SECRET}[ \t\r\n]+)[^ \t\r\n"']+"#))?, "$1***"),
                (pattern(r"(?-u:\b)(pass:)[^ \t\r\n]+")?, "$1***"),
                (pattern(r"^(/p:)[^ \t\r\n]+")?, "$1***"),
                (
                    exactly(
                        r"(?x)(?-u:\b)(?: A[KS]IA[0-9A-Z]{16} | AIza[0-9A-Za-z_-]{35} | gh[opsru]_[0-9A-Za-z_]{20,} | github_pat_[0-9A-Za-z_]+ | glpat-[0-9A-Za-z_-]{16,}
                        | xox[abeprs]-[0-9A-Za-z_-]{10,} | sk-[0-9A-Za-z_-]{16,} | [rs]k_live_[0-9A-Za-z_]+ | npm_[0-9A-Za-z_]{20,} | dckr_pat_[0-9A-Za-z_-]+ | hv[sb]\.[^\x20\t\r\n]+
                        | eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_.-]+ | fsj1_[^\x20\t\r\n]+ )",
                    )?,
                    HIDDEN,
                ),
            ],
        })
    }

    /// The command line (proc_pid_cmdline(5): arguments, each ended by a NUL) as it is told. Empty when there is none.
    pub(super) fn tell(&self, cmdline: &[u8]) -> String {
        let text = String::from_utf8_lossy(cmdline);
        let arguments: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
        let is_title = arguments.len() == 1;
        let mut told = String::new();
        let mut words = Words::default();
        for argument in arguments {
            if !told.is_empty() {
                told.push(' ');
            }
            let shown = self.argument(argument, &mut words);
            // A program that wrote its own title leaves one text, and no arguments.
            if is_title {
                told.push_str(&shown)
            } else {
                quote(&shown, &mut told)
            }
            if told.len() > COMMAND_LINE_LIMIT {
                return cut(told, COMMAND_LINE_LIMIT - MORE.len()) + MORE;
            }
        }
        told
    }

    fn argument(&self, argument: &str, words: &mut Words) -> String {
        if std::mem::take(&mut words.hides_next) {
            return words.hide(argument);
        }
        if let Some(assigned) = self.assigned.captures(argument) {
            return assigned[1].to_owned() + HIDDEN;
        }
        if self.flag.is_match(argument) {
            words.hides_next = true;
            words.keeps_user = false;
            return argument.to_owned();
        }
        let mut shown = words.flags(argument);
        for (pattern, with) in &self.within {
            if let std::borrow::Cow::Owned(changed) = pattern.replace_all(&shown, |captures: &Captures<'_>| {
                let mut text = String::new();
                captures.expand(with, &mut text);
                text
            }) {
                shown = changed;
            }
        }
        shown
    }
}

/// What earlier words of a command line mean for the next.
#[derive(Debug, Default)]
struct Words {
    /// Flags with a secret of the program that is being called, which can be called by another one.
    flags: &'static [&'static str],
    hides_next: bool,
    /// The secret stands behind the name of a user.
    keeps_user: bool,
}

impl Words {
    /// Hides what follows the flags of programs that are known, also in an argument that is a command line itself.
    fn flags(&mut self, argument: &str) -> String {
        let mut shown = String::new();
        for word in argument.split_inclusive(char::is_whitespace) {
            let bare = word.trim_end();
            let blank = &word[bare.len()..];
            if std::mem::take(&mut self.hides_next) && !bare.is_empty() {
                shown += &self.hide(bare);
            } else {
                shown += &self.flag(bare);
            }
            shown += blank;
        }
        shown
    }

    fn flag(&mut self, word: &str) -> String {
        let program = word.rsplit('/').next().unwrap_or_default();
        if let Some((_, flags)) = FLAGS.iter().find(|(programs, _)| programs.contains(&program)) {
            self.flags = flags;
            return word.to_owned();
        }
        let Some(flag) = self.flags.iter().find(|flag| word.starts_with(**flag)) else { return word.to_owned() };
        self.keeps_user = matches!(*flag, "-u" | "-U" | "--user" | "--proxy-user");
        let is_long = flag.starts_with("--");
        match word[flag.len()..].strip_prefix('=').filter(|_| is_long).unwrap_or(&word[flag.len()..]) {
            "" => {
                // Alone it asks for the password with some programs; what follows is hidden then for nothing.
                self.hides_next = true;
                word.to_owned()
            }
            _ if is_long && !word[flag.len()..].starts_with('=') => word.to_owned(),
            secret => word[..word.len() - secret.len()].to_owned() + &self.hide(secret),
        }
    }

    /// A word that is a secret, or `user:secret` or `user%secret`.
    fn hide(&self, word: &str) -> String {
        match word.find([':', '%']).filter(|_| self.keeps_user) {
            Some(at) => word[..=at].to_owned() + HIDDEN,
            None if self.keeps_user => word.to_owned(),
            None => HIDDEN.to_owned(),
        }
    }
}

/// Appends an argument so that it is seen where it ends.
fn quote(argument: &str, told: &mut String) {
    if argument.is_empty() || argument.contains(char::is_whitespace) {
        told.push('\'');
        told.push_str(argument);
        told.push('\'');
    } else {
        told.push_str(argument);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(arguments: &[&str]) -> String {
        let cmdline: String = arguments.iter().map(|argument| format!("{argument}\0")).collect();
        Redaction::new().unwrap().tell(cmdline.as_bytes())
    }

    #[test]
    fn what_is_no_secret_is_told_as_it_is() {
        for line in [
            "/usr/sbin/sshd -D",
            "nginx: worker process",
            "postgres -D /var/lib/postgresql/15/main -c config_file=/etc/postgresql/15/main/postgresql.conf",
            "java -Xmx4g -cp /opt/app/lib/a.jar:/opt/app/lib/b.jar com.example.Author --port 8080",
            "docker run -p 80:80 nginx",
            "ssh -p 22 deploy@web1",
            "curl -o out.json https://example.com/v1/items?page=2",
            "python3 -m http.server 8000",
            "mysqld --datadir=/var/lib/mysql",
        ] {
            assert_eq!(told(&line.split(' ').collect::<Vec<_>>()), line);
        }
        assert_eq!(told(&["sh", "-c", "sleep 1; echo done", ""]), "sh -c 'sleep 1; echo done'");
        assert_eq!(
            told(&["nginx: master process /usr/sbin/nginx -g daemon on;"]),
            "nginx: master process /usr/sbin/nginx -g daemon on;"
        );
        assert_eq!(told(&[]), "");
    }

    #[test]
    fn secrets_are_hidden_in_every_usual_form() {
        const FORMS: &[&[&str]] = &[
            &["app", "--password=§"],
            &["app", "--db-password", "§"],
            &["app", "-token", "§", "--port", "80"],
            &["env", "DB_PASS=§", "app"],
            &["app", "AWS_SECRET_ACCESS_KEY=§"],
            &["app", "--auth", "§"],
            &["app", "--config", r#"{"password": "§", "port": 1}"#],
            &["app", "host=db password=§ user=me"],
            &["sh", "-c", "exec app --api-key § --port 80"],
            &["sh", "-c", "PGPASSWORD='§' psql"],
            &["psql", "postgresql://me:§@db/main"],
            &["git", "clone", "https://§@example.com/a.git"],
            &["impacket", "corp/me:§@10.0.0.1"],
            &["curl", "https://example.com/a?id=1&access_token=§&b=2"],
            &["curl", "-H", "Authorization: Bearer §", "https://example.com"],
            &["curl", "-HX-Api-Key: §", "https://example.com"],
            &["curl", "-u", "me:§", "https://example.com"],
            &["curl", "-ume:§", "https://example.com"],
            &["curl", "--user=me:§", "https://example.com"],
            &["curl", "--cookie", "§", "https://example.com"],
            &["/usr/bin/mysql", "-u", "root", "-p§", "db"],
            &["sshpass", "-p", "§", "ssh", "root@web1"],
            &["sh", "-c", "mysqldump -u root -p§ db > dump"],
            &["redis-cli", "-a", "§", "ping"],
            &["redis-server", "--requirepass", "§"],
            &["ldapsearch", "-D", "cn=me", "-w", "§"],
            &["smbclient", "//srv/share", "-U", "me%§"],
            &["docker", "login", "-u", "me", "-p", "§", "registry"],
            &["openssl", "enc", "-k", "x", "-pass", "pass:§"],
            &["plink", "-pw", "§", "host"],
            &["xfreerdp", "/u:me", "/p:§"],
            &["title of one text --password §"],
        ];
        for form in FORMS {
            let arguments: Vec<String> = form.iter().map(|argument| argument.replace('§', "hunter2$!x")).collect();
            let told = told(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(!told.contains("hunter2") && told.contains(HIDDEN), "{form:?} is told as {told}");
        }
    }

    #[test]
    fn the_rest_of_a_command_line_with_a_secret_stays() {
        assert_eq!(told(&["mysql", "-h", "db", "-u", "root", "-phunter2", "main"]), "mysql -h db -u root -p*** main");
        assert_eq!(told(&["psql", "postgres://me:hunter2@db:5432/main"]), "psql postgres://me:***@db:5432/main");
        assert_eq!(told(&["curl", "-u", "me:hunter2", "https://a/"]), "curl -u me:*** https://a/");
        assert_eq!(told(&["app", "--password", "hunter2", "--port", "80"]), "app --password *** --port 80");
    }

    #[test]
    fn tokens_are_known_by_their_form() {
        for token in [
            "AKIAIOSFODNN7EXAMPLE",
            "ghp_0123456789abcdefghij0123456789abcdef",
            "glpat-0123456789abcdefghij",
            "xoxb-123456789012-abcdefghijkl",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
            "fsj1_AAAABBBBCCCC",
        ] {
            assert_eq!(told(&["app", "--with", token, "rest"]), "app --with *** rest");
            assert_eq!(told(&["sh", "-c", &format!("app {token} rest")]), "sh -c 'app *** rest'");
        }
    }

    #[test]
    fn a_long_command_line_is_cut_and_says_so() {
        let told = told(&["java", "-cp", &"/opt/é.jar:".repeat(500), "Main"]);
        assert!(told.len() <= COMMAND_LINE_LIMIT && told.ends_with(MORE), "{}", told.len());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_and_a_password_never_comes_through(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            name in "-{0,2}[a-z]{0,4}_?(password|secret|TOKEN)",
            secret in "[0-9]{9}#[!-%(-~]{0,9}",
        ) {
            let redaction = Redaction::new().unwrap();
            prop_assert!(redaction.tell(&bytes).len() <= COMMAND_LINE_LIMIT);
            let told = redaction.tell(format!("app\0{name}={secret}\0").as_bytes());
            prop_assert!(!told.contains(&secret), "{}", told);
        }
    }
}
