//! A netlink socket that asks the kernel for dumps, one at a time, and never waits for ever.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::message::{Message, messages, number};
use crate::kernel::bytes::u32_at;

/// How long the kernel may take for one datagram; it takes far less than a millisecond.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Twice what the kernel fills at most for a dump (32 KiB, netlink_dump in net/netlink/af_netlink.c).
const DATAGRAM_LIMIT: usize = 64 * 1024;
/// Most datagrams that are thrown away to get rid of a dump that was not read to its end.
const DRAIN_LIMIT: usize = 100_000;

/// Flags of a request for a dump: NLM_F_REQUEST and NLM_F_DUMP.
pub(super) const DUMP: u16 = 0x1 | 0x300;
/// The table changed while it was being dumped.
const DUMP_INTERRUPTED: u16 = 0x10;

const NOTHING: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;

/// Why the kernel did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Errno),
    /// It kept silent.
    #[error("the kernel did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// What is left of an earlier dump does not end.
    #[error("an earlier dump does not end")]
    Endless,
}

/// How a dump went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dump {
    /// It may lack entries or have them twice: the table changed meanwhile, or something was lost on the way.
    pub(super) interrupted: bool,
    /// Datagrams that could not be read to their end.
    pub(super) malformed: u64,
}

/// A netlink socket. It stays in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    seq: u32,
    /// A dump was begun and its end was not seen.
    unfinished: bool,
}

impl Netlink {
    /// A socket of this netlink protocol, or of NETLINK_ROUTE, in the network namespace of the calling thread.
    pub(super) fn open(protocol: Option<Protocol>) -> Result<Netlink, Errno> {
        Netlink::open_with(protocol, Vec::new())
    }

