//! A change as an answer shows it: something opened, closed, changed hands or began to reach further.

use crate::{
    InvalidMessage,
    address::Scope,
    host::{BootId, HostId, HostState},
    listener::Listener,
    owner::Owner,
    session::Session,
    socket::Known,
    time,
    time::Timestamp,
    wire,
    word::words,
};

words! {
    /// What happened.
    pub enum ChangeKind is "kind of change", or InvalidChangeKind {
        /// A listener or session opened.
        Opened = 1 "opened",
        /// It closed.
        Closed = 2 "closed",
        /// Another process holds the listener, or a further program does.
        OwnerChanged = 3 "owner-changed",
        /// A listener opened that reaches further than any earlier one of its host, namespace, protocol and port.
        ScopeWidened = 4 "scope-widened",
        /// The agent began to number anew.
        AgentStarted = 5 "agent-started",
        /// So it did, under another boot id.
        HostBooted = 6 "host-booted",
    }
}

words! {
    /// What changed.
    pub enum ChangeSubject is "subject of changes", or InvalidChangeSubject {
        /// Listeners.
        Listener = 1 "listener",
        /// Sessions.
        Session = 2 "session",
        /// Agents and their hosts.
        Host = 3 "host",
    }
}

/// The start of an agent or of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStart {
    /// Id of the host.
    pub host_id: HostId,
    /// Name of the host.
    pub host: String,
    /// Whether the host is being heard.
    pub host_state: HostState,
    /// The boot that began or went on.
    pub boot_id: BootId,
}

/// What changed, as it was after (for a closing: before).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// A listener, with the owners that it had then.
    Listener(Box<Listener>),
    /// A session.
    Session(Box<Session>),
    /// An agent or its host.
    Start(HostStart),
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    /// What happened.
    pub kind: ChangeKind,
    /// When. A change of owners that is known as lost happened after it, before the host was observed again.
    pub at: Timestamp,
    /// How that is known.
    pub known: Known,
    /// To what.
    pub what: Changed,
    /// Who held a listener before its owners changed.
    pub owners_before: Vec<Owner>,
    /// How far the port could be reached before its scope widened.
    pub scope_before: Option<Scope>,
}

impl ChangeRecord {
    /// Name of the host.
    pub fn host(&self) -> &str {
        match &self.what {
            Changed::Listener(listener) => &listener.host,
            Changed::Session(session) => &session.host,
            Changed::Start(start) => &start.host,
        }
    }

    /// Id of the host.
    pub fn host_id(&self) -> HostId {
        match &self.what {
            Changed::Listener(listener) => listener.host_id,
            Changed::Session(session) => session.host_id,
            Changed::Start(start) => start.host_id,
        }
    }

    /// Whether the host is being heard.
    pub fn host_state(&self) -> HostState {
        match &self.what {
            Changed::Listener(listener) => listener.host_state,
            Changed::Session(session) => session.host_state,
            Changed::Start(start) => start.host_state,
        }
    }

    /// What sort of thing changed.
    pub fn subject(&self) -> ChangeSubject {
        match &self.what {
            Changed::Listener(_) => ChangeSubject::Listener,
            Changed::Session(_) => ChangeSubject::Session,
            Changed::Start(_) => ChangeSubject::Host,
        }
    }

    /// The owners after the change.
    pub fn owners(&self) -> &[Owner] {
        match &self.what {
            Changed::Listener(listener) => &listener.owners,
            Changed::Session(session) => &session.owners,
            Changed::Start(_) => &[],
        }
    }
}

impl From<ChangeRecord> for wire::ChangeRecord {
    fn from(change: ChangeRecord) -> wire::ChangeRecord {
        use wire::change_record::Subject;
        wire::ChangeRecord {
            kind: change.kind.number(),
            at: Some(change.at.into()),
            known: change.known.number(),
            subject: Some(match change.what {
                Changed::Listener(listener) => Subject::Port((*listener).into()),
                Changed::Session(session) => Subject::Session((*session).into()),
                Changed::Start(start) => Subject::Start(wire::HostStart {
                    host_id: start.host_id.as_bytes().to_vec(),
                    host: start.host,
                    host_state: start.host_state.number(),
                    boot_id: start.boot_id.as_bytes().to_vec(),
                }),
            }),
            owners_before: change.owners_before.into_iter().map(Into::into).collect(),
            scope_before: change.scope_before.map_or(0, Scope::number),
        }
    }
}

impl TryFrom<wire::ChangeRecord> for ChangeRecord {
    type Error = InvalidMessage;

    fn try_from(record: wire::ChangeRecord) -> Result<ChangeRecord, InvalidMessage> {
        use wire::change_record::Subject;
        let subject = record.subject.ok_or_else(|| InvalidMessage::missing("ChangeRecord.subject"))?;
        Ok(ChangeRecord {
            kind: ChangeKind::from_wire("ChangeRecord.kind", record.kind)?,
            at: time::required("ChangeRecord.at", record.at)?,
            known: Known::from_wire("ChangeRecord.known", record.known)?,
            what: match subject {
                Subject::Port(port) => Changed::Listener(Box::new(port.try_into()?)),
                Subject::Session(session) => Changed::Session(Box::new(session.try_into()?)),
                Subject::Start(start) => Changed::Start(HostStart {
                    host_id: HostId::from_wire("HostStart.host_id", &start.host_id)?,
                    host: start.host,
                    host_state: HostState::from_wire("HostStart.host_state", start.host_state)?,
                    boot_id: BootId::from_wire("HostStart.boot_id", &start.boot_id)?,
                }),
            },
            owners_before: record.owners_before.into_iter().map(Owner::try_from).collect::<Result<_, _>>()?,
            scope_before: match record.scope_before {
                0 => None,
                scope => Some(Scope::from_wire("ChangeRecord.scope_before", scope)?),
            },
        })
    }
}
