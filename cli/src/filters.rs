//! Filters: which hosts and sockets a question is about.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use clap::Args;
use fleetsock_proto::{
    client::OperatorClient,
    host::HostSelector,
    port::{PortClass, PortRange},
    question::{FILTER_VALUES_LIMIT, SessionQuestion, SocketFilter},
    service,
    socket::{Direction, Family, Protocol, SocketState},
    token::Label,
};
use ipnet::IpNet;

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    server, suggestion,
};

/// What to type when a host is not known.
pub const HOSTS: &str = "fleetctl hosts";

/// Which hosts.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct HostArguments {
    /// Hosts by name, glob or id.
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',')]
    pub host: Vec<String>,
    /// Hosts that have this label.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
}

impl HostArguments {
    /// The hosts meant.
    pub fn selector(&self) -> Result<HostSelector, Failure> {
        let mut labels = BTreeMap::new();
        for text in &self.label {
            let label =
                text.parse::<Label>().map_err(|error| Failure::usage(error.to_string()).hint("--label site=berlin"))?;
            if let Some(other) =
                labels.insert(label.key.clone(), label.value.clone()).filter(|other| *other != label.value)
            {
                let message = format!("no host has {0}={other} and {0}={1} at once", label.key, label.value);
                return Err(Failure::usage(message).hint("one --label for each key"));
            }
        }
        if let Some(empty) = self.host.iter().find(|glob| glob.trim().is_empty()) {
            return Err(Failure::usage(format!("`{empty}` is no host")).hint("--host 'web*'"));
        }
        Ok(HostSelector { globs: self.host.clone(), labels })
    }
}

/// Which sockets: what `ports` and `sessions` share.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct SocketArguments {
    /// Which hosts.
    #[command(flatten)]
    pub hosts: HostArguments,
    /// well-known, registered, dynamic; also system, user, private, ephemeral. portless: raw, packet and UNIX sockets.
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',')]
    pub class: Vec<String>,
    /// Ports and ranges, as in 443,8000-8100.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',')]
    pub port: Vec<String>,
    /// tcp, udp, dccp, sctp.
    #[arg(long, value_name = "PROTO,...", value_delimiter = ',')]
    pub proto: Vec<String>,
    /// The usual ports of a service, as in https or rip.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub service: Vec<String>,
    /// Processes by name or glob.
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',')]
    pub process: Vec<String>,
    /// Users by name or number.
    #[arg(long, value_name = "USER,...", value_delimiter = ',')]
    pub user: Vec<String>,
    /// TCP only.
    #[arg(short = 't', long = "tcp")]
    pub tcp: bool,
    /// UDP only.
    #[arg(short = 'u', long = "udp")]
    pub udp: bool,
    /// IPv4 only, with listeners on :: that IPv4 reaches.
    #[arg(short = '4', long = "ipv4")]
    pub ipv4: bool,
    /// IPv6 only.
    #[arg(short = '6', long = "ipv6")]
    pub ipv6: bool,
    /// Leave the names of services out.
    #[arg(short = 'n', long = "numeric")]
    pub numeric: bool,
    /// As in ss; processes are always shown.
    #[arg(short = 'p', long = "processes", hide_short_help = true)]
    pub processes: bool,
    /// At most so many rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

/// Which sessions: what `sessions` and `export` share.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct SessionArguments {
    /// Which sockets.
    #[command(flatten)]
    pub filter: SocketArguments,
    /// The other end: an address, a CIDR prefix, or a host of the fleet.
    #[arg(long, value_name = "PEER,...", value_delimiter = ',')]
    pub peer: Vec<String>,
    /// in or out: who began it.
    #[arg(long, value_name = "DIR,...", value_delimiter = ',')]
    pub direction: Vec<String>,
    /// The state when last seen, as in established or close-wait.
    #[arg(long, value_name = "STATE,...", value_delimiter = ',')]
    pub state: Vec<String>,
}

impl SessionArguments {
    /// The question with these filters, and a client to ask it with: peers that are hosts are looked up.
    pub async fn ask(
        &self,
        invocation: &Invocation,
        question: SessionQuestion,
    ) -> Result<(OperatorClient, SessionQuestion), Ended> {
        let peers: Vec<Peer> = self.peer.iter().map(|text| text.parse()).collect::<Result<_, Failure>>()?;
        let mut question = SessionQuestion {
            filter: self.filter.filter()?,
            directions: words("--direction", &self.direction, Direction::ALL, Direction::as_str)?,
            states: words("--state", &self.state, SocketState::ALL, SocketState::as_str)?,
            ..question
        };
        if question.states.iter().any(|state| matches!(state, SocketState::TimeWait | SocketState::SynReceived)) {
            invocation.console.note(COUNTED_ONLY);
        }
        let mut client = server::connect(invocation).await?;
        question.peers = resolve_peers(&mut client, peers).await?;
        Ok((client, question))
    }
}

