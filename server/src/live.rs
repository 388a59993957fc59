//! Which hosts are speaking right now and whom answers go to, so that each can be ended from elsewhere within an instant.
//!
//! A host has one voice: the stream whose Hello was taken. A host that seems to speak from two places at once has an
//! identity that was copied; the first place keeps the voice, and the second is told of, never mixed in.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleetsock_proto::{
    host::{BootId, HostId},
    stream::Roots,
    time::Timestamp,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Streams of one host that may be there at once: the one that speaks, and those that did not say Hello yet.
const STREAMS_PER_HOST: usize = 4;
/// So many times within so long may a stream be replaced by another from the same place before that is odd.
const REPLACEMENTS: (usize, Duration) = (3, Duration::from_secs(300));

/// Why a stream is ended by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The same host began another one.
    Replaced,
    /// The host was revoked.
    Revoked,
    /// The server stops.
    Stopping,
}

/// Where a host speaks from. A machine has one boot at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The boot that the agent told of.
    pub boot_id: BootId,
    /// The network namespace that it walks.
    pub netns: u64,
    /// The address that it connected from.
    pub address: Option<IpAddr>,
}

impl Spot {
    fn is_same_machine(self, other: Spot) -> bool {
        (self.boot_id, self.netns) == (other.boot_id, other.netns)
    }
}

/// The streams of all hosts.
#[derive(Debug, Default)]
pub struct Live {
    streams: Mutex<Streams>,
    /// What was last told to every stream.
    told: watch::Sender<Option<Roots>>,
}

#[derive(Debug, Default)]
struct Streams {
    stopping: bool,
    begun: u64,
    by_host: HashMap<HostId, Vec<Stream>>,
    /// When voices were replaced lately; hosts where that never happened are not here.
    replaced: HashMap<HostId, VecDeque<Timestamp>>,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    /// Serial number of the certificate that it was begun with.
    serial: Vec<u8>,
    end: watch::Sender<Option<End>>,
    voice: Option<Voice>,
}

/// What is known of the stream that speaks for a host.
#[derive(Debug)]
struct Voice {
    spot: Spot,
    heard_at: Timestamp,
    /// Somebody else who wanted to speak for the host since this one was heard.
    rival: Option<Spot>,
}

/// What came of a Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearing {
    /// The stream speaks for its host from now on.
    Taken,
    /// It does, as the last of many that replaced each other within a short time.
    TakenAgain {
        /// How many.
        times: usize,
    },
    /// Another machine speaks for the host, and was heard a moment ago.
    Occupied {
        /// Where that is.
        by: Spot,
    },
}

/// A stream that others can end; forgotten when it is dropped.
#[derive(Debug)]
pub struct LiveStream {
    live: Arc<Live>,
    host: HostId,
    number: u64,
    end: watch::Receiver<Option<End>>,
}

impl Live {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        // The maps are whole after every statement, so a panic elsewhere does not spoil them.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host begins a stream with the certificate of that serial number; whether it speaks for the host is decided by its Hello.
    pub fn begin(self: &Arc<Live>, host: HostId, serial: Vec<u8>) -> LiveStream {
        let mut streams = self.streams();
        streams.begun += 1;
        let number = streams.begun;
        let (sender, end) = watch::channel(streams.stopping.then_some(End::Stopping));
        let of_host = streams.by_host.entry(host).or_default();
        let silent: Vec<&Stream> = of_host.iter().filter(|stream| stream.voice.is_none()).collect();
        if silent.len() + 1 >= STREAMS_PER_HOST
            && let Some(oldest) = silent.first()
        {
            oldest.end.send_replace(Some(End::Replaced));
        }
        of_host.push(Stream { number, serial, end: sender, voice: None });
        LiveStream { live: Arc::clone(self), host, number, end }
    }

    /// Ends the streams of a host, if it has some.
    pub fn end(&self, host: HostId, why: End) {
        for stream in self.streams().by_host.get(&host).into_iter().flatten() {
            stream.end.send_replace(Some(why));
        }
    }

    /// Tells every stream that is there.
    pub fn tell(&self, roots: Roots) {
        self.told.send_replace(Some(roots));
    }

    /// What is told to every stream from now on.
    pub fn told(&self) -> watch::Receiver<Option<Roots>> {
        self.told.subscribe()
    }

    /// Ends every stream, also those that will begin.
    pub fn stop(&self) {
        let mut streams = self.streams();
        streams.stopping = true;
        for stream in streams.by_host.values().flatten() {
            stream.end.send_replace(Some(End::Stopping));
        }
    }

    /// Hosts that speak.
    pub fn speaking(&self) -> usize {
        let is_voice = |stream: &Stream| stream.voice.is_some();
        self.streams().by_host.values().filter(|streams| streams.iter().any(is_voice)).count()
    }

