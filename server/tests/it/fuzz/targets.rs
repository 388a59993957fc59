//! What reads input from elsewhere, and what such input looks like when it is good.

use std::path::Path;

use fleetsock_proto::{
    audit::{self, AuditQuestion},
    backup,
    client::{ANSWER_BYTES_LIMIT, CERTIFICATES_BYTES_LIMIT},
    join::JoinString,
    question::{self, ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    stream::AgentMessage,
    token::{self, Operator},
    wire,
};
use fleetsock_server::{authority::RequestedKey, config::Config};
use prost::Message;

use super::{
    answers,
    messages::Contract,
    mutation::{Random, mutate},
};

pub(crate) type Read = Box<dyn Fn(&[u8])>;
type Make = Box<dyn Fn(&mut Random) -> Vec<u8>>;

/// A reader, and how its input is made.
pub(crate) struct Target {
    pub(crate) name: String,
    /// Most bytes that reach it.
    limit: usize,
    make: Make,
    pub(crate) read: Read,
}

/// Memory that a process of a target may take (`ulimit -d`, private and writable), KiB: more makes it abort.
const MEMORY_KIB: u64 = 128 * 1024;
/// The same for what only operators read, from a server that they trust: a row of two bytes takes 600 where it is read.
const ANSWER_MEMORY_KIB: u64 = 2 * 1024 * 1024;

impl Target {
    pub(crate) fn memory_kib(&self) -> u64 {
        if self.limit == ANSWER_BYTES_LIMIT { ANSWER_MEMORY_KIB } else { MEMORY_KIB }
    }

    pub(crate) fn new(name: &str, limit: usize, make: Make, read: Read) -> Target {
        Target { name: name.to_owned(), limit, make, read }
    }

    /// An input: one in eight is as it was made, the others are changed.
    pub(crate) fn input(&self, random: &mut Random) -> Vec<u8> {
        let made = (self.make)(random);
        if random.below(8) == 0 { made } else { mutate(random, made, self.limit) }
    }
}

/// All targets, of what servers read and of what agents and operators read; a call of the contract without one is a panic.
pub(crate) fn all() -> Vec<Target> {
    let mut all = vec![join_string(), request(), settings(), answers::certificate()];
    for (service, message) in Contract::read().messages() {
        let read = reader(&message)
            .or_else(|| answers::reader(&message))
            .unwrap_or_else(|| panic!("{message} has no target: add its reader"));
        let limit = match service.as_str() {
            "Enrollment" => 64 * 1024,
            "Agent" if message.ends_with("Response") => CERTIFICATES_BYTES_LIMIT,
            "Agent" => 256 * 1024,
            _ if ["RenewOperatorResponse", "IssueOperatorResponse"].contains(&message.as_str()) => {
                CERTIFICATES_BYTES_LIMIT
            }
            _ if message.ends_with("Response") => ANSWER_BYTES_LIMIT,
            _ => 1024 * 1024,
        };
        let (contract, name) = (Contract::read(), message.clone());
        all.push(Target {
            name: format!("message {message}"),
            limit,
            make: Box::new(move |random| contract.make(random, &name)),
            read,
        });
    }
    all
}

/// Targets that are wrong.
pub(crate) fn broken() -> Vec<Target> {
    let target = |name: &str, read| Target { name: name.to_owned(), limit: 64, make: Box::new(|_| Vec::new()), read };
    vec![
        target("broken: panics", Box::new(|_| panic!("this reader is wrong"))),
        target("broken: takes too much", Box::new(|_| drop(std::hint::black_box(vec![1_u8; 1 << 30])))),
    ]
}

/// A reader of one message: decoded, and then made into what the server works with.
fn reader(message: &str) -> Option<Read> {
    macro_rules! read {
        ($message:ident) => {
            read!($message, |_| ())
        };
        ($message:ident, $then:expr) => {
            Some(Box::new(|bytes: &[u8]| {
                if let Ok(message) = wire::$message::decode(bytes) {
                    // Whether it is refused is a matter of other tests.
                    let then: fn(wire::$message) = $then;
                    then(message);
                }
            }))
        };
    }
    match message {
        "EnrollRequest" => read!(EnrollRequest, |it| drop(RequestedKey::of_request(&it.csr_der))),
        "RenewExpiredRequest" => read!(RenewExpiredRequest, |it| {
            drop(RequestedKey::of_request(&it.csr_der));
            drop(fleetsock_proto::identity::Leaf::parse(&it.certificate_der));
        }),
        "SessionRequest" => read!(SessionRequest, |it| drop(AgentMessage::try_from(it))),
        "RenewCertificateRequest" => {
            read!(RenewCertificateRequest, |it| drop(RequestedKey::of_request(&it.csr_der)))
        }
        "ListHostsRequest" => read!(ListHostsRequest, |it| drop(question::hosts_question(it))),
        "ListPortsRequest" => read!(ListPortsRequest, |it| drop(PortQuestion::try_from(it))),
        "ListSessionsRequest" => read!(ListSessionsRequest, |it| drop(SessionQuestion::try_from(it))),
        "ListCoverageRequest" => read!(ListCoverageRequest, |it| drop(CoverageQuestion::try_from(it))),
        "ListChangesRequest" => read!(ListChangesRequest, |it| drop(ChangeQuestion::try_from(it))),
        "SummarizeRequest" => read!(SummarizeRequest, |it| drop(SummaryQuestion::try_from(it))),
        "CreateTokenRequest" => read!(CreateTokenRequest, |it| drop(token::new_token(it))),
        "ListTokensRequest" => read!(ListTokensRequest),
        "RevokeTokenRequest" => read!(RevokeTokenRequest),
        "IssueOperatorRequest" => read!(IssueOperatorRequest, |it| {
            drop(it.operator.map(Operator::try_from));
            drop(RequestedKey::of_request(&it.csr_der));
        }),
        "RevokeHostRequest" => read!(RevokeHostRequest),
        "ApproveHostRequest" => read!(ApproveHostRequest),
        "ListOperatorsRequest" => read!(ListOperatorsRequest),
        "RevokeOperatorRequest" => read!(RevokeOperatorRequest),
        "ListAuditRequest" => read!(ListAuditRequest, |it| drop(AuditQuestion::try_from(it))),
        "VerifyAuditRequest" => read!(VerifyAuditRequest, |it| drop(audit::mark(&it))),
        "ListRootsRequest" => read!(ListRootsRequest),
        "ShowServerRequest" => read!(ShowServerRequest),
        "PrepareRootRequest" => read!(PrepareRootRequest),
        "AbortRootRequest" => read!(AbortRootRequest),
        "ActivateRootRequest" => read!(ActivateRootRequest),
        "RetireRootRequest" => read!(RetireRootRequest),
        "RenewOperatorRequest" => read!(RenewOperatorRequest, |it| drop(RequestedKey::of_request(&it.csr_der))),
        "BackupRequest" => read!(BackupRequest, |it| drop(backup::requested(&it))),
        _ => None,
    }
}

fn join_string() -> Target {
    let good = JoinString {
        address: "db1.example.org:5290".parse().unwrap(),
        trust_domain: "fleetsock.internal".parse().unwrap(),
        token_id: "0123456789abcdef".to_owned(),
        secret: fleetsock_proto::join::TokenSecret::from_array([7; 32]),
        pin: fleetsock_proto::join::Pin::of_public_key(&[1; 91]),
    };
    let good = good.to_string();
    Target {
        name: "join string".to_owned(),
        limit: 8 * 1024,
        make: Box::new(move |_| good.clone().into_bytes()),
        read: Box::new(|bytes| drop(String::from_utf8_lossy(bytes).parse::<JoinString>())),
    }
}

fn request() -> Target {
    let good = include_bytes!("request.der");
    RequestedKey::of_request(good).unwrap();
    Target {
        name: "certificate request".to_owned(),
        limit: 64 * 1024,
        make: Box::new(|_| good.to_vec()),
        read: Box::new(|bytes| drop(RequestedKey::of_request(bytes))),
    }
}

fn settings() -> Target {
    let good = "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:5290\"\naddress = \"db1:5290\"\n\
                stale_after_s = 90\nheartbeat_s = 15\n[limits]\nhandshake_s = 5\nconnections = 12000\n";
    let folder = tempfile::tempdir().unwrap();
    Target {
        name: "settings of the server".to_owned(),
        limit: 64 * 1024,
        make: Box::new(move |_| good.as_bytes().to_vec()),
        read: Box::new(move |bytes| {
            let file = folder.path().join("server.toml");
            std::fs::write(&file, bytes).unwrap();
            drop(Config::load(Path::new("/nowhere"), Some(&file)));
        }),
    }
}
