//! What an answer covers and what it does not, in a line or two for people.

use fleetsock_proto::answer::{AnswerMeta, Gap, OtherEnds, SumsKept};

use crate::{
    Invocation,
    clock::{self, Clock},
    failure::Exit,
    render::Format,
    sanitise::sanitise,
};

/// What is said where the processes of peers are missing.
const NOT_LOOKED_FOR: &str = "the other ends of these sessions were not looked for (--both-ends)";

/// Names of stale hosts, and gaps, that are told; all are counted.
const TOLD: usize = 3;

/// Says what an answer covers, and how the command exits for it.
pub fn tell(meta: &AnswerMeta, invocation: &Invocation, limited: Option<u32>) -> Exit {
    for line in lines(meta, &invocation.clock) {
        invocation.console.note(&line);
    }
    // A table for people does not show them.
    if invocation.options.output != Format::Table && meta.other_ends == Some(OtherEnds::NotLookedFor) {
        invocation.console.note(NOT_LOOKED_FOR);
    }
    if invocation.options.fail_on_stale && is_partial(meta, limited) { Exit::Partial } else { Exit::Done }
}

/// The lines that stand beneath an answer.
pub fn lines(meta: &AnswerMeta, clock: &Clock) -> Vec<String> {
    let mut lines = vec![as_of(meta, clock)];
    if meta.gaps_total > 0 {
        lines.push(gaps(meta, clock));
    }
    if let Some(sums) = &meta.sums {
        lines.push(sums_kept(sums, clock));
    }
    if meta.truncated {
        lines.push("there is more: rows were left out at the limit (--limit N, or narrow the question)".to_owned());
    }
    lines
}

/// Whether something is missing that was asked for. A limit that the asker set himself is none of that.
pub fn is_partial(meta: &AnswerMeta, limited: Option<u32>) -> bool {
    meta.hosts_stale_total > 0 || meta.gaps_total > 0 || (meta.truncated && limited.is_none())
}

fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `a, b, c, ...`
fn some<'a>(names: impl Iterator<Item = &'a str>, total: u64) -> String {
    let mut told: Vec<_> = names.take(TOLD).map(sanitise).collect();
    if total > u64::try_from(told.len()).unwrap_or(u64::MAX) {
        told.push("...".into());
    }
    told.join(", ")
}

fn as_of(meta: &AnswerMeta, clock: &Clock) -> String {
    let mut line = format!("as of {}, {}", clock.short(meta.as_of), count(meta.hosts_total.into(), "host"));
    if meta.hosts_stale_total > 0 {
        let names = some(meta.hosts_stale.iter().map(String::as_str), meta.hosts_stale_total.into());
        let age = meta.stale_after.as_secs();
        line.push_str(&format!(", {} stale (> {age} s): {names}", meta.hosts_stale_total));
    }
    line
}

fn gaps(meta: &AnswerMeta, clock: &Clock) -> String {
    let told: Vec<String> = meta.gaps.iter().take(TOLD).map(|gap| gap_text(gap, clock)).collect();
    let more = if meta.gaps_total > u64::try_from(told.len()).unwrap_or(u64::MAX) { "; ..." } else { "" };
    format!("not observed ({}): {}{more}", count(meta.gaps_total, "gap"), told.join("; "))
}

fn sums_kept(sums: &SumsKept, clock: &Clock) -> String {
    let [since, until] = [sums.since, sums.until].map(|at| clock.short(at));
    if !sums.lacks.is_empty() {
        return format!("before {until} only sums are kept, which do not tell of {}", sums.lacks.join(", "));
    }
    if !sums.counted {
        return format!("before {until} only sums are kept, back to {since}: fleetctl summary");
    }
    let unclear = match sums.unclear {
        0 => String::new(),
        count => format!("; {count} sessions of which they do not tell whether they are meant"),
    };
    format!(
        "before {until}, back to {since}, from sums: of whole hours and first processes, without listeners{unclear}"
    )
}

