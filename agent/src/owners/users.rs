//! Names of users. They are looked up in a thread of its own: a directory service (LDAP) may take its time, or hang.

use std::{
    collections::HashMap,
    io, mem,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

/// How long all lookups of one scan may hold it up together; a name that comes later is there for the next scan.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// The same of one look at what events told, while which more of them come: enough for what stands in a file.
pub(super) const BRIEF_PATIENCE: Duration = Duration::from_millis(10);
/// How often who has no name is asked for again.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long the end of a lookup is waited for when the agent stops.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most names that are kept; they are forgotten all at once.
const NAMES_LIMIT: usize = 4096;
/// Most lookups that wait.
const LOOKUPS_LIMIT: usize = 64;

/// The names of users, as far as they are known.
#[derive(Debug)]
pub(super) struct Users {
    names: HashMap<u32, String>,
    /// Whose names are looked up, and in which scan or look they were asked for first.
    asked: HashMap<u32, u64>,
    /// Number of the scan or look.
    turn: u64,
    deadline: Instant,
    /// When those without a name were last forgotten.
    renewed: Instant,
    questions: SyncSender<u32>,
    answers: Receiver<(u32, String)>,
    thread: Option<JoinHandle<()>>,
}

impl Users {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Users> {
        let (questions, asked) = sync_channel::<u32>(LOOKUPS_LIMIT);
        let (answer, answers) = sync_channel(LOOKUPS_LIMIT);
        let thread = Builder::new().name("user names".to_owned()).spawn(move || {
            for uid in asked {
                if answer.send((uid, look_up(uid))).is_err() {
                    break;
                }
            }
        })?;
        Ok(Users {
            names: HashMap::new(),
            asked: HashMap::new(),
            turn: 0,
            deadline: Instant::now(),
            renewed: Instant::now(),
            questions,
            answers,
            thread: Some(thread),
        })
    }

    /// A scan or a look begins: there is new patience, and who had no name may have got one.
    pub(super) fn begin(&mut self, patience: Duration) {
        let now = Instant::now();
        if self.names.len() >= NAMES_LIMIT {
            self.names.clear();
        }
        if now.duration_since(self.renewed) >= RENEWAL {
            self.names.retain(|_, name| !name.is_empty());
            self.renewed = now;
        }
        self.turn += 1;
        self.deadline = now + patience;
    }

    /// The name of a user, empty when there is none; nothing when it is not known yet. Each is waited for once: whoever is slow
    /// holds up no later scan or look.
    pub(super) fn name(&mut self, uid: u32) -> Option<String> {
        if let Some(name) = self.names.get(&uid) {
            return Some(name.clone());
        }
        if !self.asked.contains_key(&uid) && self.questions.try_send(uid).is_ok() {
            self.asked.insert(uid, self.turn);
        }
        while let Some(asked) = self.asked.get(&uid) {
            let is_late = *asked != self.turn;
            let left = if is_late { Duration::ZERO } else { self.deadline.saturating_duration_since(Instant::now()) };
            let Ok((answered, name)) = self.answers.recv_timeout(left) else {
                return None;
            };
            self.asked.remove(&answered);
            self.names.insert(answered, name);
        }
        self.names.get(&uid).cloned()
    }
}

fn look_up(uid: u32) -> String {
    uzers::get_user_by_uid(uid).map(|user| user.name().to_string_lossy().into_owned()).unwrap_or_default()
}

impl Drop for Users {
    fn drop(&mut self) {
        // Without a sender the thread ends with the lookup that it is at.
        drop(mem::replace(&mut self.questions, sync_channel(0).0));
        let deadline = Instant::now() + FAREWELL;
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("a lookup of a user's name hangs and is left behind");
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the lookup of users' names ended with a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(users: &mut Users, uid: u32) -> String {
        loop {
            users.begin(PATIENCE);
            if let Some(name) = users.name(uid) {
                return name;
            }
        }
    }

    #[test]
    fn root_has_a_name_and_a_number_that_nobody_has_does_not() {
        let mut users = Users::start().unwrap();
        for _ in 0..2 {
            assert_eq!(found(&mut users, 0), "root");
            assert_eq!(found(&mut users, 3_999_999_999), "");
        }
    }

    #[test]
    fn who_has_no_name_is_asked_for_again_after_a_while_and_who_has_one_is_not() {
        let mut users = Users::start().unwrap();
        found(&mut users, 0);
        found(&mut users, 3_999_999_999);
        users.begin(PATIENCE);
        assert_eq!(users.names.len(), 2);
        users.renewed -= RENEWAL;
        users.begin(PATIENCE);
        assert_eq!(users.names.keys().collect::<Vec<_>>(), [&0]);
    }

    #[test]
    fn one_that_is_slow_is_waited_for_in_the_scan_that_asks_and_in_no_later_one() {
        let mut users = Users::start().unwrap();
        // A lookup that does not answer.
        users.begin(Duration::ZERO);
        users.asked.insert(7, users.turn);
        let mut waited = |patience: Duration| {
            let begun = Instant::now();
            users.begin(patience);
            assert_eq!(users.name(7), None);
            begun.elapsed()
        };
        assert!(waited(Duration::from_secs(3600)) < Duration::from_secs(600));
        users.asked.insert(7, users.turn + 1);
        let patience = Duration::from_millis(30);
        let begun = Instant::now();
        users.begin(patience);
        assert_eq!(users.name(7), None);
        assert!(begun.elapsed() >= patience);
    }

    #[test]
    fn without_patience_nothing_is_waited_for_and_the_name_comes_later() {
        let mut users = Users::start().unwrap();
        // No scan has begun, so there is no patience.
        while users.name(0).is_none() {
            std::thread::yield_now();
        }
        assert_eq!(users.names[&0], "root");
    }
}
