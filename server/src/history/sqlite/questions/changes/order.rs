//! The order of changes: by time, and at the same moment in an order that is the same each time.

use std::cmp::Ordering;

use fleetsock_proto::{
    change::{ChangeKind, ChangeRecord},
    host::HostId,
};

use super::source::Page;

/// Where a change stands among those of its moment: the later kind first, then by host, then by what the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    kind: u8,
    host: HostId,
    row: (i64, i64),
}

impl Order {
    pub(super) fn of(change: &ChangeRecord, row: (i64, i64)) -> Order {
        let kind = match change.kind {
            ChangeKind::HostBooted | ChangeKind::AgentStarted => 0,
            ChangeKind::Opened => 1,
            ChangeKind::ScopeWidened => 2,
            ChangeKind::OwnerChanged => 3,
            ChangeKind::Closed => 4,
        };
        Order { kind, host: change.host_id(), row }
    }
}

/// Changes in the order of the answer, or a page of them that was not read yet: the greatest comes first.
pub(super) struct Next {
    pub(super) at: i64,
    pub(super) what: What,
}

pub(super) enum What {
    Change(Order, Box<ChangeRecord>),
    Page(Page),
}

impl PartialEq for Next {
    fn eq(&self, other: &Next) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Next) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Next) -> Ordering {
        // At the same moment a page comes before a change: it may hold changes of that moment.
        self.at.cmp(&other.at).then_with(|| match (&self.what, &other.what) {
            (What::Page(_), What::Page(_)) => Ordering::Equal,
            (What::Page(_), What::Change(..)) => Ordering::Greater,
            (What::Change(..), What::Page(_)) => Ordering::Less,
            (What::Change(one, _), What::Change(other, _)) => one.cmp(other),
        })
    }
}
