//! How complete and how fresh an answer is. Every answer ends with one of these.

use std::time::Duration;

use crate::{InvalidMessage, host::HostId, time, time::Timestamp, wire, word::words};

/// Most host names and most gaps that an answer lists; it counts them all.
pub const META_NAMES_LIMIT: usize = 100;

words! {
    /// Why a range was not observed.
    pub enum GapReason is "gap reason", or InvalidGapReason {
        /// The agent did not run.
        AgentDown = 1 "agent-down",
        /// The agent ran out of room for what it could not deliver.
        SpoolFull = 2 "spool-full",
        /// The kernel dropped records, or the agent was not fast enough.
        KernelLoss = 3 "kernel-loss",
        /// Batches with earlier numbers never arrived.
        Delivery = 4 "delivery",
        /// Before the host's first report. Only in answers.
        NotYetObserved = 5 "not-yet-observed",
        /// Older than what the server keeps. Only in answers.
        Expired = 6 "expired",
        /// The host is silent, or has not told yet of the time since. Only in answers: what it still holds may arrive.
        NotReported = 7 "not-reported",
        /// The host was revoked: nothing of it is stored since. Only in answers.
        Revoked = 8 "revoked",
        /// The host slept.
        Asleep = 9 "asleep",
        /// The host's clock was set: moments around it are not what they seem.
        ClockLeap = 10 "clock-leap",
        /// A digest showed that what the server had as open was not what the agent had.
        TableDiffered = 11 "table-differed",
    }
}

words! {
    /// Whether the other ends of sessions were looked for in the fleet.
    pub enum OtherEnds is "word for other ends", or InvalidOtherEnds {
        /// Of every session.
        LookedFor = 1 "looked-for",
        /// Of none: it was not wanted, there are too many sessions, or it would have taken too long.
        NotLookedFor = 2 "not-looked-for",
    }
}

/// How well a range was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cover {
    /// Nothing is known to be missing.
    Observed,
    /// Somebody looked, and something is missing.
    Lossy,
    /// Nobody looked, or what was seen is not here.
    NotObserved,
    /// What was observed is not kept any more.
    Expired,
}

impl Cover {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cover::Observed => "observed",
            Cover::Lossy => "with-losses",
            Cover::NotObserved => "not-observed",
            Cover::Expired => "expired",
        }
    }
}

impl GapReason {
    /// Whether gaps with this reason are stored: the others are only in answers.
    pub const fn is_stored(self) -> bool {
        match self {
            GapReason::NotYetObserved | GapReason::Expired | GapReason::NotReported | GapReason::Revoked => false,
            GapReason::AgentDown
            | GapReason::SpoolFull
            | GapReason::KernelLoss
            | GapReason::Delivery
            | GapReason::Asleep
            | GapReason::ClockLeap
            | GapReason::TableDiffered => true,
        }
    }

    /// How well a range is observed that is a gap for this reason.
    pub const fn cover(self) -> Cover {
        match self {
            GapReason::KernelLoss | GapReason::ClockLeap | GapReason::TableDiffered => Cover::Lossy,
            GapReason::Expired => Cover::Expired,
            GapReason::AgentDown
            | GapReason::SpoolFull
            | GapReason::Delivery
            | GapReason::NotYetObserved
            | GapReason::NotReported
            | GapReason::Revoked
            | GapReason::Asleep => Cover::NotObserved,
        }
    }
}

/// A range that was not observed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Name of the host.
    pub host: String,
    /// Id of the host.
    pub host_id: HostId,
    /// Where it begins.
    pub since: Timestamp,
    /// Where it ends; absent while it is open.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: GapReason,
    /// Batches known to be missing; 0 when their number is not known.
    pub batches_lost: u64,
}

/// What an answer covers and what it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerMeta {
    /// The moment that the answer describes.
    pub as_of: Timestamp,
    /// Beginning of the window.
    pub since: Option<Timestamp>,
    /// End of the window.
    pub until: Option<Timestamp>,
    /// Hosts that the question was about.
    pub hosts_total: u32,
    /// Names of those that are stale, at most [`META_NAMES_LIMIT`].
    pub hosts_stale: Vec<String>,
    /// How many are stale.
    pub hosts_stale_total: u32,
    /// The age at which a host counts as stale.
    pub stale_after: Duration,
    /// Ranges within the window that were not observed, at most [`META_NAMES_LIMIT`].
    pub gaps: Vec<Gap>,
    /// How many such ranges there are.
    pub gaps_total: u64,
    /// There were more rows than the limit.
    pub truncated: bool,
    /// Of sessions, whether their other ends were looked for.
    pub other_ends: Option<OtherEnds>,
    /// Of what time of the window only sums are kept.
    pub sums: Option<SumsKept>,
}

