//! The messages and attributes of a netlink datagram (netlink(7), rtnetlink(7)): bytes in, slices out.
//!
//! Netlink numbers are in the byte order of the machine; what lies in a datagram is never trusted to be whole.

use crate::kernel::bytes::{u16_at, u32_at};

/// Bytes of a message's header (struct nlmsghdr).
pub(crate) const HEADER: usize = 16;
/// Bytes of an attribute's header (struct nlattr).
const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that are its type (NLA_TYPE_MASK).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// nlmsg_type.
    pub(crate) kind: u16,
    /// nlmsg_flags.
    pub(crate) flags: u16,
    /// nlmsg_seq: the request that it answers.
    pub(crate) seq: u32,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

/// Bytes that are no whole message; nothing after them can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The messages of a datagram, in order.
pub(crate) fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// See [`messages`].
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = message(self.rest);
        self.rest = message.map_or(&[], |(_, rest)| rest);
        Some(message.map(|(message, _)| message).ok_or(Malformed))
    }
}

fn message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    let message = Message { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, seq: u32_at(bytes, 8)?, body };
    Some((message, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// The attributes that follow the fixed part of a message, by type and payload; ends where they cease to be whole.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let payload = rest.get(ATTRIBUTE_HEADER..length)?;
        let kind = u16_at(rest, 2)? & ATTRIBUTE_TYPE;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// A request: header and body. Its sequence number is put in when it is sent.
pub(crate) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // nlmsg_seq, and nlmsg_pid 0: to the kernel.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Writes a request's sequence number.
pub(crate) fn number(request: &mut [u8], seq: u32) {
    if let Some(field) = request.get_mut(8..12) {
        field.copy_from_slice(&seq.to_ne_bytes());
    }
}

/// Messages and attributes begin at multiples of 4 (NLMSG_ALIGNTO, NLA_ALIGNTO).
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_that_claims_more_than_there_is_ends_the_datagram() {
        let mut datagram = request(20, 2, &[1, 2, 3]);
        datagram.push(0);
        datagram.extend(request(20, 2, &[4; 4]));
        let cut = &datagram[..datagram.len() - 1];
        let read: Vec<_> = messages(cut).map(|message| message.map(|message| message.body)).collect();
        assert_eq!(read, [Ok(&[1, 2, 3][..]), Err(Malformed)]);
    }

    #[test]
    fn a_message_shorter_than_its_header_does_not_loop() {
        for length in 0..16_u32 {
            let mut datagram = request(20, 2, &[]);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&datagram).collect::<Vec<_>>(), [Err(Malformed)]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER + 1);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER + 1);
        }

        #[test]
        fn what_was_written_is_read(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..9)) {
            let mut datagram = Vec::new();
            for body in &bodies {
                datagram.resize(aligned(datagram.len()), 0);
                let mut message = request(7, 3, body);
                number(&mut message, 99);
                datagram.extend(message);
            }
            let read: Vec<_> = messages(&datagram).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), bodies.len());
            for (message, body) in read.iter().zip(&bodies) {
                prop_assert_eq!(*message, Message { kind: 7, flags: 3, seq: 99, body });
            }
        }
    }
}
