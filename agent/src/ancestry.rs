//! Who a process was that is gone before anybody could look. Pure but for the reading that is handed in.
//!
//! A process that forks, connects and exits within a millisecond leaves no /proc entry, but the kernel told of its fork,
//! its name and its exit, and what it inherited is its parent's: user, control group, and the program unless it ran
//! another one. Numbers of processes are used again, within seconds where many begin: what is asked for is the process that
//! had a number at a moment.

use std::sync::Arc;

use fleetsock_proto::{owner::Owner, time::Timestamp};
use foldhash::HashMap;

use crate::{
    events::{self, Record, What},
    lives::Deed,
};

/// Most processes that are remembered; of those beyond only the number is told.
pub const PROCESSES_LIMIT: usize = 128 * 1024;
/// Longest line of forks that is gone back.
const GENERATIONS_LIMIT: usize = 16;
/// How long a process is remembered after its end: records of its sockets may lie in another ring.
const REMEMBERED_NS: u64 = 10_000_000_000;
/// A start is told in ticks of the clock (10 ms), and rounded: a process can have done something that much before it.
const START_SLACK_NS: u64 = 20_000_000;

/// The user id of nobody: what the kernel calls INVALID_UID. Told for a process of which no more than its number is known.
pub const UNKNOWN_UID: u32 = u32::MAX;

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// As an owner.
    pub owner: Arc<Owner>,
    /// Inode number of its network namespace; 0 when it is not known.
    pub netns: u64,
    /// When it began (nanoseconds, the clock of the events), to a tick of the clock.
    pub started_ns: u64,
    /// Whether the name of its user is still looked up.
    pub nameless: bool,
}

/// What tells of processes.
pub trait Look {
    /// One that is alive, as it is now.
    fn process(&mut self, pid: u32) -> Option<Described>;

    /// The name of a user, empty when there is none; nothing when it is not known yet.
    fn user(&mut self, _uid: u32) -> Option<String> {
        None
    }
}

impl<F: FnMut(u32) -> Option<Described>> Look for F {
    fn process(&mut self, pid: u32) -> Option<Described> {
        self(pid)
    }
}

impl Described {
    /// Gives it the name of its user, if that is known by now. What it was is not read again: it may be another program since.
    fn named(&mut self, look: &mut impl Look) {
        if self.nameless
            && let Some(user) = look.user(self.owner.uid)
        {
            self.owner = Arc::new(Owner { user, ..Owner::clone(&self.owner) });
            self.nameless = false;
        }
    }
}

/// The processes that events told of.
#[derive(Debug, Default)]
pub struct Ancestry {
    /// Those that had a number, the last one first.
    processes: HashMap<u32, Entry>,
    /// How many there are.
    count: usize,
    /// Processes that were not remembered because there were too many.
    overflow: u64,
    swept_ns: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// As it was read since its last exec.
    described: Option<Described>,
    name: Option<String>,
    /// Who it was forked from, and when.
    fork: Option<(u32, u64)>,
    /// Whether it runs another program than the one it was forked with.
    exec: bool,
    exited_ns: Option<u64>,
    /// Who had the number before.
    before: Option<Box<Entry>>,
}

impl Ancestry {
    /// Takes in a record. A process that runs another program may have been looked at since: `seen`.
    pub fn handle(&mut self, record: &Record, seen: Option<Described>) {
        match &record.what {
            What::Forked { pid, parent } => {
                // A number that is used again is another process.
                let before = self.processes.remove(pid).map(Box::new);
                self.set(*pid, Entry { fork: Some((*parent, record.at_ns)), before, ..Entry::default() });
            }
            What::Named { pid, name, exec } => {
                if !self.processes.contains_key(pid) {
                    self.set(*pid, Entry::default());
                }
                if let Some(entry) = self.processes.get_mut(pid) {
                    entry.name = Some(name.clone());
                    entry.exec |= *exec;
                    // Name and program are others than those that were read before.
                    entry.described = seen;
                }
            }
            What::Exited { pid } => {
                if let Some(entry) = self.processes.get_mut(pid) {
                    entry.exited_ns = Some(record.at_ns);
                }
            }
            What::State { .. } | What::Destroyed { .. } | What::ThreadBegan { .. } | What::ThreadEnded { .. } => {}
        }
    }

    fn set(&mut self, pid: u32, entry: Entry) {
        if self.count >= PROCESSES_LIMIT {
            self.overflow += 1;
            self.count -= entry.before.as_deref().map_or(0, Entry::count);
            return;
        }
        self.count += 1;
        self.processes.insert(pid, entry);
    }

