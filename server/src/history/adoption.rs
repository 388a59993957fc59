//! Whether a certificate is taken up that was made after a backup which was restored: the history that made it is lost. Pure.
//!
//! Its signature, its name and its dates were checked before. What is decided here is whether it can be one that the lost
//! part of the history made, and the newest one of its holder.

use std::time::Duration;

use fleetsock_proto::time::Timestamp;

/// Dates in certificates have no fractions of a second.
const SECOND: Duration = Duration::from_secs(1);

/// The part of a history that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The moment of the backup.
    pub taken_at: Timestamp,
    /// When it was restored.
    pub restored_at: Timestamp,
}

/// A certificate that the history does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its serial number.
    pub serial: Vec<u8>,
    /// When it was made, to a second.
    pub made_at: Timestamp,
    /// The end of its validity.
    pub expires_at: Timestamp,
}

/// What the history knows of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nothing.
    Unknown,
    /// He is refused.
    Revoked,
    /// His newest certificate was made then.
    Known(Timestamp),
}

/// What is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// It takes the place of those before it.
    TakeUp,
    /// It was not made in the time that is lost, or for somebody whom nobody knows.
    Unknown,
    /// There is a newer one.
    Superseded,
    /// Its holder is refused.
    Revoked,
}

/// Decides.
pub fn decide(lost: Lost, shown: &Shown, holder: Holder) -> Adoption {
    // A date is cut, never rounded up: the certificate was made within the second that begins with it.
    let made_by = shown.made_at.plus(SECOND);
    match holder {
        Holder::Revoked => Adoption::Revoked,
        Holder::Known(_) if made_by <= lost.taken_at || shown.made_at > lost.restored_at => Adoption::Unknown,
        Holder::Unknown => Adoption::Unknown,
        Holder::Known(newest) if made_by <= newest => Adoption::Superseded,
        Holder::Known(_) => Adoption::TakeUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_in_the_time_that_is_lost_and_is_the_newest_is_taken_up() {
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let lost = Lost { taken_at: at(1000), restored_at: at(2000) };
        for (case, made, holder, expected) in [
            ("renewed in between", 1500, Holder::Known(at(900)), Adoption::TakeUp),
            ("renewed in the second of the backup", 1000, Holder::Known(at(900)), Adoption::TakeUp),
            ("made before the backup, and not in it: forged", 998, Holder::Known(at(900)), Adoption::Unknown),
            ("made after the restore, and not known: forged", 2001, Holder::Known(at(900)), Adoption::Unknown),
            ("a newer one was taken up", 1500, Holder::Known(at(1600)), Adoption::Superseded),
            ("a newer one was made since", 1500, Holder::Known(at(2100)), Adoption::Superseded),
            ("revoked", 1500, Holder::Revoked, Adoption::Revoked),
            ("enrolled in between", 1500, Holder::Unknown, Adoption::Unknown),
        ] {
            let shown = Shown { serial: vec![1], made_at: at(made), expires_at: at(9000) };
            assert_eq!(decide(lost, &shown, holder), expected, "{case}");
        }
    }
}
