//! The thread that seals files, and that sums up those that are not kept any more: one after the other, the oldest first,
//! beside everything else.
//!
//! The exchange of a file for its sealed form is one transaction of the writer. Questions that began before it still read
//! the file, so that it is removed only when none of them can be left.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fleetsock_proto::time::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc::WeakSender, oneshot};

use super::{GoesOn, SealError, pace::Pace, seal};
use crate::history::{
    HistoryError,
    sqlite::{
        Options,
        database::Files,
        in_use,
        leaving::give_back,
        parts::{self, Form, Keeping, Part},
        sums::sum_up,
        work::{Work, answer},
    },
};

/// After an error, before it is tried again: a disk that is full will not be larger a second later.
const RETRY: Duration = Duration::from_secs(60);
/// Niceness of the thread: whoever waits for an answer goes first.
const NICE: i32 = 10;
/// Programs that were last named in a file that is gone, of which it is looked at once whether anything else names them.
const LOOKED_AT: u32 = 10_000;
/// Programs that the writer forgets in one piece of its work.
const FORGOTTEN_AT_ONCE: usize = 500;
/// Between two steps in which the room of a file is given back.
const GIVEN_BACK_EVERY: Duration = Duration::from_millis(50);

/// How files are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealing {
    /// How often it is looked whether a file is complete.
    pub pause: Duration,
    /// How long a file stays after its sealed form took its place: at least as long as a question may take.
    pub stays: Duration,
}

impl Sealing {
    /// The usual way, where questions take at most so long.
    pub fn beside(question: Duration) -> Sealing {
        let usual = Sealing::default();
        // A question that began just before the exchange opens the file late, and more than once.
        Sealing { stays: usual.stays.max(question.saturating_mul(2)), ..usual }
    }
}

impl Default for Sealing {
    fn default() -> Sealing {
        Sealing { pause: Duration::from_secs(1), stays: Duration::from_secs(90) }
    }
}

/// The thread, for as long as this is kept.
pub(in crate::history::sqlite) struct Sealer {
    ended: Arc<AtomicBool>,
    /// Dropping it wakes the thread.
    wake: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    /// Starts it.
    pub(in crate::history::sqlite) fn start(
        files: Files,
        work: WeakSender<Work>,
        options: &Options,
    ) -> io::Result<Sealer> {
        let ended = Arc::new(AtomicBool::new(false));
        let (wake, woken) = mpsc::channel();
        let turns = Turns {
            pace: Arc::new(Pace::new(files.clone(), options.meters.clone(), Arc::clone(&ended))),
            files,
            work,
            sealing: options.sealing,
            keeping: options.keeping,
            clock: options.clock,
            ended: Arc::clone(&ended),
            leaving: Vec::new(),
            oldest: None,
            forgetting: None,
            forgotten_before: 0,
            rest: None,
        };
        let thread = std::thread::Builder::new().name("history-sealer".to_owned()).spawn(move || turns.run(&woken))?;
        Ok(Sealer { ended, wake: Some(wake), thread: Some(thread) })
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.wake.take();
        let Some(thread) = self.thread.take() else { return };
        // It may be resting.
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("the thread that seals files panicked");
        }
    }
}

struct Turns {
    files: Files,
    pace: Arc<Pace>,
    work: WeakSender<Work>,
    sealing: Sealing,
    keeping: Keeping,
    clock: fn() -> Timestamp,
    ended: Arc<AtomicBool>,
    /// Files whose sealed form or sums took their place, what that is, and when.
    leaving: Vec<(i64, Place, Instant)>,
    /// The oldest file that was kept, and when that was.
    oldest: Option<(i64, Instant)>,
    /// That file, while programs are forgotten that were last named before it, and the last program that was looked at.
    forgetting: Option<(i64, i64)>,
    /// Programs that were last named before this file are forgotten.
    forgotten_before: i64,
    /// Until when nothing is tried.
    rest: Option<Instant>,
}

/// What takes the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its sealed form.
    Sealed,
    /// Its sums: it was over before this moment.
    Sums(Timestamp),
}

impl Place {
    fn name(self, id: i64) -> String {
        match self {
            Place::Sealed => parts::sealed_of(id),
            Place::Sums(_) => parts::sums_of(id),
        }
    }
}