    /// How many processes were not remembered since the last time this was asked.
    pub fn take_overflow(&mut self) -> u64 {
        std::mem::take(&mut self.overflow)
    }

    /// Forgets the processes that are gone for a while.
    pub fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < REMEMBERED_NS / 4 {
            return;
        }
        self.swept_ns = now_ns;
        let remembered = |ended: Option<u64>| ended.is_none_or(|ended| now_ns.saturating_sub(ended) < REMEMBERED_NS);
        self.processes.retain(|_, entry| {
            entry.keep_before(&remembered);
            remembered(entry.exited_ns)
        });
        self.count = self.processes.values().map(Entry::count).sum();
    }

    /// Records were lost, exits and execs maybe among them: what was read must be read again.
    pub fn forget(&mut self) {
        self.processes.clear();
        self.count = 0;
    }

    /// The process that did something, as it was then.
    pub fn describe(&mut self, deed: Deed, clock_offset_ns: i64, look: &mut impl Look) -> Described {
        self.find(deed, clock_offset_ns, look, GENERATIONS_LIMIT).unwrap_or_else(|| {
            let Deed { pid, at_ns } = deed;
            let name = self.then(pid, at_ns).and_then(|entry| entry.name.clone());
            let owner = Owner {
                pid,
                started_at: None,
                process: name.unwrap_or_default(),
                exe: String::new(),
                uid: UNKNOWN_UID,
                user: String::new(),
                container: String::new(),
                unit: String::new(),
                command_line: String::new(),
            };
            Described { owner: Arc::new(owner), netns: 0, started_ns: 0, nameless: false }
        })
    }

    /// Who had a number at a moment.
    fn then(&mut self, pid: u32, at_ns: u64) -> Option<&mut Entry> {
        let mut entry = self.processes.get_mut(&pid)?;
        while entry.fork.is_some_and(|(_, forked_ns)| forked_ns > at_ns) {
            entry = entry.before.as_deref_mut()?;
        }
        Some(entry)
    }

    fn find(
        &mut self,
        Deed { pid, at_ns }: Deed,
        clock_offset_ns: i64,
        look: &mut impl Look,
        generations: usize,
    ) -> Option<Described> {
        // A look at a process that is alive may have been at one that began since.
        let is_it = |described: &Described| described.started_ns <= at_ns.saturating_add(START_SLACK_NS);
        let is_known = self.processes.contains_key(&pid);
        let (fork, is_gone) = match self.then(pid, at_ns) {
            Some(Entry { described: Some(described), .. }) => {
                described.named(look);
                return Some(described).filter(|it| is_it(it)).cloned();
            }
            Some(entry) => (entry.fork, entry.exited_ns.is_some()),
            // Whoever had the number then has it no more.
            None => (None, is_known),
        };
        let found = if is_gone { None } else { look.process(pid).filter(is_it) };
        let found = match (found, fork) {
            (Some(described), _) => Some(described),
            (None, Some((parent, forked_ns))) if generations > 0 => {
                let parent = Deed { pid: parent, at_ns: forked_ns };
                let parent = self.find(parent, clock_offset_ns, look, generations - 1)?;
                let started_at = events::moment(forked_ns, clock_offset_ns);
                self.then(pid, at_ns).map(|entry| entry.inherited((pid, forked_ns), started_at, &parent))
            }
            (None, _) => None,
        };
        if let Some(described) = &found {
            if !is_known {
                self.set(pid, Entry::default());
            }
            if let Some(entry) = self.then(pid, at_ns) {
                entry.described = Some(described.clone());
            }
        }
        found
    }
}

impl Entry {
    /// How many had the number.
    fn count(&self) -> usize {
        1 + self.before.as_deref().map_or(0, Entry::count)
    }

    /// Forgets those who had the number before and ended long ago, and all before them.
    fn keep_before(&mut self, remembered: &impl Fn(Option<u64>) -> bool) {
        // The record of an end may be missing; whoever came after is as good.
        let ended_ns = |before: &Entry| before.exited_ns.or(self.fork.map(|(_, forked_ns)| forked_ns));
        self.before = self.before.take().filter(|before| remembered(ended_ns(before)));
        if let Some(before) = &mut self.before {
            before.keep_before(remembered);
        }
    }

