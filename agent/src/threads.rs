//! Which process a thread is of, also when it is gone.
//!
//! Trace buffers know who did something by the number of the thread. Every thread that begins and ends is told; those that
//! were there before are read once, and what is not known by either is looked up while it is there.

use std::{fs, io, path::Path};

use foldhash::{HashMap, HashMapExt};

use crate::events::{self, Actor, Record, What};

/// Most threads that are remembered, first ones of processes among them; others are looked up when they do something.
const THREADS_LIMIT: usize = 256 * 1024;
/// How long one is remembered that ended: it closes its files after that is told (do_exit() of kernel/exit.c, since Linux
/// 6.16), and a socket can be waited for (SO_LINGER). A number is not used again without that being told.
const REMEMBERED_NS: u64 = 10_000_000_000;

/// The threads of the host.
#[derive(Debug, Default)]
pub struct Threads {
    threads: HashMap<u32, Thread>,
    /// Until when the list was read that this began with.
    listed_ns: u64,
    swept_ns: u64,
}

/// A thread.
#[derive(Debug, Clone, Copy)]
struct Thread {
    pid: u32,
    ended_ns: Option<u64>,
}

impl Threads {
    /// All that there are. To be read when their beginnings and ends are told already.
    pub fn list() -> Threads {
        let mut threads = Threads { threads: HashMap::new(), listed_ns: 0, swept_ns: 0 };
        if let Err(error) = threads.read(Path::new("/proc")) {
            tracing::warn!(%error, "cannot list /proc: threads are looked up one by one");
        }
        threads.listed_ns = events::now_ns();
        threads
    }

