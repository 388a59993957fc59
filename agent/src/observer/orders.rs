//! What an observer is told, kept until it looks: a later order of a kind takes the place of an earlier one.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What was told since the observer last looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Write a snapshot soon: the server lacks something.
    pub snapshot: bool,
    /// Write a snapshot now: a numbering begins, and nothing can be sent before it.
    pub begin: bool,
    /// Walk this often.
    pub interval: Option<Duration>,
    /// Walk once more and end.
    pub stop: bool,
}

/// Tells an observer what to do.
#[derive(Debug, Default)]
pub struct Orders {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Orders {
    fn told(&self) -> MutexGuard<'_, Told> {
        // Whoever panicked had set a flag or not: both are good values.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: impl FnOnce(&mut Told)) {
        what(&mut self.told());
        self.changed.notify_one();
    }

    /// Write a snapshot soon.
    pub fn snapshot(&self) {
        self.tell(|told| told.snapshot = true);
    }

    /// Write a snapshot now.
    pub fn begin(&self) {
        self.tell(|told| told.begin = true);
    }

    /// Walk this often.
    pub fn interval(&self, interval: Duration) {
        self.tell(|told| told.interval = Some(interval));
    }

    /// Walk once more and end.
    pub fn stop(&self) {
        self.tell(|told| told.stop = true);
    }

    /// Waits until something is told, and takes it; nothing after `patience`.
    pub fn wait(&self, patience: Duration) -> Told {
        let nothing = |told: &mut Told| *told == Told::default();
        let waited = self.changed.wait_timeout_while(self.told(), patience, nothing);
        let (mut told, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_wait_for_the_observer_and_are_taken_once() {
        let orders = Orders::default();
        orders.interval(Duration::from_secs(5));
        orders.snapshot();
        orders.interval(Duration::from_secs(7));
        let told = Told { snapshot: true, interval: Some(Duration::from_secs(7)), ..Told::default() };
        assert_eq!(orders.wait(Duration::MAX), told);
        assert_eq!(orders.wait(Duration::ZERO), Told::default());
    }

    #[test]
    fn an_order_wakes_an_observer_that_waits() {
        let orders = Orders::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| orders.wait(Duration::from_secs(3600)));
            orders.stop();
            assert!(waiting.join().unwrap().stop);
        });
    }
}