    /// What a process is that nobody read: what its parent was, and what the kernel told.
    fn inherited(&self, (pid, started_ns): (u32, u64), started_at: Timestamp, parent: &Described) -> Described {
        let Described { owner, netns, nameless, .. } = parent;
        let process = self.name.clone().unwrap_or_else(|| owner.process.clone());
        // Programs that enter another network namespace do so before they run another one.
        let (exe, command_line, netns) = match self.exec {
            true => (String::new(), String::new(), 0),
            false => (owner.exe.clone(), owner.command_line.clone(), *netns),
        };
        let owner = Owner { pid, started_at: Some(started_at), process, exe, command_line, ..Owner::clone(owner) };
        Described { owner: Arc::new(owner), netns, started_ns, nameless: *nameless }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(pid: u32, process: &str) -> Described {
        let owner = Owner {
            pid,
            started_at: Some(Timestamp::from_micros(1)),
            process: process.to_owned(),
            exe: format!("/usr/bin/{process}"),
            uid: 33,
            user: "www-data".to_owned(),
            container: String::new(),
            unit: format!("{process}.service"),
            command_line: String::new(),
        };
        Described { owner: Arc::new(owner), netns: 7, started_ns: 0, nameless: false }
    }

    fn told(whats: Vec<What>) -> Ancestry {
        let mut ancestry = Ancestry::default();
        for (at_ns, what) in whats.into_iter().enumerate() {
            ancestry.handle(&Record { at_ns: at_ns as u64 * 1_000, what }, None);
        }
        ancestry
    }

    fn named(pid: u32, name: &str, exec: bool) -> What {
        What::Named { pid, name: name.to_owned(), exec }
    }

    /// Only process 1 is alive.
    fn read(pid: u32) -> Option<Described> {
        (pid == 1).then(|| owner(1, "inetd"))
    }

    #[test]
    fn a_process_that_is_gone_has_what_it_inherited() {
        let mut ancestry = told(vec![What::Forked { pid: 2, parent: 1 }, What::Exited { pid: 2 }]);
        let Described { owner: found, netns, .. } = ancestry.describe(by(2, 9_000), 0, &mut read);
        assert_eq!(netns, 7);
        assert_eq!((found.pid, found.process.as_str(), found.exe.as_str()), (2, "inetd", "/usr/bin/inetd"));
        assert_eq!((found.uid, found.unit.as_str()), (33, "inetd.service"));
    }

    #[test]
    fn one_that_ran_another_program_has_its_name_and_no_executable() {
        let mut ancestry = told(vec![
            What::Forked { pid: 2, parent: 1 },
            What::Forked { pid: 3, parent: 2 },
            named(3, "curl", true),
            What::Exited { pid: 3 },
            What::Exited { pid: 2 },
        ]);
        let found = ancestry.describe(by(3, 9_000), 0, &mut read).owner;
        assert_eq!((found.process.as_str(), found.exe.as_str(), found.user.as_str()), ("curl", "", "www-data"));
        assert_eq!(found.started_at, Some(Timestamp::from_micros(1)), "when it was forked");
    }

    /// Processes whose users' names come late.
    struct Late(Option<&'static str>);

    impl Look for Late {
        fn process(&mut self, pid: u32) -> Option<Described> {
            let owner = Arc::new(Owner { user: String::new(), ..Owner::clone(&owner(pid, "sh").owner) });
            Some(Described { owner, netns: 7, started_ns: 0, nameless: true })
        }

        fn user(&mut self, uid: u32) -> Option<String> {
            assert_eq!(uid, 33);
            self.0.map(str::to_owned)
        }
    }

    #[test]
    fn one_whose_user_had_no_name_yet_gets_it_and_stays_what_it_was() {
        let mut ancestry = told(vec![What::Forked { pid: 9, parent: 8 }, What::Exited { pid: 9 }]);
        let mut user_of = |deed, name| {
            let found = ancestry.describe(deed, 0, &mut Late(name));
            (found.owner.process.clone(), found.owner.user.clone(), found.nameless)
        };
        let (late, known) = (("sh".into(), String::new(), true), ("sh".into(), "www-data".to_owned(), false));
        assert_eq!(user_of(by(8, 9_000), None), late);
        assert_eq!(user_of(by(9, 500), None), late, "as it inherited, now that it is gone");
        assert_eq!(user_of(by(9, 500), Some("www-data")), known);
        assert_eq!(user_of(by(8, 9_000), Some("www-data")), known);
        // It is another program now, which is not what did this.
        let found = ancestry.describe(by(8, 9_000), 0, &mut |pid| Some(owner(pid, "sleep")));
        assert_eq!((found.owner.process.as_str(), found.owner.user.as_str()), ("sh", "www-data"));
    }

    #[test]
    fn one_that_is_alive_is_read_once_and_again_after_it_ran_another_program() {
        let mut ancestry = Ancestry::default();
        let mut reads = 0;
        let mut count = |pid| {
            reads += 1;
            read(pid)
        };
        for _ in 0..3 {
            assert_eq!(ancestry.describe(by(1, 9_000), 0, &mut count).owner.process, "inetd");
        }
        ancestry.handle(&Record { at_ns: 9, what: named(1, "other", true) }, None);
        ancestry.describe(by(1, 9_000), 0, &mut count);
        assert_eq!(reads, 2);
    }

    #[test]
    fn one_that_was_looked_at_when_it_ran_another_program_is_not_looked_for_again() {
        let mut ancestry = told(vec![What::Forked { pid: 2, parent: 1 }]);
        ancestry.handle(&Record { at_ns: 5, what: named(2, "curl", true) }, Some(owner(2, "curl")));
        ancestry.handle(&Record { at_ns: 6, what: What::Exited { pid: 2 } }, None);
        let found = ancestry.describe(by(2, 9_000), 0, &mut |_| None);
        assert_eq!((found.owner.exe.as_str(), found.netns), ("/usr/bin/curl", 7));
    }

    fn by(pid: u32, at_ns: u64) -> Deed {
        Deed { pid, at_ns }
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process_and_what_the_first_did_stays_its_own() {
        let mut ancestry = told(vec![What::Forked { pid: 2, parent: 1 }]);
        for (at_ns, what) in [
            (3_000, named(2, "first", false)),
            (5_000, What::Exited { pid: 2 }),
            (6_000, What::Forked { pid: 2, parent: 1 }),
            (7_000, named(2, "second", false)),
        ] {
            ancestry.handle(&Record { at_ns, what }, None);
        }
        // Whoever has the number now is not looked at for what another one did.
        let mut read = |pid| (pid == 1).then(|| owner(1, "inetd"));
        let names =
            [4_000, 6_500, 8_000].map(|at_ns| ancestry.describe(by(2, at_ns), 0, &mut read).owner.process.clone());
        assert_eq!(names, ["first", "second", "second"]);
        let before = Deed { pid: 2, at_ns: 0 };
        ancestry.handle(&Record { at_ns: 9_000, what: What::Exited { pid: 2 } }, None);
        assert_eq!(ancestry.describe(before, 0, &mut read).owner.process, "first", "forked at that moment");
        assert_eq!(ancestry.count, 3, "with their parent");
        ancestry.sweep(5_500 + REMEMBERED_NS);
        assert_eq!((ancestry.count, ancestry.processes.len()), (2, 2), "the first is forgotten");
        ancestry.sweep(9_000 + 2 * REMEMBERED_NS);
        assert_eq!((ancestry.count, ancestry.processes.len()), (1, 1));
    }

    #[test]
    fn a_process_that_began_after_the_deed_did_not_do_it() {
        let later = |pid| Some(Described { started_ns: 9_000 + START_SLACK_NS, ..owner(pid, "later") });
        for (at_ns, expected) in [(8_999, ("", UNKNOWN_UID)), (9_000, ("later", 33))] {
            let found = Ancestry::default().describe(by(2, at_ns), 0, &mut { later }).owner;
            assert_eq!((found.process.as_str(), found.uid), expected, "{at_ns}");
        }
    }

    #[test]
    fn of_too_many_that_had_one_number_no_more_are_remembered_than_of_others() {
        let mut ancestry = Ancestry::default();
        for at_ns in 0..PROCESSES_LIMIT as u64 + 5 {
            ancestry.handle(&Record { at_ns, what: What::Forked { pid: at_ns as u32 % 100, parent: 1 } }, None);
            assert!(ancestry.count <= PROCESSES_LIMIT);
        }
        assert!(ancestry.take_overflow() > 0);
    }

    #[test]
    fn of_one_that_nobody_knew_only_the_number_is_told() {
        let found = Ancestry::default().describe(by(9, 9_000), 0, &mut |_| None).owner;
        assert_eq!((found.pid, found.uid, found.process.as_str()), (9, UNKNOWN_UID, ""));
        assert_eq!(found.started_at, None);
    }

    #[test]
    fn forks_that_name_each_other_do_not_go_round_in_circles() {
        let mut ancestry = told(vec![What::Forked { pid: 2, parent: 3 }, What::Forked { pid: 3, parent: 2 }]);
        assert_eq!(ancestry.describe(by(2, 9_000), 0, &mut |_| None).owner.uid, UNKNOWN_UID);
    }

    #[test]
    fn those_that_are_gone_for_a_while_are_forgotten() {
        let mut ancestry = told(vec![What::Forked { pid: 2, parent: 1 }, What::Exited { pid: 2 }]);
        ancestry.handle(&Record { at_ns: 5, what: What::Forked { pid: 3, parent: 1 } }, None);
        ancestry.sweep(REMEMBERED_NS * 2);
        assert_eq!(ancestry.processes.keys().copied().collect::<Vec<_>>(), [3]);
    }
}
