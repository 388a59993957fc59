//! Files that have no name any more, until their room is given back.
//!
//! To free hundreds of megabytes at once keeps the journal of a file system busy for tens of milliseconds, and the disk
//! longer where it is told what it may forget (discard); whoever makes something durable waits for both. So a file loses
//! its name first, which is quick, is kept open, and is cut down some megabytes at a time. Nobody can open it then, and
//! none who opened it before may read it any more: those who ask are numbered, and a file waits for all that began before
//! it lost its name. A crash leaves nothing: what has no name goes with its last descriptor.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes that are given back at once.
const STEP_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug, Default)]
struct State {
    /// Number of the next one who asks.
    next: u64,
    /// Numbers of those who ask now.
    asking: BTreeSet<u64>,
    /// Files, and the number from which on nobody can have opened them.
    files: Vec<(u64, File)>,
}

/// The files, and who may be reading them.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving(Arc<Mutex<State>>);

/// Somebody who may read every file that had a name when he began, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Asking {
    number: u64,
    leaving: Leaving,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.leaving.state().asking.remove(&self.number);
    }
}

impl Leaving {
    /// Somebody begins to ask. He looks which files there are only after that.
    pub(super) fn ask(&self) -> Asking {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.asking.insert(number);
        Asking { number, leaving: self.clone() }
    }

    /// Takes up files that lost their names.
    pub(super) fn add(&self, files: Vec<File>) {
        let mut state = self.state();
        let from = state.next;
        state.files.extend(files.into_iter().map(|file| (from, file)));
    }

    /// A file that nobody can be reading any more.
    pub(super) fn take(&self) -> Option<File> {
        let mut state = self.state();
        let oldest = state.asking.first().copied().unwrap_or(state.next);
        let place = state.files.iter().position(|(from, _)| *from <= oldest)?;
        Some(state.files.swap_remove(place).1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back the room of a file from its end on; `goes_on` is asked between two steps, and may rest.
pub(super) fn give_back(file: &File, goes_on: impl Fn() -> bool) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    while left > 0 {
        left = left.saturating_sub(STEP_BYTES);
        file.set_len(left)?;
        if !goes_on() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_file_waits_for_all_who_began_before_it_lost_its_name_and_for_nobody_else() {
        let leaving = Leaving::default();
        assert!(leaving.take().is_none());
        let (first, second) = (leaving.ask(), leaving.ask());
        leaving.add(vec![file()]);
        let third = leaving.ask();
        leaving.add(vec![file()]);
        assert!(leaving.take().is_none());
        drop(second);
        assert!(leaving.take().is_none());
        drop(first);
        assert!(leaving.take().is_some(), "the third began later");
        assert!(leaving.take().is_none());
        let _fourth = leaving.ask();
        drop(third);
        assert!(leaving.take().is_some());
        leaving.add(vec![file()]);
        assert!(leaving.take().is_none());
    }

    #[test]
    fn room_is_given_back_in_steps_until_nothing_is_left_or_it_is_to_end() {
        let (file, seen) = (file(), RefCell::new(Vec::new()));
        file.set_len(2 * STEP_BYTES + 5).unwrap();
        let step = || {
            seen.borrow_mut().push(file.metadata().unwrap().len());
            true
        };
        give_back(&file, step).unwrap();
        assert_eq!(*seen.borrow(), [STEP_BYTES + 5, 5, 0]);
        file.set_len(3 * STEP_BYTES).unwrap();
        give_back(&file, || false).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2 * STEP_BYTES);
    }
}
