//! What a survey did not see, in words for the remarks. Pure.

use crate::{capture::SurveyReport, remarks::Topic};

/// What is to be said on each topic; nothing where nothing is missing. A protocol that the kernel has not is not missing: no
/// socket of it can be there.
pub(super) fn remarks(survey: &SurveyReport) -> [(Topic, Option<String>); 3] {
    let portless = survey.portless_unseen().map(|error| format!("raw and packet sockets are not seen: {error}"));
    let unix = survey.unix_unseen().map(|error| format!("UNIX sockets are not seen: {error}"));
    let unlisted = survey.others_unseen().map(|error| format!("SCTP and DCCP sockets are not seen: {error}"));
    [(Topic::Portless, portless), (Topic::Unix, unix), (Topic::Transports, unlisted)]
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::capture::{CaptureError, Coverage, WalkReport, Walked};

    fn told(walked: Walked) -> Vec<String> {
        let survey = SurveyReport { walked: [(1, walked)].into(), ..SurveyReport::default() };
        remarks(&survey).into_iter().filter_map(|(_, remark)| remark).collect()
    }

    #[test]
    fn each_kind_that_was_not_seen_is_told_with_its_reason_and_nothing_else() {
        let refused = Err(CaptureError::Dump { about: "x", cause: Errno::NOENT.into() });
        let whole = Walked {
            coverage: Coverage::Everything,
            report: WalkReport::default(),
            portless: Ok(()),
            others: Ok(()),
            unix: Ok(()),
        };
        let nothing: [&str; 0] = [];
        assert_eq!(told(whole), nothing);
        for (walked, begins) in [
            (Walked { portless: refused, ..whole }, "raw and packet sockets are not seen: "),
            (Walked { unix: refused, ..whole }, "UNIX sockets are not seen: "),
            (Walked { others: refused, ..whole }, "SCTP and DCCP sockets are not seen: "),
        ] {
            let told = told(walked);
            assert!(told.len() == 1 && told[0].starts_with(begins), "{told:?}");
        }
    }
}
