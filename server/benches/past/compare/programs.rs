//! Other programs that load the same rows: `sqlite3` with `.import`, and PostgreSQL with `COPY`. They are used when they are
//! there: on Debian `apt-get install sqlite3 postgresql`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use super::{
    bare::{HOST_INDEX, PEER_INDEX, table},
    rows::{ADDRESSES, NUMBERS},
};

/// Where Debian puts each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// Of `sqlite3`, which imports a file in one transaction. In a log of its own (WAL) pages of the index that do not fit into the
/// cache would be written again and again, and all of them kept until the end.
const IMPORT_SETTINGS: &str = "PRAGMA synchronous=FULL; PRAGMA cache_size=-65536;";
/// The user under which it runs when this program is root's.
const POSTGRES: &str = "postgres";

/// Runs a program; what it said when it failed, or that it is not there.
fn run(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Imports a CSV file with both indexes; seconds.
pub(crate) fn sqlite3_import(folder: &Path, csv: &Path) -> Result<f64, String> {
    let file = folder.join("imported.db");
    let tables = format!("{} {HOST_INDEX} {PEER_INDEX}", table("TEXT"));
    run(Command::new("sqlite3").arg("-bail").arg(&file).arg(tables))?;
    let import = format!(".import --csv {} sessions", csv.display());
    let begun = Instant::now();
    run(Command::new("sqlite3").args(["-bail", "-cmd", IMPORT_SETTINGS]).arg(&file).arg(import))?;
    let took = begun.elapsed().as_secs_f64();
    fs::remove_file(file).map_err(|error| error.to_string())?;
    Ok(took)
}

/// A PostgreSQL of this run, which ends with it.
pub(crate) struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    user: Option<&'static str>,
}

impl Postgres {
    /// Makes one in a folder, as Debian's packages configure it, and starts it.
    pub(crate) fn start(folder: &Path) -> Result<Postgres, String> {
        let programs = newest().ok_or_else(|| format!("no PostgreSQL is in {POSTGRESQL}"))?;
        let home = folder.join("postgresql");
        fs::create_dir(&home).map_err(|error| error.to_string())?;
        let is_root = fs::metadata(&home).is_ok_and(|home| home.uid() == 0);
        let user = is_root.then_some(POSTGRES);
        if is_root {
            give_away(folder, &home)?;
        }
        let made = Postgres { programs, data: home.join("data"), socket: home, user };
        run(made
            .program("initdb")
            .args(["--auth=trust", "--no-locale", "--encoding=UTF8", "--pgdata"])
            .arg(&made.data))?;
        let options = format!("-c listen_addresses= -c unix_socket_directories={}", made.socket.display());
        // What it writes goes to a file: a pipe would stay open for as long as it runs.
        let log = made.socket.join("log");
        let mut start = made.program("pg_ctl");
        run(start.args(["start", "--wait", "--options", &options, "--log"]).arg(log).arg("--pgdata").arg(&made.data))?;
        Ok(made)
    }

    /// One of its programs, as the user that it runs under.
    fn program(&self, name: &str) -> Command {
        let path = self.programs.join(name);
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--init-groups"]).arg(path);
                command
            }
            None => Command::new(path),
        };
        command.current_dir("/");
        command
    }

    fn sql(&self, statement: &str) -> Result<String, String> {
        let mut psql = self.program("psql");
        psql.args([
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--dbname=postgres",
        ]);
        let output = run(psql.arg("--host").arg(&self.socket).args(["--command", statement]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Copies a CSV file into a new table with these indexes; seconds, and bytes on the disk.
    pub(crate) fn copy(&self, csv: &Path, indexes: &[&str]) -> Result<(f64, f64), String> {
        let column = |name: &str| match name {
            "protocol" | "family" | "direction" | "state" | "opened_known" | "closed_known" | "owner_known" => {
                "smallint"
            }
            "host_id" | "local_port" | "peer_port" | "program_id" => "integer",
            _ => "bigint",
        };
        let numbers = NUMBERS.map(|name| format!("{name} {} NOT NULL", column(name)));
        let addresses = ADDRESSES.map(|name| format!("{name} inet NOT NULL"));
        self.sql(&format!("CREATE TABLE sessions ({}, {})", numbers.join(", "), addresses.join(", ")))?;
        indexes.iter().try_for_each(|index| self.sql(index).map(drop))?;
        let begun = Instant::now();
        self.sql(&format!("\\copy sessions FROM '{}' CSV", csv.display()))?;
        let took = begun.elapsed().as_secs_f64();
        let bytes = self.sql("SELECT pg_total_relation_size('sessions')")?;
        self.sql("DROP TABLE sessions")?;
        Ok((took, bytes.parse().map_err(|_| format!("`{bytes}` is no size"))?))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = self.program("pg_ctl");
        if let Err(error) = run(stop.args(["stop", "--wait", "--mode=immediate", "--pgdata"]).arg(&self.data)) {
            eprintln!("PostgreSQL in {} does not stop: {error}", self.data.display());
        }
    }
}

/// The programs of the newest version.
fn newest() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRESQL).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    versions.filter(|(_, programs)| programs.join("initdb").exists()).max().map(|(_, programs)| programs)
}

/// Makes a folder that of PostgreSQL's user, who must be able to reach it.
fn give_away(folder: &Path, home: &Path) -> Result<(), String> {
    let number = |option| {
        let output = run(Command::new("id").args([option, POSTGRES]))?;
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().map_err(|error| error.to_string())
    };
    chown(home, Some(number("-u")?), Some(number("-g")?)).map_err(|error| error.to_string())?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).map_err(|error| error.to_string())
}