impl Turns {
    fn run(mut self, woken: &mpsc::Receiver<()>) {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "files are sealed with the priority of everything else");
        }
        while woken.recv_timeout(self.sealing.pause) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.pace.look();
            self.files.leaving().close_connections();
            self.remove_left();
            self.give_back();
            if self.rest.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            if let Err(error) = self.forget_programs() {
                tracing::error!(%error, "programs that nothing names any more stay for now");
                (self.forgetting, self.oldest) = (None, None);
            }
            let Some((part, place)) = self.next() else { continue };
            match self.replace(&part, place) {
                Ok(()) => self.rest = None,
                Err(SealError::Unwanted) => {}
                Err(error) if !self.files.catalogue().complete.contains(&part) => {
                    tracing::debug!(%error, file = %part.path.display(), "a file was dropped before it was sealed");
                }
                Err(error) => {
                    tracing::error!(%error, file = %part.path.display(), to = %place.name(part.id), "a file stays as it is");
                    self.rest = Some(Instant::now() + RETRY);
                }
            }
        }
        self.files.leaving().close_connections();
    }

    /// The file whose turn it is.
    fn next(&self) -> Option<(Part, Place)> {
        let catalogue = self.files.catalogue();
        if let Some(horizon) = parts::horizon(self.keeping, (self.clock)()).filter(|_| self.keeping.sums.is_some())
            && let Some(old) = catalogue.complete.iter().find(|part| part.latest < horizon.as_micros())
        {
            return Some((old.clone(), Place::Sums(horizon)));
        }
        let rows = catalogue.complete.iter().find(|part| part.form == Form::Rows)?;
        Some((rows.clone(), Place::Sealed))
    }

    fn replace(&mut self, part: &Part, place: Place) -> Result<(), SealError> {
        let begun = Instant::now();
        let name = place.name(part.id);
        let goes_on = self.goes_on(part);
        let path = self.files.folder().join(&name);
        self.pace.begin();
        match place {
            Place::Sealed => self.pace.end(seal(&part.path, &path, &goes_on)?),
            Place::Sums(_) => sum_up(part, &self.files.open_main()?, &path, &goes_on)?,
        }
        match self.exchange(part.id, place) {
            Ok(true) => {
                let size = |path| std::fs::metadata(path).map_or(0, |file| file.len());
                let (before, after, took) = (size(&part.path), size(&path), begun.elapsed());
                tracing::info!(file = %path.display(), before, after, ?took, "it took the place of a file of sessions");
                self.leaving.push((part.id, place, Instant::now()));
                Ok(())
            }
            Ok(false) => {
                parts::remove(self.files.folder(), &name)?;
                Err(SealError::Unwanted)
            }
            // Both files stay: it is not known which one is named.
            Err(HistoryError::Closed) => Err(SealError::Unwanted),
            Err(error) => Err(SealError::Exchange(error)),
        }
    }

    /// Whether the work on a file goes on, after a rest.
    fn goes_on(&self, part: &Part) -> GoesOn {
        let (files, pace, ended) = (self.files.clone(), Arc::clone(&self.pace), Arc::clone(&self.ended));
        let wanted = part.clone();
        Arc::new(move || {
            pace.rest();
            !ended.load(Ordering::Relaxed) && files.catalogue().complete.contains(&wanted)
        })
    }

    /// Has the writer name what takes the place of a file; whether that was still kept.
    fn exchange(&self, id: i64, place: Place) -> Result<bool, HistoryError> {
        let files = self.files.clone();
        self.order(move |main| {
            Ok(match place {
                Place::Sealed => files.exchange(main, id)?,
                Place::Sums(horizon) => files.exchange_for_sums(main, id, horizon)?,
            })
        })
    }

    /// Has the writer forget some of the programs that nothing names any more, once no question reads files that did.
    fn forget_programs(&mut self) -> Result<(), HistoryError> {
        let Some((oldest, after)) = self.forgetting else {
            let (oldest, since) = *self.oldest.get_or_insert((self.files.catalogue().oldest(), Instant::now()));
            if since.elapsed() >= self.sealing.stays {
                // What became the oldest meanwhile has its turn next.
                self.oldest = None;
                self.forgetting = (oldest > self.forgotten_before).then_some((oldest, 0));
            }
            return Ok(());
        };
        let Some((unused, last)) = in_use::unused(&self.files.open_main()?, oldest, (after, LOOKED_AT))? else {
            (self.forgetting, self.forgotten_before) = (None, oldest);
            return Ok(());
        };
        let mut forgotten = 0;
        for some in unused.chunks(FORGOTTEN_AT_ONCE).map(<[i64]>::to_vec) {
            if self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            forgotten += self.order(move |main| Ok(in_use::forget(main, &some, oldest)?))?;
            self.pace.pause(GIVEN_BACK_EVERY);
        }
        if forgotten > 0 {
            tracing::info!(forgotten, "programs that nothing names any more are forgotten");
        }
        self.forgetting = Some((oldest, last));
        Ok(())
    }

    /// Has the writer do something to `main.db`.
    fn order<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Connection) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let work = self.work.upgrade().ok_or(HistoryError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let order = Work::Main(Box::new(move |main, _| answer(reply, what(main))));
        work.blocking_send(order).map_err(|_| HistoryError::Closed)?;
        outcome.blocking_recv().map_err(|_| HistoryError::Closed)?
    }

    /// Removes the files that no question can be reading any more.
    fn remove_left(&mut self) {
        let (folder, stays, leaving) = (self.files.folder(), self.sealing.stays, self.files.leaving());
        self.leaving.retain(|(id, place, since)| {
            if since.elapsed() < stays {
                return true;
            }
            let names = match place {
                Place::Sealed => vec![parts::file_of(*id)],
                Place::Sums(_) => vec![parts::file_of(*id), parts::sealed_of(*id)],
            };
            match parts::take_names(folder, &names) {
                Ok(files) => {
                    leaving.add(files);
                    false
                }
                Err(error) => {
                    tracing::warn!(%error, id, "a file whose place is taken cannot be removed; it is tried again");
                    true
                }
            }
        });
    }

    /// Gives back the room of files that have no name any more.
    fn give_back(&self) {
        let goes_on = || {
            self.pace.pause(GIVEN_BACK_EVERY);
            !self.ended.load(Ordering::Relaxed)
        };
        while let Some(file) = self.files.leaving().take() {
            if let Err(error) = give_back(&file, goes_on) {
                tracing::warn!(%error, "the room of a file that is not kept is given back at once");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_for_longer_than_any_question_takes() {
        for seconds in [1, 30, 90, 3600] {
            let question = Duration::from_secs(seconds);
            assert!(Sealing::beside(question).stays > question, "{seconds}");
        }
        assert_eq!(Sealing::beside(Duration::from_secs(30)), Sealing::default());
    }
}
