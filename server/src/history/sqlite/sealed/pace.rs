//! How fast files are sealed: ahead of what comes in, and not much faster.
//!
//! A file takes minutes to fill and seconds to seal. In these seconds acknowledgements would wait for a core and for the
//! disk, so the thread rests after each few milliseconds of work, and is done when the next file is about half full. It
//! does not rest while nothing comes in, nor while several files wait for it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    history::sqlite::{database::Files, parts::Form},
    metrics::HistoryMeters,
};

/// Sessions that are sealed for each row that comes in.
const AHEAD: f64 = 2.0;
/// Sessions that are sealed in a second of work, as long as no file was.
const ASSUMED_SPEED: f64 = 250_000.0;
/// Sessions from which on a file tells how fast it goes: of fewer, most of the time goes into what each file takes.
const TELLING: u64 = 100_000;
/// The part of the time that is work at least: with it five million sessions take about a minute and a half.
const LEAST_PART: f64 = 0.1;
/// How long one rest is at most, so that it is soon seen when there is a hurry.
const MOST_REST: Duration = Duration::from_secs(1);
/// Over how long it is measured what comes in.
const MEASURED: Duration = Duration::from_secs(1);

/// What there is beside the work on a file.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    /// Rows that come in, a second; absent while it is not known.
    inflow: Option<f64>,
    /// Complete files that are not sealed, with the one that is worked on.
    waiting: usize,
}

/// The part of the time that is work, where a second of it seals so many sessions.
fn part(load: Load, speed: f64) -> f64 {
    match load {
        Load { waiting: 2.., .. } => 1.0,
        Load { inflow: Some(0.0), .. } => 1.0,
        Load { inflow: Some(inflow), .. } => (AHEAD * inflow / speed).clamp(LEAST_PART, 1.0),
        Load { inflow: None, .. } => LEAST_PART,
    }
}

/// Sessions that a second of work seals, as it was believed and after a file with so many of them.
fn learned(before: f64, sessions: u64, worked: Duration) -> f64 {
    if sessions < TELLING { before } else { sessions as f64 / worked.as_secs_f64().max(f64::EPSILON) }
}

/// How long to rest after so much work.
fn rest(worked: Duration, part: f64) -> Duration {
    worked.mul_f64(1.0 / part.max(LEAST_PART) - 1.0).min(MOST_REST)
}

/// How fast a number grows.
#[derive(Debug)]
struct Inflow {
    at: Instant,
    rows: u64,
    /// A second, over the last time that was measured.
    rate: Option<f64>,
}

impl Inflow {
    /// Takes up how many rows there are now.
    fn note(&mut self, now: Instant, rows: u64) {
        let passed = now.saturating_duration_since(self.at);
        if passed >= MEASURED {
            self.rate = Some(rows.saturating_sub(self.rows) as f64 / passed.as_secs_f64());
            (self.at, self.rows) = (now, rows);
        }
    }
}

#[derive(Debug)]
struct State {
    inflow: Inflow,
    /// Sessions that are sealed in a second of work.
    speed: f64,
    /// Since when is worked without a rest.
    since: Instant,
    /// Work on the file so far.
    worked: Duration,
}

impl State {
    /// What was worked since the last rest.
    fn count(&mut self, now: Instant) -> Duration {
        let worked = now.saturating_duration_since(self.since);
        self.since = now;
        self.worked += worked;
        worked
    }
}

/// The pace of the thread that seals files.
#[derive(Debug)]
pub(super) struct Pace {
    files: Files,
    meters: HistoryMeters,
    ended: Arc<AtomicBool>,
    state: Mutex<State>,
}

impl Pace {
    /// That of a thread that is woken by [`thread::Thread::unpark`] when `ended` is set.
    pub(super) fn new(files: Files, meters: HistoryMeters, ended: Arc<AtomicBool>) -> Pace {
        let now = Instant::now();
        let inflow = Inflow { at: now, rows: meters.rows(), rate: None };
        let state = State { inflow, speed: ASSUMED_SPEED, since: now, worked: Duration::ZERO };
        Pace { files, meters, ended, state: Mutex::new(state) }
    }

    /// Work on a file begins.
    pub(super) fn begin(&self) {
        self.with(|state| (state.since, state.worked) = (Instant::now(), Duration::ZERO));
    }