    /// How many hosts have a stream.
    pub fn count(&self) -> usize {
        self.streams().by_host.len()
    }
}

impl LiveStream {
    /// Returns when the stream shall end.
    pub async fn ended(&self) -> End {
        match self.end.clone().wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Stopping),
            // The sender went with the map, so the server is gone.
            Err(_) => End::Stopping,
        }
    }

    /// The stream said Hello from `spot` at `now`. Another machine that was heard within `patience` keeps the voice;
    /// otherwise this one has it, and the stream before, if it still seems to be there, ends.
    pub fn speak(&self, spot: Spot, now: Timestamp, patience: Duration) -> Hearing {
        let mut streams = self.live.streams();
        let streams = &mut *streams;
        let of_host = streams.by_host.entry(self.host).or_default();
        let own_serial = of_host.iter().find(|stream| stream.number == self.number).map(|own| own.serial.clone());
        let mut replaced = false;
        for stream in of_host.iter_mut().filter(|stream| stream.number != self.number) {
            let Some(voice) = &mut stream.voice else { continue };
            if !voice.spot.is_same_machine(spot) && now.since(voice.heard_at) < patience {
                voice.rival = Some(spot);
                return Hearing::Occupied { by: voice.spot };
            }
            // With the next certificate comes the next stream, before the one before is let go.
            replaced |= voice.spot.is_same_machine(spot) && own_serial.as_ref() == Some(&stream.serial);
            stream.voice = None;
            stream.end.send_replace(Some(End::Replaced));
        }
        if let Some(own) = of_host.iter_mut().find(|stream| stream.number == self.number) {
            own.voice = Some(Voice { spot, heard_at: now, rival: None });
        }
        if !replaced {
            return Hearing::Taken;
        }
        let times = streams.replaced.entry(self.host).or_default();
        times.push_back(now);
        while times.len() > REPLACEMENTS.0 || times.front().is_some_and(|at| now.since(*at) > REPLACEMENTS.1) {
            times.pop_front();
        }
        if times.len() == REPLACEMENTS.0 { Hearing::TakenAgain { times: times.len() } } else { Hearing::Taken }
    }

    /// The voice of the host was heard again; who else wanted to speak for it meanwhile. Both live, so there are two.
    pub fn heard(&self, now: Timestamp) -> Option<Spot> {
        let mut streams = self.live.streams();
        let own = streams.by_host.get_mut(&self.host)?.iter_mut().find(|stream| stream.number == self.number)?;
        let voice = own.voice.as_mut()?;
        voice.heard_at = now;
        voice.rival.take()
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let mut streams = self.live.streams();
        let Some(of_host) = streams.by_host.get_mut(&self.host) else { return };
        of_host.retain(|stream| stream.number != self.number);
        if of_host.is_empty() {
            streams.by_host.remove(&self.host);
        }
    }
}

/// The answers that are on their way, by the operator who asked.
#[derive(Debug, Default)]
pub struct Answers {
    by_operator: Mutex<HashMap<String, (usize, CancellationToken)>>,
}

/// An answer that ends when its operator is revoked; forgotten when it is dropped.
#[derive(Debug)]
pub struct LiveAnswer {
    answers: Arc<Answers>,
    operator: String,
    end: CancellationToken,
}

impl Answers {
    /// An answer to an operator begins.
    pub fn begin(self: &Arc<Answers>, operator: &str) -> LiveAnswer {
        let mut answers = self.by_operator.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, end) = answers.entry(operator.to_owned()).or_default();
        *count += 1;
        LiveAnswer { answers: Arc::clone(self), operator: operator.to_owned(), end: end.clone() }
    }

    /// Ends every answer to an operator.
    pub fn end(&self, operator: &str) {
        let mut answers = self.by_operator.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, end)) = answers.get_mut(operator) {
            // Whoever of that name begins after this has another identity.
            std::mem::take(end).cancel();
        }
    }

    /// How many answers are on their way.
    pub fn count(&self) -> usize {
        self.by_operator.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(count, _)| count).sum()
    }
}

impl LiveAnswer {
    /// Returns when the answer shall end.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// Whether it shall have ended.
    pub fn has_ended(&self) -> bool {
        self.end.is_cancelled()
    }

    /// The same for somebody else to wait for.
    pub fn end_token(&self) -> CancellationToken {
        self.end.clone()
    }
}

