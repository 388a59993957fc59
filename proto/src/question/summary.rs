//! What `summary` asks.

use super::{SessionQuestion, each, limit, numbers};
use crate::{InvalidMessage, summary::Dimension, wire};

/// What `summary` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SummaryQuestion {
    /// Which sockets, and when. Listeners are meant as sessions are; with directions, states or peers only sessions.
    pub sockets: SessionQuestion,
    /// What to group by, at least one.
    pub by: Vec<Dimension>,
    /// At most so many groups; absent means the server's limit.
    pub limit: Option<u32>,
}

impl SummaryQuestion {
    /// Whether listeners are counted.
    pub fn counts_listeners(&self) -> bool {
        let SessionQuestion { directions, states, peers, .. } = &self.sockets;
        directions.is_empty() && states.is_empty() && peers.is_empty() && !self.by.contains(&Dimension::Peer)
    }
}

impl From<SummaryQuestion> for wire::SummarizeRequest {
    fn from(question: SummaryQuestion) -> wire::SummarizeRequest {
        wire::SummarizeRequest {
            sockets: Some(question.sockets.into()),
            by: numbers(question.by, Dimension::number),
            limit: question.limit.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::SummarizeRequest> for SummaryQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::SummarizeRequest) -> Result<SummaryQuestion, InvalidMessage> {
        let by = each("by", request.by, |n| Dimension::from_wire("by", n))?;
        if by.is_empty() {
            return Err(InvalidMessage::missing("by"));
        }
        let sockets = request.sockets.unwrap_or_default().try_into()?;
        Ok(SummaryQuestion { sockets, by, limit: limit(request.limit) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::SessionTime;

    #[test]
    fn a_question_survives_the_wire_and_groups_by_something() {
        let sockets =
            SessionQuestion { time: SessionTime::At(crate::time::Timestamp::from_micros(5)), ..Default::default() };
        let question = SummaryQuestion { sockets, by: vec![Dimension::Host, Dimension::Hour], limit: Some(9) };
        let wire = wire::SummarizeRequest::from(question.clone());
        assert_eq!(SummaryQuestion::try_from(wire.clone()), Ok(question));
        assert!(SummaryQuestion::try_from(wire::SummarizeRequest { by: Vec::new(), ..wire }).is_err());
    }
}
