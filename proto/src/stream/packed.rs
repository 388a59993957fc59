//! Batches that travel as they lie in a spool: what was encoded once is not decoded and encoded again.

use prost::{Message as _, encoding::uint64};

use super::{AgentMessage, BatchNumber};
use crate::{InvalidMessage, batch::Batch, time::Timestamp, wire};

/// Numbers of the fields `Batch.epoch` and `Batch.seq`.
const EPOCH: u32 = 1;
const SEQ: u32 = 2;

/// An encoded batch under the number that it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    /// Its number.
    pub number: BatchNumber,
    /// The end of the walk before it: what happened since is in it, or in one that follows.
    pub since: Timestamp,
    body: Vec<u8>,
}

impl PackedBatch {
    /// A `wire::Batch` that was encoded with any number, under this one: of a field that comes twice the last value counts
    /// (Protocol Buffers, encoding, "Last One Wins").
    pub fn new(number: BatchNumber, since: Timestamp, mut body: Vec<u8>) -> PackedBatch {
        uint64::encode(EPOCH, &number.epoch, &mut body);
        uint64::encode(SEQ, &number.seq, &mut body);
        PackedBatch { number, since, body }
    }

    /// What is in it.
    pub fn unpack(&self) -> Result<Batch, InvalidMessage> {
        wire::Batch::decode(self.body.as_slice())
            .map_err(|error| InvalidMessage::new("Batch", error.to_string()))?
            .try_into()
    }
}

/// What an agent says, its batches encoded already.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// Observations.
    Batch(PackedBatch),
    /// Anything else.
    Other(Box<AgentMessage>),
}

impl From<AgentMessage> for Outgoing {
    fn from(message: AgentMessage) -> Outgoing {
        Outgoing::Other(Box::new(message))
    }
}

/// `wire::SessionRequest` on the wire, with bytes in place of the batch: both are encoded alike.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PackedRequest {
    #[prost(oneof = "PackedMessage", tags = "1, 2, 3, 4")]
    message: Option<PackedMessage>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PackedMessage {
    #[prost(message, tag = "1")]
    Hello(wire::Hello),
    #[prost(bytes = "vec", tag = "2")]
    Batch(Vec<u8>),
    #[prost(message, tag = "3")]
    Gap(wire::GapReport),
    #[prost(message, tag = "4")]
    Heartbeat(wire::Heartbeat),
}

impl From<Outgoing> for PackedRequest {
    fn from(outgoing: Outgoing) -> PackedRequest {
        use wire::session_request::Message;
        let message = match outgoing {
            Outgoing::Batch(batch) => Some(PackedMessage::Batch(batch.body)),
            Outgoing::Other(message) => wire::SessionRequest::from(*message).message.map(|message| match message {
                Message::Hello(hello) => PackedMessage::Hello(hello),
                Message::Batch(batch) => PackedMessage::Batch(batch.encode_to_vec()),
                Message::Gap(gap) => PackedMessage::Gap(gap),
                Message::Heartbeat(heartbeat) => PackedMessage::Heartbeat(heartbeat),
            }),
        };
        PackedRequest { message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::BatchKind,
        host::BootId,
        stream::{AgentCost, Heartbeat},
    };

    fn batch(epoch: u64, seq: u64) -> Batch {
        let at = Timestamp::from_micros(1_700_000_000_000_000);
        let boot_id = BootId::from_array([7; 16]);
        let kind = BatchKind::Changes;
        Batch {
            epoch,
            seq,
            kind,
            boot_id,
            observed_since: at,
            observed_until: at,
            changes: Vec::new(),
            digest: None,
            namespaces: Vec::new(),
        }
    }

    fn arrives(outgoing: Outgoing) -> AgentMessage {
        let bytes = PackedRequest::from(outgoing).encode_to_vec();
        wire::SessionRequest::decode(bytes.as_slice()).unwrap().try_into().unwrap()
    }

    #[test]
    fn a_packed_batch_arrives_under_its_own_number_whatever_it_was_encoded_with() {
        for before in [batch(0, 0), batch(9, u64::MAX)] {
            let body = wire::Batch::from(&before).encode_to_vec();
            let packed = PackedBatch::new(BatchNumber { epoch: 3, seq: 300 }, before.observed_since, body);
            assert_eq!(packed.unpack(), Ok(batch(3, 300)));
            assert_eq!(arrives(Outgoing::Batch(packed)), AgentMessage::Batch(batch(3, 300)));
        }
    }

    #[test]
    fn everything_else_arrives_as_it_always_did() {
        let at = Timestamp::from_micros(1);
        let heartbeat = Heartbeat { sent_at: at, observed_until: at, cost: AgentCost::default(), tcp_counts: None };
        for message in [AgentMessage::Heartbeat(heartbeat), AgentMessage::Batch(batch(1, 2))] {
            assert_eq!(arrives(message.clone().into()), message);
        }
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        let packed = PackedBatch::new(BatchNumber { epoch: 1, seq: 1 }, Timestamp::default(), vec![0xff; 3]);
        assert!(packed.unpack().is_err());
    }
}