    /// Rests as long as it is due after the work since the last rest.
    pub(super) fn rest(&self) {
        let (worked, part) = self.with(|state| (state.count(Instant::now()), self.part(state)));
        self.sleep(rest(worked, part));
        self.with(|state| state.since = Instant::now());
    }

    /// Waits between two steps of what is work for the disk alone, unless there is a hurry.
    pub(super) fn pause(&self, pause: Duration) {
        if self.with(|state| self.part(state)) < 1.0 {
            self.sleep(pause);
        }
    }

    /// A file with so many sessions is sealed: the next one will take as much work for each.
    pub(super) fn end(&self, sessions: u64) {
        self.with(|state| {
            state.count(Instant::now());
            state.speed = learned(state.speed, sessions, state.worked);
        });
    }

    /// Looks what comes in, also while there is no file to seal.
    pub(super) fn look(&self) {
        self.with(|state| state.inflow.note(Instant::now(), self.meters.rows()));
    }

    fn part(&self, state: &mut State) -> f64 {
        state.inflow.note(Instant::now(), self.meters.rows());
        let waiting = self.files.catalogue().complete.iter().filter(|part| part.form == Form::Rows).count();
        part(Load { inflow: state.inflow.rate, waiting }, state.speed)
    }

    fn sleep(&self, rest: Duration) {
        let until = Instant::now() + rest;
        while !self.ended.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEED: f64 = 500_000.0;

    fn load(inflow: f64, waiting: usize) -> Load {
        Load { inflow: Some(inflow), waiting }
    }

    #[test]
    fn a_file_is_sealed_before_the_next_one_is_full_whatever_comes_in() {
        const FILE: f64 = 5_000_000.0;
        for inflow in [0.1, 1.0, 100.0, 5_000.0, 20_000.0, 100_000.0, 249_000.0, 400_000.0] {
            let part = part(load(inflow, 1), SPEED);
            let (sealed_in, full_in) = (FILE / (SPEED * part), FILE / inflow);
            assert!(sealed_in < full_in, "{inflow}: sealed in {sealed_in} s, full in {full_in} s");
            // Either it takes no longer than the least part, or no less than it must.
            assert!(sealed_in > 0.49 * full_in || part == LEAST_PART, "{inflow}: {part}");
        }
    }

    #[test]
    fn there_is_no_rest_when_files_wait_or_nothing_comes_in_or_as_much_as_can_be_sealed() {
        for all in [load(20_000.0, 2), load(1.0, 7), load(0.0, 1), load(460_000.0, 1)] {
            assert_eq!(rest(Duration::from_millis(5), part(all, SPEED)), Duration::ZERO, "{all:?}");
        }
        assert_eq!(part(Load { inflow: None, waiting: 1 }, SPEED), LEAST_PART);
        assert_eq!(part(Load { inflow: None, waiting: 2 }, SPEED), 1.0);
    }

    #[test]
    fn a_small_file_does_not_tell_how_fast_a_large_one_goes() {
        assert_eq!(learned(SPEED, 50, Duration::from_millis(30)), SPEED);
        assert_eq!(learned(SPEED, 5_000_000, Duration::from_secs(5)), 1_000_000.0);
    }

    #[test]
    fn a_rest_is_as_long_as_the_part_of_work_says_and_has_an_end() {
        for (worked_ms, part, rest_ms) in [(5, 0.5, 5), (4, 0.2, 16), (3, 0.1, 27), (3, 0.0, 27), (5_000, 0.1, 1_000)] {
            let rest = rest(Duration::from_millis(worked_ms), part).as_secs_f64() * 1000.0;
            assert!((rest - f64::from(rest_ms)).abs() < 0.001, "{worked_ms} ms, {part}: {rest} ms");
        }
    }

    #[test]
    fn what_comes_in_is_measured_over_a_second_at_least() {
        let begun = Instant::now();
        let mut inflow = Inflow { at: begun, rows: 100, rate: None };
        for (ms, rows, rate) in [
            (0, 100, None),
            (999, 5_000, None),
            (2_000, 20_100, Some(10_000.0)),
            (2_900, 90_000, Some(10_000.0)),
            (3_000, 20_100, Some(0.0)),
            (7_000, 20_104, Some(1.0)),
        ] {
            inflow.note(begun + Duration::from_millis(ms), rows);
            assert_eq!(inflow.rate, rate, "{ms}");
        }
    }
}