    fn read(&mut self, proc: &Path) -> io::Result<()> {
        for process in fs::read_dir(proc)? {
            let process = process?;
            let Some(pid) = number(&process.file_name()) else { continue };
            self.set(pid, pid);
            // A process that ended meanwhile has no threads.
            let Ok(threads) = fs::read_dir(process.path().join("task")) else { continue };
            for thread in threads.flatten() {
                if let Some(thread) = number(&thread.file_name()) {
                    self.set(thread, pid);
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, thread: u32, pid: u32) {
        if self.threads.len() < THREADS_LIMIT || self.threads.contains_key(&thread) {
            self.threads.insert(thread, Thread { pid, ended_ns: None });
        } else {
            tracing::trace!(thread, "too many threads to remember this one");
        }
    }

    /// A record came that is not to be believed yet. A thread that began while the list was read may stand there in place of
    /// another one, which had its number before.
    pub fn doubt(&mut self, record: &Record) {
        if record.at_ns > self.listed_ns {
            return;
        }
        if let What::Forked { pid: thread, .. } | What::ThreadBegan { thread, .. } = record.what {
            self.threads.remove(&thread);
        }
    }

    /// Takes in a record, in the order of their times, and puts the process in the place of the thread that did something.
    /// `look_up` reads the process of a thread that was there at a moment; when it is gone it stays unknown.
    pub fn handle(&mut self, record: &mut Record, look_up: impl FnOnce(u32, u64) -> Option<u32>) {
        match &mut record.what {
            What::State { event, .. } | What::Destroyed { event, .. } => {
                let Actor::Thread(thread) = event.by else { return };
                let known = self.threads.get(&thread).map(|thread| thread.pid);
                let process = known.or_else(|| look_up(thread, record.at_ns));
                if let Some(pid) = process {
                    event.by = Actor::Process(pid);
                }
                if known.is_none()
                    && let Some(pid) = process
                {
                    self.set(thread, pid);
                }
            }
            // A thread that runs another program takes over the number of its process.
            What::Forked { pid, .. } | What::Named { pid, exec: true, .. } => self.set(*pid, *pid),
            What::ThreadBegan { thread, pid } => self.set(*thread, *pid),
            What::Exited { pid: thread } | What::ThreadEnded { thread } => {
                if let Some(thread) = self.threads.get_mut(thread) {
                    thread.ended_ns = Some(record.at_ns);
                }
            }
            What::Named { exec: false, .. } => {}
        }
    }

    /// Records were lost, beginnings and ends maybe among them: what is there must be looked up again.
    pub fn forget(&mut self) {
        self.threads.clear();
    }

    /// Forgets those that are gone for a while.
    pub fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < REMEMBERED_NS / 4 {
            return;
        }
        self.swept_ns = now_ns;
        let is_remembered = |ended_ns: u64| now_ns.saturating_sub(ended_ns) < REMEMBERED_NS;
        self.threads.retain(|_, thread| thread.ended_ns.is_none_or(is_remembered));
    }
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use fleetsock_proto::socket::Family;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{events::SocketEvent, owners::Processes};

    fn did(thread: u32, at_ns: u64) -> Record {
        let [local, peer] = ["10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap()];
        let event = SocketEvent { socket: 1, family: Family::Ipv4, local, peer, by: Actor::Thread(thread) };
        Record { at_ns, what: What::Destroyed { event, cookie: 1 } }
    }

    fn by(record: &Record) -> Actor {
        let What::Destroyed { event, .. } = &record.what else { panic!("{record:?}") };
        event.by
    }

    /// Who did it, for all that is known of the thread then.
    fn doer(threads: &mut Threads, thread: u32, at_ns: u64) -> Actor {
        let mut record = did(thread, at_ns);
        threads.handle(&mut record, |_, _| None);
        by(&record)
    }

    fn told(threads: &mut Threads, whats: impl IntoIterator<Item = What>) {
        for what in whats {
            threads.handle(&mut Record { at_ns: 1, what }, |_, _| panic!("nothing is to be looked up"));
        }
    }

    #[test]
    fn a_thread_is_of_its_process_until_it_ends_and_its_number_may_be_used_again() {
        use What::{Exited, Forked, ThreadBegan, ThreadEnded};
        let mut threads = Threads::default();
        told(&mut threads, [Forked { pid: 7, parent: 1 }, ThreadBegan { thread: 8, pid: 7 }]);
        assert_eq!((doer(&mut threads, 7, 1), doer(&mut threads, 8, 1)), (Actor::Process(7), Actor::Process(7)));
        told(&mut threads, [ThreadEnded { thread: 8 }]);
        assert_eq!(doer(&mut threads, 8, 2), Actor::Process(7), "it closes its files after its end is told");
        threads.sweep(2 * REMEMBERED_NS);
        assert_eq!(doer(&mut threads, 8, 2), Actor::Thread(8), "gone and not known: no guess");
        told(&mut threads, [ThreadBegan { thread: 8, pid: 9 }]);
        assert_eq!(doer(&mut threads, 8, 1), Actor::Process(9));
        told(&mut threads, [Exited { pid: 7 }, Forked { pid: 8, parent: 1 }]);
        threads.sweep(3 * REMEMBERED_NS);
        assert_eq!((doer(&mut threads, 7, 1), doer(&mut threads, 8, 1)), (Actor::Thread(7), Actor::Process(8)));
    }

    #[test]
    fn a_thread_that_runs_another_program_has_the_number_of_its_process() {
        let mut threads = Threads::default();
        let named = |exec| What::Named { pid: 7, name: "x".to_owned(), exec };
        told(&mut threads, [What::ThreadBegan { thread: 8, pid: 7 }, What::Exited { pid: 7 }, named(false)]);
        assert_eq!(doer(&mut threads, 7, 1), Actor::Thread(7));
        told(&mut threads, [named(true)]);
        threads.sweep(2 * REMEMBERED_NS);
        assert_eq!(doer(&mut threads, 7, 1), Actor::Process(7));
    }

    #[test]
    fn what_is_not_known_is_looked_up_once_and_after_a_loss_again() {
        let mut threads = Threads::default();
        let mut record = did(8, 55);
        threads.handle(&mut record, |thread, at_ns| (thread == 8 && at_ns == 55).then_some(7));
        assert_eq!(by(&record), Actor::Process(7));
        assert_eq!(doer(&mut threads, 8, 1), Actor::Process(7));
        threads.forget();
        assert_eq!(doer(&mut threads, 8, 1), Actor::Thread(8));
    }

    #[test]
    fn a_thread_that_began_while_the_list_was_read_did_nothing_before() {
        let mut threads = Threads { listed_ns: 100, ..Threads::default() };
        threads.set(8, 7);
        let began = |at_ns| Record { at_ns, what: What::ThreadBegan { thread: 8, pid: 7 } };
        threads.doubt(&began(101));
        assert_eq!(doer(&mut threads, 8, 50), Actor::Process(7));
        threads.doubt(&began(90));
        assert_eq!(doer(&mut threads, 8, 50), Actor::Thread(8), "of another thread with the same number");
        threads.handle(&mut began(90), |_, _| None);
        assert_eq!(doer(&mut threads, 8, 95), Actor::Process(7));
    }

    #[test]
    fn threads_of_this_process_are_listed_and_looked_up_while_they_are_there_and_not_before_they_were() {
        let before_ns = events::now_ns();
        // Starts are told in hundredths of a second.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let (told, number) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
            ended.recv().unwrap_err();
        });
        let (me, number) = (std::process::id(), number.recv().unwrap());
        let mut threads = Threads::list();
        assert_eq!(doer(&mut threads, number, events::now_ns()), Actor::Process(me));
        assert_eq!(doer(&mut threads, me, events::now_ns()), Actor::Process(me));
        let mut processes = Processes::open().unwrap();
        assert_eq!(processes.of_thread(number, events::now_ns()), Some(me));
        assert_eq!(processes.of_thread(number, before_ns), None);
        drop(end);
        thread.join().unwrap();
        assert_eq!(processes.of_thread(0, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn however_threads_come_and_go_one_is_only_of_the_process_that_it_began_in(
            steps in vec((0..6_u32, 1..6_u32, 1..4_u32), 0..60)
        ) {
            let (mut threads, mut model) = (Threads::default(), std::collections::HashMap::new());
            for (at_ns, (step, thread, pid)) in (1..).zip(steps) {
                let pid = 100 + pid;
                let what = match step {
                    0 => What::Forked { pid: thread, parent: 1 },
                    1 => What::ThreadBegan { thread, pid },
                    2 => What::Exited { pid: thread },
                    3 => What::ThreadEnded { thread },
                    _ => {
                        let expected = model.get(&thread).map_or(Actor::Thread(thread), |pid| Actor::Process(*pid));
                        prop_assert_eq!(doer(&mut threads, thread, at_ns), expected);
                        continue;
                    }
                };
                match step {
                    0 => model.insert(thread, thread),
                    1 => model.insert(thread, pid),
                    _ => model.remove(&thread),
                };
                told(&mut threads, [what]);
                threads.sweep(at_ns * REMEMBERED_NS);
            }
            prop_assert!(threads.threads.len() <= 5);
        }
    }
}
