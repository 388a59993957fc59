//! The thread that seals files: one after the other, the oldest first, beside everything else.
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

use tokio::sync::{mpsc::WeakSender, oneshot};

use super::{GoesOn, SealError, seal};
use crate::history::{
    HistoryError,
    sqlite::{
        database::Files,
        parts::{self, Form, Part},
        work::{Work, answer},
    },
};

/// After an error, before it is tried again: a disk that is full will not be larger a second later.
const RETRY: Duration = Duration::from_secs(60);
/// Niceness of the thread: whoever waits for an answer goes first.
const NICE: i32 = 10;

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
        sealing: Sealing,
    ) -> io::Result<Sealer> {
        let ended = Arc::new(AtomicBool::new(false));
        let (wake, woken) = mpsc::channel();
        let turns = Turns { files, work, sealing, ended: Arc::clone(&ended), leaving: Vec::new(), rest: None };
        let thread = std::thread::Builder::new().name("history-sealer".to_owned()).spawn(move || turns.run(&woken))?;
        Ok(Sealer { ended, wake: Some(wake), thread: Some(thread) })
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.wake.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that seals files panicked");
        }
    }
}

struct Turns {
    files: Files,
    work: WeakSender<Work>,
    sealing: Sealing,
    ended: Arc<AtomicBool>,
    /// Files whose sealed form took their place, and when.
    leaving: Vec<(i64, Instant)>,
    /// Until when nothing is tried.
    rest: Option<Instant>,
}

impl Turns {
    fn run(mut self, woken: &mpsc::Receiver<()>) {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "files are sealed with the priority of everything else");
        }
        while woken.recv_timeout(self.sealing.pause) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.remove_left();
            if self.rest.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            let next = self.files.catalogue().complete.iter().find(|part| part.form == Form::Rows).cloned();
            let Some(part) = next else { continue };
            match self.seal(&part) {
                Ok(()) => self.rest = None,
                Err(SealError::Unwanted) => {}
                Err(error) => {
                    tracing::error!(%error, file = %part.path.display(), "a file cannot be sealed; it stays as it is");
                    self.rest = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    fn seal(&mut self, part: &Part) -> Result<(), SealError> {
        let begun = Instant::now();
        let name = parts::sealed_of(part.id);
        let (files, ended, wanted) = (self.files.clone(), Arc::clone(&self.ended), part.clone());
        let goes_on: GoesOn =
            Arc::new(move || !ended.load(Ordering::Relaxed) && files.catalogue().complete.contains(&wanted));
        let path = self.files.folder().join(&name);
        seal(&part.path, &path, &goes_on)?;
        match self.exchange(part.id) {
            Ok(true) => {
                let size = |path| std::fs::metadata(path).map_or(0, |file| file.len());
                let (before, after, took) = (size(&part.path), size(&path), begun.elapsed());
                tracing::info!(file = %path.display(), before, after, ?took, "a file of sessions is sealed");
                self.leaving.push((part.id, Instant::now()));
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

    /// Has the writer name the sealed form; whether the file was still kept.
    fn exchange(&self, id: i64) -> Result<bool, HistoryError> {
        let work = self.work.upgrade().ok_or(HistoryError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let files = self.files.clone();
        let order = Work::Main(Box::new(move |main, _| {
            answer(reply, files.exchange(main, id).map_err(HistoryError::from));
        }));
        work.blocking_send(order).map_err(|_| HistoryError::Closed)?;
        outcome.blocking_recv().map_err(|_| HistoryError::Closed)?
    }

    /// Removes the files that no question can be reading any more.
    fn remove_left(&mut self) {
        let (folder, stays) = (self.files.folder(), self.sealing.stays);
        self.leaving.retain(|(id, since)| {
            if since.elapsed() < stays {
                return true;
            }
            match parts::remove(folder, &parts::file_of(*id)) {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, id, "a file that is sealed cannot be removed; it is tried again");
                    true
                }
            }
        });
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