/// What is said to whoever looks for them among sessions.
const COUNTED_ONLY: &str = "TCP sockets in time-wait or syn-received are not sessions; they are counted for each host: \
    fleetctl hosts --columns HOST,TIME-WAIT,SYN-RECEIVED,BOUND";

/// Words of a closed set, or a failure that names the flag and the words.
pub fn words<T: FromStr + Copy>(
    flag: &str,
    texts: &[String],
    all: &[T],
    as_str: fn(T) -> &'static str,
) -> Result<Vec<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    texts
        .iter()
        .map(|text| {
            text.trim().parse().map_err(|error: T::Err| {
                let known: Vec<&str> = all.iter().map(|word| as_str(*word)).collect();
                let close = suggestion::similar(text, known.iter().copied());
                let hint = close.first().or(known.first()).map_or_else(String::new, |word| format!("{flag} {word}"));
                Failure::usage(format!("{flag}: {error}")).hint(hint)
            })
        })
        .collect()
}

fn port_range(text: &String) -> Result<PortRange, Failure> {
    text.parse::<PortRange>().map_err(|error| {
        let failure = Failure::usage(format!("--port: {error}"));
        match service::by_name(text) {
            [] => failure.hint("--port 443,8000-8100"),
            _ => failure.hint(format!("--service {text}")),
        }
    })
}

fn service_name(name: &String) -> Result<String, Failure> {
    if !service::by_name(name.trim()).is_empty() {
        return Ok(name.trim().to_owned());
    }
    let failure = Failure::usage(format!("--service: no port is called `{name}`"));
    if name.parse::<PortRange>().is_ok() {
        return Err(failure.hint(format!("--port {name}")));
    }
    let hint = suggestion::did_you_mean(&service::similar(name));
    Err(failure.hint(hint.unwrap_or_else(|| "--port N (fleetctl ports shows which names are known)".to_owned())))
}

impl SocketArguments {
    /// The sockets meant.
    pub fn filter(&self) -> Result<SocketFilter, Failure> {
        let mut protocols = words("--proto", &self.proto, Protocol::ALL, Protocol::as_str)?;
        protocols.extend([(self.tcp, Protocol::Tcp), (self.udp, Protocol::Udp)].iter().filter_map(chosen));
        let filter = SocketFilter {
            hosts: self.hosts.selector()?,
            classes: words("--class", &self.class, PortClass::ALL, PortClass::as_str)?,
            ports: self.port.iter().map(port_range).collect::<Result<_, _>>()?,
            protocols,
            services: self.service.iter().map(service_name).collect::<Result<_, _>>()?,
            processes: self.process.clone(),
            users: self.user.clone(),
            families: [(self.ipv4, Family::Ipv4), (self.ipv6, Family::Ipv6)].iter().filter_map(chosen).collect(),
        };
        Ok(filter)
    }

    /// Columns that `-n` leaves out.
    pub fn left_out(&self) -> &'static [&'static str] {
        if self.numeric { &["service"] } else { &[] }
    }
}

fn chosen<T: Copy>((flag, value): &(bool, T)) -> Option<T> {
    flag.then_some(*value)
}

/// What `--peer` names: addresses, or hosts whose addresses are meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Peer {
    /// A prefix.
    Prefix(IpNet),
    /// A host by name, glob or id.
    Host(String),
}

impl FromStr for Peer {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Peer, Failure> {
        let text = text.trim();
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Peer::Prefix(IpNet::from(address.to_canonical())));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Peer::Prefix(canonical(net)));
        }
        let like_an_address = text.contains('/')
            || text.contains(':')
            || (!text.is_empty() && text.bytes().all(|c| c.is_ascii_digit() || c == b'.'));
        if text.is_empty() || like_an_address {
            return Err(invalid_prefix(text));
        }
        Ok(Peer::Host(text.to_owned()))
    }
}

fn invalid_prefix(text: &str) -> Failure {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let message = match (address.parse::<IpAddr>(), length) {
        (Ok(IpAddr::V4(_)), Some(_)) => {
            format!("--peer: `{text}` is no CIDR prefix; the length of an IPv4 prefix is 0 to 32")
        }
        (Ok(IpAddr::V6(_)), Some(_)) => {
            format!("--peer: `{text}` is no CIDR prefix; the length of an IPv6 prefix is 0 to 128")
        }
        _ => format!("--peer: `{text}` is no IP address, CIDR prefix or host"),
    };
    Failure::usage(message).hint("--peer 203.0.113.7, --peer 10.0.0.0/8, --peer 2001:db8::/32 or --peer web1")
}

/// The prefix that is meant: bits behind its length do not count, and IPv4-mapped addresses are IPv4.
fn canonical(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(mapped) = IpNet::new(IpAddr::V4(v4), length)
    {
        return mapped.trunc();
    }
    net.trunc()
}

