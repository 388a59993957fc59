//! Whether somebody keeps the kernel's records of states from us. Pure.
//!
//! What a BPF program returns that is attached to a tracepoint as an event of perf decides for everybody whether there is a
//! record: with 0 there is none (`perf_trace_run_bpf_submit` in kernel/events/core.c). `tcplife`, `tcpstates` and their like
//! return 0 to every change of a state, and nothing says so. But another tracepoint tells that a connection is gone, and none
//! goes without a change of its state that is written.

use super::Lives;

/// Connections that go one after the other without a word, until no words are believed to come. One or two can have begun to
/// end before events were listened to.
const ENDS: u32 = 3;

impl Lives {
    /// Whether somebody kept the records of states from us since the last time this was asked.
    pub fn take_silence(&mut self) -> bool {
        self.silence.take()
    }

    /// The same, without asking anew the next time.
    pub fn has_been_silent(&self) -> bool {
        self.silence.has_been()
    }
}

/// How long it has been silent.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Connections that went without a word since the last word.
    ends: u32,
    /// It was silent at some time since the last time this was asked.
    was_silent: bool,
}

impl Silence {
    /// A change of a state was told.
    pub(super) fn break_off(&mut self) {
        self.ends = 0;
    }

    /// A connection is gone of which nothing was told before.
    pub(super) fn deepen(&mut self) {
        self.ends = self.ends.saturating_add(1);
        self.was_silent |= self.is_now();
    }

    /// Whether it was silent at any time since [`Silence::take`] was called.
    pub(super) fn has_been(&self) -> bool {
        self.was_silent
    }

    /// Whether no words are believed to come.
    fn is_now(&self) -> bool {
        self.ends >= ENDS
    }

    /// The same, and asks anew.
    pub(super) fn take(&mut self) -> bool {
        let is_now = self.is_now();
        std::mem::replace(&mut self.was_silent, is_now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_ends_without_a_word_are_silence_until_the_next_word_and_no_silence_is_overlooked() {
        let mut silence = Silence::default();
        let ends = |silence: &mut Silence, count| (0..count).for_each(|_| silence.deepen());
        ends(&mut silence, ENDS - 1);
        assert!(!silence.take());
        silence.break_off();
        ends(&mut silence, ENDS - 1);
        assert!(!silence.take(), "they are not one after the other");
        silence.deepen();
        assert_eq!([silence.take(), silence.take()], [true; 2], "it goes on");
        silence.break_off();
        assert_eq!([silence.take(), silence.take()], [true, false], "it was until then");
        ends(&mut silence, ENDS);
        silence.break_off();
        assert_eq!([silence.is_now(), silence.take(), silence.take()], [false, true, false]);
    }
}
