//! What changed, by the plainest means: every end of every life.

use fleetsock_proto::{
    address::Scope,
    change::{ChangeKind, ChangeRecord, Changed, HostStart},
    host::HostState,
    socket::Known,
    time::Timestamp,
};

use super::{Expected, Life, is_session};

fn record(kind: ChangeKind, (at, known): (Timestamp, Known), what: Changed) -> ChangeRecord {
    ChangeRecord { kind, at, known, what, owners_before: Vec::new(), scope_before: None }
}

impl Expected {
    /// Every change that there ever was.
    pub(crate) fn changes(&self) -> Vec<ChangeRecord> {
        let mut all: Vec<ChangeRecord> = self.starts.iter().map(|start| self.start(*start)).collect();
        for life in &self.lives {
            if is_session(&life.socket) {
                all.extend(self.ends_of_session(life));
            } else {
                all.extend(self.changes_of_listener(life));
            }
        }
        all
    }

    fn start(&self, (at, boot_id, rebooted): (Timestamp, fleetsock_proto::host::BootId, bool)) -> ChangeRecord {
        let kind = if rebooted { ChangeKind::HostBooted } else { ChangeKind::AgentStarted };
        let start = HostStart { host_id: self.id, host: self.name.clone(), host_state: HostState::Online, boot_id };
        record(kind, (at, Known::FirstSeen), Changed::Start(start))
    }

    fn ends_of_session(&self, life: &Life) -> Vec<ChangeRecord> {
        let Some(session) = self.session(life) else { return Vec::new() };
        let what = || Changed::Session(Box::new(session.clone()));
        let opened = record(ChangeKind::Opened, (session.opened_at, session.opened_known), what());
        let closed = session.closed.map(|closed| record(ChangeKind::Closed, closed, what()));
        std::iter::once(opened).chain(closed).collect()
    }

    fn changes_of_listener(&self, life: &Life) -> Vec<ChangeRecord> {
        let held_by = |holders| Changed::Listener(Box::new(self.listener(life, holders)));
        let first = || held_by(life.holders(Some(Timestamp::MIN)));
        let opening = (life.socket.opened_at, life.socket.opened_known);
        let mut all = vec![record(ChangeKind::Opened, opening, first())];
        if let Some(before) = self.scope_before(life).filter(|before| *before < Scope::of(life.socket.local.ip())) {
            let widened = record(ChangeKind::ScopeWidened, opening, first());
            all.push(ChangeRecord { scope_before: Some(before), ..widened });
        }
        for change in &life.owner_changes {
            let owners_before = change.before.1.iter().map(|owner| owner.as_ref().clone()).collect();
            let when = (change.at, change.known);
            let changed = record(ChangeKind::OwnerChanged, when, held_by(change.after.clone()));
            all.push(ChangeRecord { owners_before, ..changed });
        }
        all.extend(life.closed.map(|closed| record(ChangeKind::Closed, closed, held_by(life.holders(None)))));
        all
    }

    /// The widest scope of those that opened on the same port earlier.
    fn scope_before(&self, life: &Life) -> Option<Scope> {
        let port = |life: &Life| (life.socket.key.netns, life.socket.protocol, life.socket.local.port());
        let is_earlier = |other: &&Life| {
            !is_session(&other.socket) && port(other) == port(life) && other.socket.opened_at < life.socket.opened_at
        };
        self.lives.iter().filter(is_earlier).map(|other| Scope::of(other.socket.local.ip())).max()
    }
}

/// What makes two things alike, and when they were there.
fn likeness(change: &ChangeRecord) -> Option<(String, Timestamp, Option<Timestamp>)> {
    match &change.what {
        Changed::Listener(row) => Some((
            format!("{} {} {} {}", row.host, row.protocol, row.address, row.port),
            row.opened_at,
            row.closed.map(|(at, _)| at),
        )),
        Changed::Session(row) => Some((
            format!("{} {} {} {} {}", row.host, row.direction, row.peer.ip(), row.protocol, row.service_port()),
            row.opened_at,
            row.closed.map(|(at, _)| at),
        )),
        Changed::Start(_) => None,
    }
}

/// The openings within a window of which nothing alike was there since the baseline began.
pub(crate) fn news(
    all: &[ChangeRecord],
    baseline: Timestamp,
    since: Timestamp,
    until: Timestamp,
) -> Vec<&ChangeRecord> {
    let openings = || all.iter().filter(|change| change.kind == ChangeKind::Opened);
    let is_new = |change: &&ChangeRecord| {
        let Some((what, opened_at, _)) = likeness(change) else { return false };
        let was_there = |(other, opened, closed): (String, Timestamp, Option<Timestamp>)| {
            other == what && opened < opened_at && closed.is_none_or(|closed| closed >= baseline)
        };
        since <= opened_at && opened_at <= until && !openings().filter_map(likeness).any(was_there)
    };
    openings().filter(is_new).collect()
}
