//! Which hosts are speaking right now, so that a stream can be ended from elsewhere within an instant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fleetsock_proto::host::HostId;
use tokio::sync::watch;

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

/// The streams of all hosts, at most one each.
#[derive(Debug, Default)]
pub struct Live {
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    stopping: bool,
    begun: u64,
    by_host: HashMap<HostId, (u64, watch::Sender<Option<End>>)>,
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

    /// A host begins a stream; the one before, if it still seems to be there, ends.
    pub fn begin(self: &Arc<Live>, host: HostId) -> LiveStream {
        let mut streams = self.streams();
        streams.begun += 1;
        let number = streams.begun;
        let (sender, end) = watch::channel(streams.stopping.then_some(End::Stopping));
        if let Some((_, before)) = streams.by_host.insert(host, (number, sender)) {
            before.send_replace(Some(End::Replaced));
        }
        LiveStream { live: Arc::clone(self), host, number, end }
    }

    /// Ends the stream of a host, if it has one.
    pub fn end(&self, host: HostId, why: End) {
        if let Some((_, stream)) = self.streams().by_host.get(&host) {
            stream.send_replace(Some(why));
        }
    }

    /// Ends every stream, also those that will begin.
    pub fn stop(&self) {
        let mut streams = self.streams();
        streams.stopping = true;
        for (_, stream) in streams.by_host.values() {
            stream.send_replace(Some(End::Stopping));
        }
    }

    /// How many hosts are speaking.
    pub fn count(&self) -> usize {
        self.streams().by_host.len()
    }
}

impl LiveStream {
    /// Returns when the stream shall end.
    pub async fn ended(&mut self) -> End {
        match self.end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Stopping),
            // The sender went with the map, so the server is gone.
            Err(_) => End::Stopping,
        }
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let mut streams = self.live.streams();
        if streams.by_host.get(&self.host).is_some_and(|(number, _)| *number == self.number) {
            streams.by_host.remove(&self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_stream_of_a_host_ends_the_first_and_outlives_it() {
        let live = Arc::new(Live::default());
        let host = HostId::random();
        let mut first = live.begin(host);
        let mut second = live.begin(host);
        assert_eq!(first.ended().await, End::Replaced);
        drop(first);
        assert_eq!(live.count(), 1);
        live.end(host, End::Revoked);
        assert_eq!(second.ended().await, End::Revoked);
        drop(second);
        assert_eq!(live.count(), 0);
    }

    #[tokio::test]
    async fn streams_that_begin_while_the_server_stops_end_at_once() {
        let live = Arc::new(Live::default());
        live.stop();
        assert_eq!(live.begin(HostId::random()).ended().await, End::Stopping);
    }
}