fn gap_text(gap: &Gap, clock: &Clock) -> String {
    let host = sanitise(&gap.host);
    let since = clock.short(gap.since);
    match gap.until {
        Some(until) => {
            let length = clock::lapse(until.since(gap.since));
            format!("{host} {since} to {} ({length}, {})", clock.short(until), gap.reason)
        }
        None => format!("{host} since {since} ({})", gap.reason),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleetsock_proto::{answer::GapReason, host::HostId, time::Timestamp};
    use jiff::tz::TimeZone;

    use super::*;

    fn clock() -> Clock {
        Clock::at(Timestamp::from_micros(1_795_514_591_000_000), TimeZone::UTC)
    }

    fn meta() -> AnswerMeta {
        AnswerMeta {
            as_of: clock().now(),
            hosts_total: 412,
            stale_after: Duration::from_secs(90),
            ..AnswerMeta::default()
        }
    }

    #[test]
    fn an_answer_says_its_age_and_who_is_stale() {
        let fresh = meta();
        assert_eq!(lines(&fresh, &clock()), ["as of 10:03:11, 412 hosts"]);
        let names = ["db7", "web3", "web4", "web5"].map(str::to_owned).to_vec();
        let stale = AnswerMeta { hosts_stale_total: 4, hosts_stale: names, ..meta() };
        assert_eq!(lines(&stale, &clock()), ["as of 10:03:11, 412 hosts, 4 stale (> 90 s): db7, web3, web4, ..."]);
        let one =
            AnswerMeta { hosts_total: 1, hosts_stale_total: 1, hosts_stale: vec!["a\u{1b}[m".to_owned()], ..meta() };
        assert_eq!(lines(&one, &clock()), ["as of 10:03:11, 1 host, 1 stale (> 90 s): a\\u{1b}[m"]);
    }

    #[test]
    fn an_answer_says_what_was_not_observed_and_what_was_left_out() {
        let now = clock().now();
        let gap = |minutes: u64, until| Gap {
            host: "web3".to_owned(),
            host_id: HostId::from_array([7; 16]),
            since: now.minus(Duration::from_secs(minutes * 60)),
            until,
            reason: GapReason::AgentDown,
            batches_lost: 0,
        };
        let gaps = vec![gap(5, Some(now.minus(Duration::from_secs(60)))), gap(2, None)];
        let meta = AnswerMeta { gaps, gaps_total: 9, truncated: true, ..meta() };
        assert_eq!(
            lines(&meta, &clock()),
            [
                "as of 10:03:11, 412 hosts",
                "not observed (9 gaps): web3 09:58:11 to 10:02:11 (4m, agent-down); \
             web3 since 10:01:11 (agent-down); ...",
                "there is more: rows were left out at the limit (--limit N, or narrow the question)",
            ]
        );
    }

    #[test]
    fn an_answer_says_where_only_sums_are_kept_and_what_they_lack() {
        let ago = |days: u64| clock().now().minus(Duration::from_secs(days * 86_400));
        let kept = SumsKept { since: ago(300), until: ago(30), ..SumsKept::default() };
        let counted = SumsKept { counted: true, ..kept.clone() };
        let lacks = ["users", "states"].map(str::to_owned).to_vec();
        let (since, until) = (clock().short(ago(300)), clock().short(ago(30)));
        for (sums, expected) in [
            (kept.clone(), format!("before {until} only sums are kept, back to {since}: fleetctl summary")),
            (
                SumsKept { lacks, ..kept },
                format!("before {until} only sums are kept, which do not tell of users, states"),
            ),
            (
                counted.clone(),
                format!(
                    "before {until}, back to {since}, from sums: of whole hours and first processes, without listeners"
                ),
            ),
            (
                SumsKept { unclear: 7, ..counted },
                format!(
                    "before {until}, back to {since}, from sums: of whole hours and first processes, without listeners; 7 \
                     sessions of which they do not tell whether they are meant"
                ),
            ),
        ] {
            let meta = AnswerMeta { sums: Some(sums), ..meta() };
            assert_eq!(lines(&meta, &clock())[1], expected);
        }
    }

    #[test]
    fn an_answer_is_partial_when_something_is_missing_that_was_asked_for() {
        assert!(!is_partial(&meta(), None));
        assert!(is_partial(&AnswerMeta { hosts_stale_total: 1, ..meta() }, None));
        assert!(is_partial(&AnswerMeta { gaps_total: 1, ..meta() }, None));
        let truncated = AnswerMeta { truncated: true, ..meta() };
        assert!(is_partial(&truncated, None));
        assert!(!is_partial(&truncated, Some(10)));
    }
}
