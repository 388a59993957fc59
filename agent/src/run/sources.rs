//! What an agent hears and sees with: opened with all that it may, before it gives up what it needs no more.

use std::{sync::Arc, thread};

use super::{RunError, broken};
use crate::{
    capture::{Destructions, Mortals, Surveyor},
    chronicle::{Chronicle, Reader},
    config::{Bytes, Config, Reach},
    cost::sockets_within,
    departures::Departures,
    events::{Events, Teller},
    facts::Hearing,
    ledger::{LastState, Ledger},
    namespaces::Namespaces,
    observer::Clock,
    owners::{Holdings, Processes},
    privileges,
};

/// Rows of a walk that are kept for each socket that is followed: one that is not is known to be there.
const ROWS_PER_SOCKET: usize = 2;

/// Everything that tells of sockets.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) surveyor: Surveyor,
    /// The other network namespaces, where they are wanted.
    pub(super) namespaces: Option<Namespaces>,
    /// What events tell, and who reads them.
    pub(super) events: Option<(Arc<Chronicle>, Reader)>,
    pub(super) departures: Option<Arc<Departures>>,
    pub(super) ledger: Option<Ledger>,
    pub(super) hearing: Hearing,
    /// Finds owners.
    pub(super) processes: Processes,
    /// How many sockets are followed.
    pub(super) sockets: usize,
}

impl Sources {
    /// Opens what can be opened, and gives up the capabilities of the calling thread that were needed for it alone.
    pub(super) fn open(config: &Config, clock: Clock) -> Result<Sources, RunError> {
        let sockets = sockets_within(config.memory_bytes);
        let surveyor = Surveyor::within(sockets.saturating_mul(ROWS_PER_SOCKET))?.listing(config.portless).asking();
        let events = Events::open(config.buffers.as_ref());
        let mortals = mortals(config.bytes, events.is_ok());
        let destructions = Destructions::of(mortals)
            .inspect_err(|error| tracing::warn!(%error, "the kernel tells nothing of closed sockets"));
        let holdings = Holdings::open();
        privileges::give_up(config.reach).map_err(|error| broken("giving up of capabilities", error))?;

        // Threads have the capabilities of the one that begins them.
        let departures = destructions.ok().map(|destructions| Departures::new(destructions, clock, sockets));
        let departures = departures.transpose().map_err(|error| broken("reader of closed sockets", error))?;
        let hears_tcp = departures.is_some() && mortals == Mortals::TcpAndUdp;
        let last_state = if events.is_ok() { LastState::Told } else { LastState::Walked };
        let ledger = hears_tcp.then(|| Ledger::new(surveyor.netns(), last_state));
        let (events, hearing) = match events {
            Ok(events) => {
                let hearing = match events.teller() {
                    Teller::Tracefs => {
                        tracing::info!(bytes = events.bytes(), "listening to events by trace buffers");
                        Hearing::Events
                    }
                    Teller::Perf(reason) => {
                        let bytes = events.bytes();
                        tracing::info!(
                            bytes,
                            reason,
                            "listening to events by perf, which tells less: no trace buffers"
                        );
                        Hearing::Perf(reason.to_owned())
                    }
                };
                let chronicle = Chronicle::new(sockets).map_err(|error| broken("reader of events", error))?;
                let processes = Processes::open()?.telling(config.command_lines)?;
                (Some((Arc::new(chronicle), Reader::new(events, processes))), hearing)
            }
            Err(error) if hears_tcp => (None, Hearing::Ends(error.to_string())),
            Err(error) => (None, Hearing::Nothing(error.to_string())),
        };
        let processes = Processes::open()?.telling(config.command_lines)?.asking(holdings);
        match processes.remark() {
            None => tracing::info!("the kernel tells who holds sockets"),
            Some(remark) => tracing::info!("{remark}"),
        }
        let namespaces = match config.reach {
            Reach::Host => Some(Namespaces::open()?),
            Reach::Namespace => None,
        };
        let departures = departures.map(Arc::new);
        Ok(Sources { surveyor, namespaces, events, departures, ledger, hearing, processes, sockets })
    }
}

/// Whose destruction is listened to. Where events tell every end for half the cost, the bytes alone must be wanted.
fn mortals(bytes: Option<Bytes>, has_events: bool) -> Mortals {
    match bytes {
        Some(Bytes::On) => Mortals::TcpAndUdp,
        None if !has_events => Mortals::TcpAndUdp,
        Some(Bytes::Off) | None => Mortals::Udp,
    }
}

/// The threads that listen, until they are told to stop.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Listener>);

#[derive(Debug)]
struct Listener {
    part: &'static str,
    stop: Stop,
    thread: thread::JoinHandle<()>,
}

/// How a thread is told to stop.
#[derive(Debug)]
enum Stop {
    Events(Arc<Chronicle>),
    Departures(Arc<Departures>),
}

impl Listeners {
    /// Begins to read events.
    pub(super) fn read(&mut self, chronicle: &Arc<Chronicle>, reader: Reader) -> Result<(), RunError> {
        let chronicle = Arc::clone(chronicle);
        let stop = Stop::Events(Arc::clone(&chronicle));
        self.begin("reader of events", "events", stop, move || chronicle.run(reader))
    }

    /// Begins to hear of closed sockets.
    pub(super) fn hear(&mut self, departures: &Arc<Departures>) -> Result<(), RunError> {
        let departures = Arc::clone(departures);
        let stop = Stop::Departures(Arc::clone(&departures));
        self.begin("reader of closed sockets", "departures", stop, move || departures.run())
    }

    fn begin(
        &mut self,
        part: &'static str,
        name: &str,
        stop: Stop,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), RunError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| broken(part, error))?;
        self.0.push(Listener { part, stop, thread });
        Ok(())
    }

    fn stop_all(&self) {
        for listener in &self.0 {
            match &listener.stop {
                Stop::Events(chronicle) => chronicle.stop(),
                Stop::Departures(departures) => departures.stop(),
            }
        }
    }

    /// Tells them to stop and waits until they did.
    pub(super) fn end(mut self) -> Result<(), RunError> {
        self.stop_all();
        for Listener { part, thread, .. } in self.0.drain(..) {
            thread.join().map_err(|_| broken(part, "it panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Listeners {
    /// When nobody waits for them, they end all the same.
    fn drop(&mut self) {
        self.stop_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_unasked_where_nothing_else_tells_the_end_of_connections() {
        use Mortals::{TcpAndUdp, Udp};
        for (bytes, has_events, expected) in [
            (None, false, TcpAndUdp),
            (None, true, Udp),
            (Some(Bytes::On), true, TcpAndUdp),
            (Some(Bytes::Off), false, Udp),
        ] {
            assert_eq!(mortals(bytes, has_events), expected, "{bytes:?} {has_events}");
        }
    }
}