impl Drop for LiveAnswer {
    fn drop(&mut self) {
        let mut answers = self.answers.by_operator.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = answers.get_mut(&self.operator) {
            *count -= 1;
            if *count == 0 {
                answers.remove(&self.operator);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(35);

    fn spot(boot: u8) -> Spot {
        Spot { boot_id: BootId::from_array([boot; 16]), netns: 1, address: None }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().plus(Duration::from_secs(seconds))
    }

    #[tokio::test]
    async fn a_second_stream_of_a_machine_ends_the_first_when_it_says_hello() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let first = live.begin(host, vec![1]);
        assert_eq!(first.speak(spot(1), at(0), PATIENCE), Hearing::Taken);
        let second = live.begin(host, vec![1]);
        assert_eq!(*first.end.borrow(), None, "it did not say Hello yet");
        assert_eq!(second.speak(spot(1), at(1), PATIENCE), Hearing::Taken);
        assert_eq!(first.ended().await, End::Replaced);
        drop(first);
        assert_eq!(live.count(), 1);
        live.end(host, End::Revoked);
        assert_eq!(second.ended().await, End::Revoked);
        drop(second);
        assert_eq!((live.count(), live.streams().by_host.len()), (0, 0));
    }

    #[test]
    fn of_two_machines_the_first_keeps_the_voice_and_hears_of_the_second() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let (first, second) = (live.begin(host, vec![1]), live.begin(host, vec![1]));
        assert_eq!(first.speak(spot(1), at(0), PATIENCE), Hearing::Taken);
        assert_eq!(first.heard(at(10)), None);
        assert_eq!(second.speak(spot(2), at(20), PATIENCE), Hearing::Occupied { by: spot(1) });
        assert_eq!((*first.end.borrow(), second.heard(at(21))), (None, None));
        assert_eq!(first.heard(at(22)), Some(spot(2)), "both are alive");
        assert_eq!(first.heard(at(23)), None, "it is told once");
    }

    #[test]
    fn a_machine_that_started_again_gets_the_voice_when_the_old_one_is_silent_for_long_enough() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let (before, after) = (live.begin(host, vec![1]), live.begin(host, vec![1]));
        before.speak(spot(1), at(0), PATIENCE);
        assert_eq!(after.speak(spot(2), at(34), PATIENCE), Hearing::Occupied { by: spot(1) });
        assert_eq!(after.speak(spot(2), at(35), PATIENCE), Hearing::Taken);
        assert_eq!(*before.end.borrow(), Some(End::Replaced));
    }

    #[test]
    fn streams_that_replace_each_other_again_and_again_are_noticed() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let mut streams = vec![live.begin(host, vec![1])];
        streams[0].speak(spot(1), at(0), PATIENCE);
        let mut next = |second| {
            streams.push(live.begin(host, vec![1]));
            let hearing = streams[streams.len() - 1].speak(spot(1), at(second), PATIENCE);
            streams.remove(0);
            hearing
        };
        assert_eq!([next(40), next(80)], [Hearing::Taken; 2]);
        assert_eq!(next(120), Hearing::TakenAgain { times: 3 });
        assert_eq!([next(400), next(800)], [Hearing::Taken; 2], "it is long ago");
    }

    #[test]
    fn a_stream_with_the_next_certificate_takes_the_voice_and_is_nothing_odd() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let mut before = live.begin(host, vec![0]);
        before.speak(spot(1), at(0), PATIENCE);
        for serial in 1..10 {
            let next = live.begin(host, vec![serial]);
            assert_eq!(next.speak(spot(1), at(serial.into()), PATIENCE), Hearing::Taken);
            assert_eq!(*before.end.borrow(), Some(End::Replaced));
            before = next;
        }
    }

    #[test]
    fn streams_that_say_nothing_cannot_pile_up() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let speaks = live.begin(host, vec![1]);
        speaks.speak(spot(1), at(0), PATIENCE);
        let silent: Vec<LiveStream> = (0..10).map(|_| live.begin(host, vec![1])).collect();
        assert_eq!((*speaks.end.borrow(), *silent[0].end.borrow()), (None, Some(End::Replaced)));
        assert_eq!(*silent[9].end.borrow(), None);
    }

    #[tokio::test]
    async fn streams_that_begin_while_the_server_stops_end_at_once() {
        let live = Arc::new(Live::default());
        live.stop();
        assert_eq!(live.begin(HostId::random(), vec![1]).ended().await, End::Stopping);
    }

    #[tokio::test]
    async fn the_answers_of_one_operator_end_and_those_of_others_and_later_ones_do_not() {
        let answers = Arc::new(Answers::default());
        let (alice, bob) = (answers.begin("alice"), answers.begin("bob"));
        let again = answers.begin("alice");
        answers.end("alice");
        alice.ended().await;
        again.ended().await;
        let later = answers.begin("alice");
        assert!(!bob.end.is_cancelled() && !later.end.is_cancelled());
        drop((alice, again));
        assert_eq!(answers.count(), 2);
        drop((bob, later));
        assert!(answers.by_operator.lock().unwrap().is_empty());
    }
}
