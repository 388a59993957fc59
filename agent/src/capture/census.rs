//! How many sockets of each kind a network namespace has, without looking at them: /proc/net/sockstat and sockstat6
//! (net/ipv4/proc.c, net/ipv6/proc.c).
//!
//! TCP sockets in TIME_WAIT are counted apart; those not yet accepted by the protocol (SYN_RECV) and those that are only
//! bound are not counted: the other numbers are of what a walk shows. The kernel adds up one counter per processor, so while sockets come and go a
//! count can be off by some.

use std::{
    fs::File,
    io::{self, Read},
};

/// Longest file that is read; they have some 140 bytes.
const FILE_LIMIT: usize = 2048;

/// Numbers of sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// TCP, listening and connected, of both families.
    pub(super) tcp: u64,
    /// TCP of both families, closed and kept by the kernel for a while: TIME_WAIT, and FIN_WAIT2 that no process holds.
    pub(super) time_wait: u64,
    /// UDP over IPv4.
    pub(super) udp4: u64,
    /// UDP over IPv6.
    pub(super) udp6: u64,
}

impl Census {
    /// Counts in the network namespace of the calling thread.
    pub(super) fn take() -> io::Result<Census> {
        let mut census = Census::default();
        for path in ["/proc/thread-self/net/sockstat", "/proc/thread-self/net/sockstat6"] {
            let mut buffer = [0; FILE_LIMIT];
            let mut length = 0;
            let mut file = match File::open(path) {
                Ok(file) => file,
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => break,
                Err(error) => return Err(error),
            };
            while let Some(rest @ [_, ..]) = buffer.get_mut(length..) {
                match file.read(rest)? {
                    0 => break,
                    more => length += more,
                }
            }
            census.add(&buffer[..length]).ok_or_else(|| io::Error::other(format!("{path} cannot be read")))?;
        }
        Ok(census)
    }

    /// Adds the numbers of a file: `TCP: inuse 4 orphan 0 tw 2 alloc 5 mem 1`, `TCP6: inuse 1`. The first file counts `tw`
    /// of both families.
    fn add(&mut self, file: &[u8]) -> Option<()> {
        for line in std::str::from_utf8(file).ok()?.lines() {
            let Some((kind, rest)) = line.split_once(": inuse ") else { continue };
            let mut words = rest.split_ascii_whitespace();
            let count: u32 = words.next()?.parse().ok()?;
            if kind == "TCP" {
                let count: u32 = words.skip_while(|word| *word != "tw").nth(1)?.parse().ok()?;
                self.time_wait += u64::from(count);
            }
            let total = match kind {
                "TCP" | "TCP6" => &mut self.tcp,
                "UDP" => &mut self.udp4,
                "UDP6" => &mut self.udp6,
                _ => continue,
            };
            *total += u64::from(count);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOCKSTAT: &[u8] = b"sockets: used 18\nTCP: inuse 4 orphan 0 tw 2 alloc 5 mem 76\nUDP: inuse 3 mem 0\n\
        UDPLITE: inuse 8\nRAW: inuse 9\nFRAG: inuse 0 memory 0\n";

    #[test]
    fn both_families_are_counted() {
        let mut census = Census::default();
        census.add(SOCKSTAT).unwrap();
        census
            .add(b"TCP6: inuse 2\nUDP6: inuse 5\nUDPLITE6: inuse 8\nRAW6: inuse 9\nFRAG6: inuse 0 memory 0\n")
            .unwrap();
        assert_eq!(census, Census { tcp: 6, time_wait: 2, udp4: 3, udp6: 5 });
    }

    #[test]
    fn sockets_of_this_namespace_are_counted() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let census = Census::take().unwrap();
        assert!(census.tcp > 0 && census.udp4 > 0, "{census:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "(TCP6?|UDP6?|RAW): inuse [0-9x]{0,30}( tw [0-9]{0,12})?\n") {
            let mut census = Census::default();
            let read = [bytes, text.repeat(3).into_bytes()].map(|file| census.add(&file).is_some());
            let most = 6 * u64::from(u32::MAX);
            prop_assert!(read.len() == 2 && census.tcp <= most && census.time_wait <= most);
        }
    }
}
