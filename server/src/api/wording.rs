//! Questions as the audit log tells them: in the words of fleetctl's flags, so that one can ask the same again.

use std::fmt::Display;

use fleetsock_proto::{
    audit::AuditQuestion,
    host::HostSelector,
    question::{
        ChangeQuestion, CoverageQuestion, Pairing, PortQuestion, SessionQuestion, SessionTime, SocketFilter,
        SummaryQuestion,
    },
    time::Timestamp,
};

/// Longest text about a question, bytes: a filter of a thousand values need not be told whole.
const TEXT_LIMIT: usize = 1024;

/// Flags, one after another.
#[derive(Default)]
struct Flags(String);

impl Flags {
    fn each<T: Display>(mut self, flag: &str, values: &[T]) -> Flags {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            self.add(flag, &values.join(","));
        }
        self
    }

    fn one<T: Display>(mut self, flag: &str, value: Option<T>) -> Flags {
        if let Some(value) = value {
            self.add(flag, &value.to_string());
        }
        self
    }

    fn add(&mut self, flag: &str, value: &str) {
        let gap = if self.0.is_empty() { "" } else { " " };
        self.0.push_str(&format!("{gap}--{flag} {value}"));
    }

    fn hosts(self, hosts: &HostSelector) -> Flags {
        let labels: Vec<String> = hosts.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.each("host", &hosts.globs).each("label", &labels)
    }

    fn sockets(self, filter: &SocketFilter) -> Flags {
        self.hosts(&filter.hosts)
            .each("class", &filter.classes)
            .each("port", &filter.ports)
            .each("proto", &filter.protocols)
            .each("service", &filter.services)
            .each("process", &filter.processes)
            .each("user", &filter.users)
            .each("family", &filter.families)
    }

    fn pairing(mut self, pairing: Pairing) -> Flags {
        if pairing == Pairing::Always {
            let gap = if self.0.is_empty() { "" } else { " " };
            self.0.push_str(&format!("{gap}--both-ends"));
        }
        self
    }

    fn done(self) -> String {
        cut(self.0)
    }
}

/// The text, or its beginning and a mark.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > TEXT_LIMIT {
        let end = (0..=TEXT_LIMIT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// A moment in RFC 3339, UTC.
fn moment(at: Timestamp) -> String {
    let seconds = at.as_micros().div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar, counted from 0000-03-01 (Howard Hinnant, "chrono-Compatible Low-Level
    // Date Algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

pub(super) fn hosts(question: &HostSelector) -> String {
    Flags::default().hosts(question).done()
}

pub(super) fn ports(question: &PortQuestion) -> String {
    Flags::default()
        .sockets(&question.filter)
        .each("scope", &question.scopes)
        .one("at", question.at.map(moment))
        .one("limit", question.limit)
        .done()
}

pub(super) fn sessions(question: &SessionQuestion) -> String {
    let (at, since, until) = match question.time {
        SessionTime::Now => (None, None, None),
        SessionTime::At(at) => (Some(at), None, None),
        SessionTime::Within { since, until } => (None, Some(since), until),
    };
    Flags::default()
        .sockets(&question.filter)
        .each("direction", &question.directions)
        .each("state", &question.states)
        .each("peer", &question.peers)
        .one("at", at.map(moment))
        .one("since", since.map(moment))
        .one("until", until.map(moment))
        .one("closed-before", question.closed_before.map(moment))
        .one("limit", question.limit)
        .pairing(question.pairing)
        .done()
}

pub(super) fn summary(question: &SummaryQuestion) -> String {
    let by = Flags::default().each("by", &question.by).0;
    let sockets = sessions(&SessionQuestion { limit: question.limit, ..question.sockets.clone() });
    cut(format!("{by} {sockets}").trim_end().to_owned())
}

pub(super) fn coverage(question: &CoverageQuestion) -> String {
    Flags::default()
        .hosts(&question.hosts)
        .one("since", question.since.map(moment))
        .one("until", question.until.map(moment))
        .one("limit", question.limit)
        .done()
}

pub(super) fn changes(question: &ChangeQuestion) -> String {
    Flags::default()
        .sockets(&question.filter)
        .each("scope", &question.scopes)
        .each("direction", &question.directions)
        .each("peer", &question.peers)
        .each("kind", &question.kinds)
        .each("of", &question.subjects)
        .one("baseline", question.baseline.map(moment))
        .one("since", question.since.map(moment))
        .one("until", question.until.map(moment))
        .one("limit", question.limit)
        .done()
}

pub(super) fn audit(question: &AuditQuestion) -> String {
    Flags::default()
        .one("since", question.since.map(moment))
        .one("until", question.until.map(moment))
        .one("actor", question.actor.as_ref())
        .one("action", question.action.as_ref())
        .one("limit", question.limit)
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_reads_as_it_was_typed() {
        let question = SessionQuestion {
            filter: SocketFilter {
                hosts: HostSelector {
                    globs: vec!["web*".to_owned(), "db1".to_owned()],
                    labels: [("site".to_owned(), "berlin".to_owned())].into(),
                },
                ports: vec!["443".parse().unwrap(), "8000-8100".parse().unwrap()],
                ..SocketFilter::default()
            },
            peers: vec!["10.0.0.0/8".parse().unwrap()],
            time: SessionTime::Within { since: Timestamp::from_micros(1_795_514_591_000_000), until: None },
            limit: Some(5),
            pairing: Pairing::Always,
            ..SessionQuestion::default()
        };
        assert_eq!(
            sessions(&question),
            "--host web*,db1 --label site=berlin --port 443,8000-8100 --peer 10.0.0.0/8 --since 2026-11-24T10:03:11Z \
             --limit 5 --both-ends"
        );
        assert_eq!(ports(&PortQuestion::default()), "");
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_000_000, "2000-02-28T23:59:59Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (Timestamp::MIN.as_micros(), "0001-01-01T00:00:00Z"),
            (Timestamp::MAX.as_micros(), "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(moment(Timestamp::from_micros(us)), text);
        }
    }

    #[test]
    fn a_long_question_is_cut_and_says_so() {
        let globs = vec!["ö".repeat(100); 100];
        let text = hosts(&HostSelector { globs, ..HostSelector::default() });
        assert!(text.len() <= TEXT_LIMIT + 4 && text.ends_with(" ..."), "{text}");
    }
}