    /// The same with the memory of an earlier one, see [`Netlink::close`].
    pub(super) fn open_with(protocol: Option<Protocol>, mut buffer: Vec<u8>) -> Result<Netlink, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // Connected to the kernel (port 0), so that no other process can put a datagram into the queue.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        buffer.resize(DATAGRAM_LIMIT, 0);
        Ok(Netlink { socket, buffer, seq: 0, unfinished: false })
    }

    /// Closes the socket, which holds its network namespace, and gives the memory back.
    pub(super) fn close(self) -> Vec<u8> {
        self.buffer
    }

    /// Sends a request for a dump and hands over each message of the answer.
    pub(super) fn dump(&mut self, request: &mut [u8], mut each: impl FnMut(Message<'_>)) -> Result<Dump, NetlinkError> {
        self.drain()?;
        self.seq = self.seq.wrapping_add(1);
        number(request, self.seq);
        retry_on_intr(|| send(&self.socket, request, SendFlags::empty()))?;
        self.unfinished = true;
        let mut dump = Dump::default();
        loop {
            match self.receive()? {
                Received::Datagram(length) => {
                    if let Some(end) = read(&self.buffer[..length], self.seq, &mut dump, &mut each) {
                        self.unfinished = false;
                        return end.map(|()| dump).map_err(NetlinkError::from);
                    }
                }
                Received::Lost => dump.interrupted = true,
            }
        }
    }

    /// Throws away what is left of a dump that was not read to its end: until then the kernel begins no other.
    fn drain(&mut self) -> Result<(), NetlinkError> {
        let mut datagrams = 0;
        while self.unfinished {
            if datagrams == DRAIN_LIMIT {
                return Err(NetlinkError::Endless);
            }
            datagrams += 1;
            if let Received::Datagram(length) = self.receive()?
                && read(&self.buffer[..length], self.seq, &mut Dump::default(), &mut |_| {}).is_some()
            {
                self.unfinished = false;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Received, NetlinkError> {
        let received = retry_on_intr(|| {
            recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC).map(|(_, length)| length)
        });
        match received {
            Ok(length) if length <= self.buffer.len() => Ok(Received::Datagram(length)),
            // Longer than the buffer: its rest is gone. Or the queue was full.
            Ok(_) | Err(Errno::NOBUFS) => Ok(Received::Lost),
            Err(Errno::AGAIN) => Err(NetlinkError::Silent),
            Err(errno) => Err(errno.into()),
        }
    }
}

enum Received {
    Datagram(usize),
    Lost,
}

/// Hands over the messages of a datagram that answer request `seq`; the end of the dump, if it is in there.
fn read(datagram: &[u8], seq: u32, dump: &mut Dump, each: &mut impl FnMut(Message<'_>)) -> Option<Result<(), Errno>> {
    for message in messages(datagram) {
        let Ok(message) = message else {
            dump.malformed += 1;
            return None;
        };
        if message.seq != seq {
            continue;
        }
        dump.interrupted |= message.flags & DUMP_INTERRUPTED != 0;
        match message.kind {
            NOTHING => {}
            OVERRUN => dump.interrupted = true,
            ERROR => return Some(outcome(message.body).and(Err(Errno::PROTO))),
            DONE => return Some(outcome(message.body)),
            _ => each(message),
        }
    }
    None
}

/// The negative errno with which DONE and ERROR begin; a dump is not acknowledged, so an ERROR of 0 is a fault too.
fn outcome(body: &[u8]) -> Result<(), Errno> {
    match u32_at(body, 0).map_or(0, |bytes| bytes.cast_signed()) {
        0.. => Ok(()),
        errno @ -4095..0 => Err(Errno::from_raw_os_error(-errno)),
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::net::netlink::SOCK_DIAG;

    use super::*;
    use crate::capture::message::request;

    fn answer(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = request(kind, flags, body);
        number(&mut bytes, seq);
        bytes
    }

    fn end_of(datagram: &[u8]) -> (Option<Result<(), Errno>>, Dump, usize) {
        let (mut dump, mut messages) = (Dump::default(), 0);
        let end = read(datagram, 7, &mut dump, &mut |_| messages += 1);
        (end, dump, messages)
    }

    #[test]
    fn a_dump_ends_with_done_or_with_the_kernels_refusal() {
        let enoent = (-2_i32).to_ne_bytes();
        assert_eq!(end_of(&answer(DONE, 0, 7, &[0; 4])).0, Some(Ok(())));
        assert_eq!(end_of(&answer(DONE, 0, 7, &[])).0, Some(Ok(())));
        assert_eq!(end_of(&answer(DONE, 0, 7, &enoent)).0, Some(Err(Errno::NOENT)));
        assert_eq!(end_of(&answer(ERROR, 0, 7, &enoent)).0, Some(Err(Errno::NOENT)));
        assert_eq!(end_of(&answer(ERROR, 0, 7, &[0; 4])).0, Some(Err(Errno::PROTO)));
        assert_eq!(end_of(&answer(20, 2, 7, &[])), (None, Dump::default(), 1));
    }

    #[test]
    fn answers_to_another_request_are_passed_over() {
        assert_eq!(end_of(&answer(DONE, 0, 6, &[0; 4])), (None, Dump::default(), 0));
        assert_eq!(end_of(&answer(20, DUMP_INTERRUPTED, 6, &[])), (None, Dump::default(), 0));
    }

    #[test]
    fn an_interrupted_dump_is_known_even_when_only_its_end_says_so() {
        assert!(end_of(&answer(DONE, DUMP_INTERRUPTED, 7, &[0; 4])).1.interrupted);
        assert!(end_of(&answer(OVERRUN, 0, 7, &[])).1.interrupted);
    }

    #[test]
    fn a_refused_request_leaves_the_socket_usable() {
        let mut netlink = Netlink::open(Some(SOCK_DIAG)).unwrap();
        // An address family that has no sockets to diagnose.
        let mut wrong = request(20, DUMP, &[45; 56]);
        for _ in 0..3 {
            assert!(matches!(netlink.dump(&mut wrong, |_| {}), Err(NetlinkError::Refused(_))));
        }
    }

    #[test]
    fn what_is_left_of_an_earlier_dump_is_thrown_away_first() {
        const RTM_GETADDR: u16 = 22;
        let mut addresses = request(RTM_GETADDR, DUMP, &[0; 8]);
        let mut count = |netlink: &mut Netlink| {
            let mut answers = 0;
            netlink.dump(&mut addresses, |_| answers += 1).unwrap();
            answers
        };
        let expected = count(&mut Netlink::open(None).unwrap());
        let mut netlink = Netlink::open(None).unwrap();
        netlink.seq = 41;
        let mut unread = request(RTM_GETADDR, DUMP, &[0; 8]);
        number(&mut unread, netlink.seq);
        send(&netlink.socket, &unread, SendFlags::empty()).unwrap();
        netlink.unfinished = true;
        assert_eq!((count(&mut netlink), count(&mut netlink)), (expected, expected));
    }

    proptest! {
        #[test]
        fn no_datagram_makes_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..600), seq in any::<u32>()) {
            let mut handed_over = 0;
            read(&bytes, seq, &mut Dump::default(), &mut |_| handed_over += 1);
            prop_assert!(handed_over <= bytes.len() / 16);
        }
    }
}
