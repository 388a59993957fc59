//! A host's time, cut into periods that were observed equally well, and drawn as a bar. Pure.

use fleetsock_proto::{
    answer::{Cover, Gap},
    host::HostId,
    time::Timestamp,
};

use crate::record::period::Period;

/// The host whose time it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) name: &'a str,
    pub(super) id: HostId,
}

/// A window of time; not empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
}

/// The periods of a window, in order and without holes. Where gaps lie over each other, the worst counts.
pub(super) fn periods(whose: Whose<'_>, gaps: &[Gap], span: Span) -> Vec<Period> {
    let clipped =
        |gap: &Gap| Span { since: gap.since.max(span.since), until: gap.until.unwrap_or(span.until).min(span.until) };
    let gaps: Vec<(Span, &Gap)> = gaps
        .iter()
        .filter(|gap| gap.host_id == whose.id)
        .map(|gap| (clipped(gap), gap))
        .filter(|(clipped, _)| clipped.since < clipped.until)
        .collect();
    let mut edges: Vec<Timestamp> = gaps.iter().flat_map(|(gap, _)| [gap.since, gap.until]).collect();
    edges.extend([span.since, span.until]);
    edges.sort_unstable();
    edges.dedup();
    let mut periods: Vec<Period> = Vec::new();
    for edge in edges.windows(2) {
        let &[since, until] = edge else { continue };
        let over = gaps.iter().filter(|(gap, _)| gap.since <= since && until <= gap.until);
        let worst = over.map(|(_, gap)| gap).max_by_key(|gap| (gap.reason.cover(), gap.batches_lost));
        let (cover, reason) = worst.map_or((Cover::Observed, None), |gap| (gap.reason.cover(), Some(gap.reason)));
        let batches_lost = worst.map_or(0, |gap| gap.batches_lost);
        match periods.last_mut() {
            Some(last) if (last.cover, last.reason, last.batches_lost) == (cover, reason, batches_lost) => {
                last.until = until;
            }
            _ => periods.push(Period {
                host: whose.name.to_owned(),
                host_id: whose.id,
                since,
                until,
                cover,
                reason,
                batches_lost,
            }),
        }
    }
    periods
}

/// The worst cover of each of `cells` equal parts of a window: nothing is too short to be seen.
pub(super) fn cells(periods: &[Period], span: Span, cells: usize) -> Vec<Cover> {
    let (begin, end) = (i128::from(span.since.as_micros()), i128::from(span.until.as_micros()));
    let count = i128::try_from(cells).unwrap_or(1).max(1);
    let edge = |cell: i128| begin + (end - begin) * cell / count;
    (0..count)
        .map(|cell| {
            let (first, last) = (edge(cell), edge(cell + 1));
            let within = periods.iter().filter(|period| {
                i128::from(period.since.as_micros()) < last && i128::from(period.until.as_micros()) > first
            });
            within.map(|period| period.cover).max().unwrap_or(Cover::Observed)
        })
        .collect()
}

/// How a cover is drawn. Each is another sign: colour only says it again.
pub(super) const fn sign(cover: Cover) -> char {
    match cover {
        Cover::Observed => '█',
        Cover::Lossy => '▒',
        Cover::NotObserved => '·',
        Cover::Expired => '×',
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::answer::GapReason::{self, AgentDown, Expired, KernelLoss, NotReported, SpoolFull};
    use proptest::prelude::*;

    use super::*;

    const ID: HostId = HostId::from_array([1; 16]);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn gap(since: i64, until: Option<i64>, reason: GapReason, batches_lost: u64) -> Gap {
        Gap { host: "web1".to_owned(), host_id: ID, since: at(since), until: until.map(at), reason, batches_lost }
    }

    fn span(since: i64, until: i64) -> Span {
        Span { since: at(since), until: at(until) }
    }

    fn told(gaps: &[Gap], span: Span) -> Vec<String> {
        let second = |at: Timestamp| at.as_micros() / 1_000_000;
        let word = |period: Period| {
            let why = period.reason.map_or("", GapReason::as_str);
            format!(
                "{}..{} {} {why} {}",
                second(period.since),
                second(period.until),
                period.cover.as_str(),
                period.batches_lost
            )
        };
        periods(Whose { name: "web1", id: ID }, gaps, span).into_iter().map(word).collect()
    }

    #[test]
    fn a_window_is_cut_into_periods_and_the_worst_counts() {
        assert_eq!(told(&[], span(0, 100)), ["0..100 observed  0"]);
        let gaps = [
            gap(-50, Some(10), Expired, 0),
            gap(20, Some(40), KernelLoss, 0),
            gap(30, Some(50), AgentDown, 0),
            gap(50, Some(60), SpoolFull, 7),
            gap(90, None, NotReported, 0),
            Gap { host_id: HostId::from_array([2; 16]), ..gap(0, Some(100), AgentDown, 0) },
        ];
        assert_eq!(
            told(&gaps, span(0, 100)),
            [
                "0..10 expired expired 0",
                "10..20 observed  0",
                "20..30 with-losses kernel-loss 0",
                "30..50 not-observed agent-down 0",
                "50..60 not-observed spool-full 7",
                "60..90 observed  0",
                "90..100 not-observed not-reported 0",
            ]
        );
        assert_eq!(told(&gaps, span(35, 38)), ["35..38 not-observed agent-down 0"]);
    }

    #[test]
    fn a_bar_shows_the_shortest_gap_and_what_is_worst() {
        let gaps = [gap(50, Some(51), KernelLoss, 0), gap(100_000, None, NotReported, 0)];
        let span = span(0, 200_000);
        let periods = periods(Whose { name: "web1", id: ID }, &gaps, span);
        let bar: String = cells(&periods, span, 10).into_iter().map(sign).collect();
        assert_eq!(bar, "▒████·····");
    }

    proptest! {
        #[test]
        fn periods_fill_the_window_without_holes_and_a_moment_in_a_gap_is_never_observed(
            ranges in prop::collection::vec((-20_i64..120, 1_i64..60, 0_usize..4), 0..12),
            moment in 0_i64..100,
        ) {
            let reasons = [AgentDown, KernelLoss, SpoolFull, Expired];
            let gaps: Vec<Gap> =
                ranges.iter().map(|(since, length, why)| gap(*since, Some(since + length), reasons[*why], 0)).collect();
            let span = span(0, 100);
            let periods = periods(Whose { name: "web1", id: ID }, &gaps, span);
            prop_assert_eq!(periods.first().map(|period| period.since), Some(span.since));
            prop_assert_eq!(periods.last().map(|period| period.until), Some(span.until));
            prop_assert!(periods.windows(2).all(|pair| pair[0].until == pair[1].since));
            let worst = gaps.iter().filter(|gap| gap.since <= at(moment) && Some(at(moment)) < gap.until);
            let worst = worst.map(|gap| gap.reason.cover()).max().unwrap_or(Cover::Observed);
            let found = periods.iter().find(|period| period.since <= at(moment) && at(moment) < period.until);
            prop_assert_eq!(found.map(|period| period.cover), Some(worst));
        }
    }
}
