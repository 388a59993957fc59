//! TCP sockets that are counted and not followed: nobody owns them, or nobody uses them.

use fleetsock_proto::tcp::TcpCounts;

use super::census::Census;

/// The first Linux that tells of bound sockets in a dump (TCPF_BOUND_INACTIVE of include/net/tcp_states.h).
const BOUND_SINCE: (u32, u32) = (6, 8);

/// What a socket that is only counted does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    /// Its handshake is not over: SYN-RECEIVED.
    SynReceived,
    /// It has a port, and neither listens nor connects.
    Bound,
}

/// How many of them dumps showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    syn_received: u64,
    bound: u64,
}

impl Counted {
    pub(super) fn add(&mut self, idle: Idle) {
        match idle {
            Idle::SynReceived => self.syn_received += 1,
            Idle::Bound => self.bound += 1,
        }
    }
}

/// What the running kernel can tell of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Telling {
    bound: bool,
}

impl Telling {
    /// By the release of the kernel. One that got it by a backport is taken for one that tells nothing.
    pub(super) fn of(release: &str) -> Telling {
        Telling { bound: version(release).is_some_and(|version| version >= BOUND_SINCE) }
    }

    /// What the network namespace of the calling thread has, of which dumps showed these; nothing when the kernel does not
    /// let its counters be read.
    pub(super) fn home(self, counted: Counted) -> Option<TcpCounts> {
        let census = Census::take().inspect_err(|error| tracing::debug!(%error, "cannot count sockets in TIME-WAIT"));
        let mut total = TcpCounts::default();
        self.sum(&mut total, &census.ok()?, counted);
        Some(total)
    }

    /// Adds what one network namespace has.
    pub(super) fn sum(self, total: &mut TcpCounts, census: &Census, counted: Counted) {
        total.time_wait += census.time_wait;
        total.syn_received += counted.syn_received;
        if self.bound {
            *total.bound.get_or_insert(0) += counted.bound;
        }
    }
}

/// `6.18.44-fc` is (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bound_sockets_are_not_known_to_be_none_where_the_kernel_does_not_tell_of_them() {
        for (release, bound) in [
            ("6.18.44-fc", Some(2)),
            ("6.8.0-45-generic", Some(2)),
            ("7.0", Some(2)),
            ("6.7.12", None),
            ("5.15.0", None),
            ("4", None),
            ("", None),
        ] {
            let (mut total, census) = (TcpCounts::default(), Census { time_wait: 3, ..Census::default() });
            let mut counted = Counted::default();
            for idle in [Idle::Bound, Idle::SynReceived, Idle::Bound] {
                counted.add(idle);
            }
            Telling::of(release).sum(&mut total, &census, counted);
            assert_eq!(total, TcpCounts { time_wait: 3, syn_received: 1, bound }, "{release}");
        }
    }

    proptest! {
        #[test]
        fn a_release_of_any_text_has_a_version_or_none(text in "\\PC{0,40}", release in "[0-9]{0,12}\\.[0-9]{0,12}[.-]?") {
            prop_assert!(version(&text).is_none_or(|_| text.contains(|character: char| character.is_ascii_digit())));
            let written = |(major, minor): (u32, u32)| release.contains(&major.to_string()) && release.contains(&minor.to_string());
            prop_assert!(version(&release).is_none_or(written));
        }
    }
}
