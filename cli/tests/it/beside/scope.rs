//! Addresses that no other test has at the same time: a referee sees the whole machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::fleet::Fleet;

/// The hosts that are looked at, each with a number.
pub(super) const HOSTS: [&str; 3] = ["web1", "db1", "client1"];
/// Where it is tried whether a referee looks; nobody listens there.
pub(super) const PROBE: u16 = 9;
/// What is listened to when the traffic is over.
pub(super) const LAST: u16 = 4500;

/// The networks of this run.
pub(super) struct Scope {
    run: u32,
}

impl Scope {
    /// Gives each host an address of both families.
    pub(super) fn new(fleet: &Fleet) -> Scope {
        let scope = Scope { run: std::process::id() };
        for host in HOSTS {
            for address in [format!("{}/24", scope.v4(host)), format!("{}/64", scope.v6(host))] {
                let mut ip = fleet.network.command(host, "ip");
                // Without waiting whether somebody has it already.
                let added = ip.args(["address", "add", &address, "dev", "wire", "nodad"]).output();
                let added = added.unwrap();
                assert!(added.status.success(), "{address}: {}", String::from_utf8_lossy(&added.stderr));
            }
        }
        scope
    }

    fn number(host: &str) -> u8 {
        let at = HOSTS.iter().position(|known| *known == host).unwrap();
        u8::try_from(at + 1).unwrap()
    }

    pub(super) fn v4(&self, host: &str) -> IpAddr {
        let [_, _, high, low] = self.run.to_be_bytes();
        Ipv4Addr::new(10, 100 + high % 100, low, Scope::number(host)).into()
    }

    pub(super) fn v6(&self, host: &str) -> IpAddr {
        let (high, low) = (self.run >> 16, self.run & 0xffff);
        let [high, low] = [high, low].map(|part| u16::try_from(part).unwrap());
        Ipv6Addr::new(0xfd99, high, low, 0, 0, 0, 0, Scope::number(host).into()).into()
    }

    /// Its networks, for `--peer`.
    pub(super) fn networks(&self) -> [String; 2] {
        [format!("{}/24", self.v4("web1")), format!("{}/64", self.v6("web1"))]
    }

    /// Whose address it is.
    pub(super) fn host(&self, address: IpAddr) -> Option<&'static str> {
        HOSTS.into_iter().find(|host| [self.v4(host), self.v6(host)].contains(&address))
    }

    /// Whether a connection between these is one of the traffic.
    pub(super) fn has(&self, ends: [SocketAddr; 2]) -> bool {
        ends.iter().all(|end| self.host(end.ip()).is_some() && ![PROBE, LAST].contains(&end.port()))
    }
}

/// An end of a connection; an IPv4 address is the same on a socket of either family.
pub(super) fn end(address: &str, port: &str) -> Option<SocketAddr> {
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address.to_canonical(), port.parse().ok()?))
}

/// Tries to connect to a host where nobody listens, which every referee sees.
pub(super) fn probe(fleet: &Fleet, from: &str, to: IpAddr) {
    let mut curl = fleet.network.command(from, "curl");
    let refused = curl.args(["-s", "-o", "/dev/null", &format!("http://{to}:{PROBE}/")]).status().unwrap();
    assert_eq!(refused.code(), Some(7), "nobody listens on {to}");
}