/// Of some time only sums of sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SumsKept {
    /// Since then.
    pub since: Timestamp,
    /// Until then.
    pub until: Timestamp,
    /// Whether they are in the answer, by whole hours.
    pub counted: bool,
    /// Where they are not in an answer of sums: what of the question they do not tell.
    pub lacks: Vec<String>,
    /// Sessions of which they do not tell whether they are meant; these are not in the answer.
    pub unclear: u64,
}

impl From<SumsKept> for wire::SumsKept {
    fn from(sums: SumsKept) -> wire::SumsKept {
        let SumsKept { since, until, counted, lacks, unclear } = sums;
        wire::SumsKept { since: Some(since.into()), until: Some(until.into()), counted, lacks, unclear }
    }
}

impl TryFrom<wire::SumsKept> for SumsKept {
    type Error = InvalidMessage;

    fn try_from(sums: wire::SumsKept) -> Result<SumsKept, InvalidMessage> {
        Ok(SumsKept {
            since: time::required("SumsKept.since", sums.since)?,
            until: time::required("SumsKept.until", sums.until)?,
            counted: sums.counted,
            lacks: sums.lacks,
            unclear: sums.unclear,
        })
    }
}

impl From<Gap> for wire::Gap {
    fn from(gap: Gap) -> wire::Gap {
        wire::Gap {
            host: gap.host,
            host_id: gap.host_id.as_bytes().to_vec(),
            since: Some(gap.since.into()),
            until: gap.until.map(Into::into),
            reason: gap.reason.number(),
            batches_lost: gap.batches_lost,
        }
    }
}

impl TryFrom<wire::Gap> for Gap {
    type Error = InvalidMessage;

    fn try_from(gap: wire::Gap) -> Result<Gap, InvalidMessage> {
        Ok(Gap {
            host: gap.host,
            host_id: HostId::from_wire("Gap.host_id", &gap.host_id)?,
            since: time::required("Gap.since", gap.since)?,
            until: time::optional("Gap.until", gap.until)?,
            reason: GapReason::from_wire("Gap.reason", gap.reason)?,
            batches_lost: gap.batches_lost,
        })
    }
}

impl From<AnswerMeta> for wire::AnswerMeta {
    fn from(meta: AnswerMeta) -> wire::AnswerMeta {
        wire::AnswerMeta {
            as_of: Some(meta.as_of.into()),
            since: meta.since.map(Into::into),
            until: meta.until.map(Into::into),
            hosts_total: meta.hosts_total,
            hosts_stale: meta.hosts_stale,
            hosts_stale_total: meta.hosts_stale_total,
            stale_after_ms: u64::try_from(meta.stale_after.as_millis()).unwrap_or(u64::MAX),
            gaps: meta.gaps.into_iter().map(Into::into).collect(),
            gaps_total: meta.gaps_total,
            truncated: meta.truncated,
            other_ends: meta.other_ends.map_or(0, OtherEnds::number),
            sums: meta.sums.map(Into::into),
        }
    }
}

impl TryFrom<wire::AnswerMeta> for AnswerMeta {
    type Error = InvalidMessage;

    fn try_from(meta: wire::AnswerMeta) -> Result<AnswerMeta, InvalidMessage> {
        Ok(AnswerMeta {
            as_of: time::required("AnswerMeta.as_of", meta.as_of)?,
            since: time::optional("AnswerMeta.since", meta.since)?,
            until: time::optional("AnswerMeta.until", meta.until)?,
            hosts_total: meta.hosts_total,
            hosts_stale: meta.hosts_stale,
            hosts_stale_total: meta.hosts_stale_total,
            stale_after: Duration::from_millis(meta.stale_after_ms),
            gaps: meta.gaps.into_iter().map(Gap::try_from).collect::<Result<_, _>>()?,
            gaps_total: meta.gaps_total,
            truncated: meta.truncated,
            other_ends: match meta.other_ends {
                0 => None,
                word => Some(OtherEnds::from_wire("AnswerMeta.other_ends", word)?),
            },
            sums: meta.sums.map(SumsKept::try_from).transpose()?,
        })
    }
}