/// The prefixes that peers mean; hosts stand for all their addresses.
pub async fn resolve_peers(client: &mut OperatorClient, peers: Vec<Peer>) -> Result<Vec<IpNet>, Ended> {
    let mut prefixes = Vec::new();
    for peer in peers {
        match peer {
            Peer::Prefix(net) => prefixes.push(net),
            Peer::Host(name) => prefixes.extend(addresses_of(client, &name).await?),
        }
    }
    if prefixes.len() > FILTER_VALUES_LIMIT {
        let message = format!("--peer: {} addresses are more than {FILTER_VALUES_LIMIT}", prefixes.len());
        return Err(Failure::usage(message).hint("fewer hosts, or a CIDR prefix that holds them").into());
    }
    Ok(prefixes)
}

/// The addresses of the hosts that a name means. A host of that name must be there and must have told one: without an
/// address nothing would be asked for, and nothing asked for means everything.
async fn addresses_of(client: &mut OperatorClient, name: &str) -> Result<Vec<IpNet>, Ended> {
    let selector = HostSelector { globs: vec![name.to_owned()], ..HostSelector::default() };
    let listed = client.list_hosts(selector).await;
    let hosts = match listed {
        Ok(answer) => answer.collect().await,
        Err(error) => Err(error),
    };
    let (hosts, _) = hosts.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
    let facts = hosts.iter().filter_map(|host| host.facts.as_ref());
    let addresses: Vec<IpNet> = facts.flat_map(|facts| &facts.addresses).map(|address| IpNet::from(*address)).collect();
    if addresses.is_empty() {
        let message = format!("--peer: no host that matches `{name}` has told an address");
        return Err(Failure::new(Exit::NotFound, message).hint(HOSTS).into());
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(arguments: SocketArguments) -> (u8, String, String) {
        let failure = arguments.filter().unwrap_err();
        (failure.exit.code(), failure.message, failure.hint.unwrap())
    }

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn filters_mean_what_they_say() {
        let arguments = SocketArguments {
            hosts: HostArguments { host: list(&["web*", "db1"]), label: list(&["site=berlin"]) },
            class: list(&["system", "ephemeral"]),
            port: list(&["443", "8000-8100"]),
            service: list(&["RIP"]),
            tcp: true,
            ipv6: true,
            ..SocketArguments::default()
        };
        let filter = arguments.filter().unwrap();
        assert_eq!(filter.hosts.globs, ["web*", "db1"]);
        assert_eq!(filter.classes, [PortClass::WellKnown, PortClass::Dynamic]);
        assert_eq!(filter.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["443", "8000-8100"]);
        assert_eq!((filter.protocols, filter.families), (vec![Protocol::Tcp], vec![Family::Ipv6]));
    }

    #[test]
    fn a_wrong_filter_says_what_is_wrong_and_what_to_type() {
        let class = SocketArguments { class: list(&["wellknwn"]), ..Default::default() };
        assert_eq!(
            failure(class),
            (
                2,
                "--class: `wellknwn` is no port class; one of well-known, registered, dynamic, portless".to_owned(),
                "--class well-known".to_owned()
            )
        );
        let port = |text: &str| failure(SocketArguments { port: list(&[text]), ..Default::default() });
        assert_eq!(port("70000").1, "--port: `70000` is no port; ports are 0 to 65535");
        assert_eq!(port("90-80").1, "--port: `90-80` is reversed; write 80-90");
        assert_eq!(port("https").2, "--service https");
        let service = |text: &str| failure(SocketArguments { service: list(&[text]), ..Default::default() });
        assert_eq!(service("htpps").1, "--service: no port is called `htpps`");
        assert!(service("htpps").2.contains("https"), "{:?}", service("htpps"));
        assert_eq!(service("443").2, "--port 443");
        let label = SocketArguments {
            hosts: HostArguments { label: list(&["site"]), ..Default::default() },
            ..Default::default()
        };
        assert_eq!(failure(label).1, "`site` is no label; write key=value, each 1 to 128 bytes");
        let proto = SocketArguments { proto: list(&["tpc"]), ..Default::default() };
        assert_eq!(failure(proto).2, "--proto tcp");
    }

    #[test]
    fn peers_are_addresses_prefixes_or_hosts() {
        for (text, expected) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:10.1.0.0/104", "10.0.0.0/8"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse(), Ok(Peer::Prefix(expected.parse().unwrap())), "{text}");
        }
        for host in ["web1", "web*", "db1.example.org", "10.example.org"] {
            assert_eq!(host.parse(), Ok(Peer::Host(host.to_owned())));
        }
        for (text, expected) in [
            ("10.0.0.0/33", "the length of an IPv4 prefix is 0 to 32"),
            ("2001:db8::/129", "the length of an IPv6 prefix is 0 to 128"),
            ("10.0.0/8", "is no IP address, CIDR prefix or host"),
            ("10.0.0.256", "is no IP address, CIDR prefix or host"),
            ("10.0.0.0/", "the length of an IPv4 prefix"),
            ("web1/24", "is no IP address, CIDR prefix or host"),
            ("", "is no IP address, CIDR prefix or host"),
        ] {
            let failure = text.parse::<Peer>().unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.message.contains(expected), "{text}: {failure}");
        }
    }
}
