//! Cuts changes into batches that the server's limits let through, and encodes them.

use std::sync::Arc;

use fleetsock_proto::{
    batch::{
        BATCH_BYTES_AIM, BATCH_BYTES_LIMIT, BATCH_NAMESPACES_LIMIT, BATCH_OWNERS_LIMIT, BATCH_PROCESSES_LIMIT,
        BATCH_SOCKETS_LIMIT, BATCH_STRINGS_LIMIT, BATCH_TEXT_LIMIT, Batch, BatchKind, Change, NamespaceName,
        SOCKET_OWNERS_LIMIT, Socket,
    },
    digest::Digest,
    host::BootId,
    owner::Owner,
    time::Timestamp,
    wire,
};
use foldhash::HashMap;
use prost::Message;

/// Batches that what one walk found is cut into when it is much: their size grows before their number does.
const MANY_BATCHES: usize = 8;
/// Bytes of a row at most: 12 bytes of small enums and counts, cookie 8, namespace 10, two addresses of 16, two ports
/// of 3, two times of 10, two byte counts of 10, with some room.
const ROW_BYTES: usize = 112;
/// Bytes of a reference to an owner at most.
const REFERENCE_BYTES: usize = 3;
/// Bytes of a process at most, its strings aside: pid and uid 5 each, start 10, five references.
const PROCESS_BYTES: usize = 20 + STRINGS * REFERENCE_BYTES;
/// Strings of a process.
const STRINGS: usize = Owner::TEXTS;
/// Bytes of the length and the tag of a string.
const STRING_BYTES: usize = 4;

/// The time that a batch tells of, and the boot in which it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The boot.
    pub boot_id: BootId,
    /// The walk before; not after `until`.
    pub since: Timestamp,
    /// The walk.
    pub until: Timestamp,
}

/// What the changes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// What changed.
    Changes,
    /// Everything that is open.
    Snapshot,
}

/// A batch without its number, as bytes of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it tells.
    pub kind: BatchKind,
    /// How many rows it has.
    pub rows: u32,
    /// The walk before.
    pub since: Timestamp,
    /// The walk.
    pub until: Timestamp,
    /// A `wire::Batch` whose number is not the final one.
    pub body: Vec<u8>,
}

/// Batches in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The batches; none when nothing changed, at least one for a snapshot.
    pub drafts: Vec<Draft>,
    /// Details that were cut off to fit: owners of a socket, ends of texts.
    pub details_lost: u64,
}

/// Packs changes into batches: small ones, and about eight of them where so many changes are small no more.
pub fn pack(content: Content, window: Window, changes: impl IntoIterator<Item = Change>) -> Packed {
    let changes = changes.into_iter();
    let aim = aim(changes.size_hint().0);
    let mut packer = Packer::new(content, window, aim);
    for change in changes {
        packer.add(change);
    }
    packer.finish()
}

impl Packed {
    /// Lets the last batch say what is open after it; one without changes where nothing changed.
    pub fn prove(&mut self, window: Window, digest: &Digest) {
        if self.drafts.is_empty() {
            let mut packer = Packer::new(Content::Changes, window, aim(0));
            packer.close(BatchKind::Changes);
            self.drafts = packer.parts.drafts;
        }
        // What is encoded behind a message is merged into it (Protocol Buffers, encoding, "Last One Wins").
        let proof = wire::Batch { digest: Some(digest.into()), ..wire::Batch::default() };
        if let Some(last) = self.drafts.last_mut() {
            last.body.extend(proof.encode_to_vec());
        }
    }

    /// Lets batches say what network namespaces are called, each at most [`BATCH_NAMESPACES_LIMIT`].
    pub fn name(&mut self, names: &[NamespaceName]) {
        for (draft, names) in self.drafts.iter_mut().zip(names.chunks(BATCH_NAMESPACES_LIMIT)) {
            // As a digest is merged, only that they are added to those before.
            let namespaces = names.iter().map(Into::into).collect();
            draft.body.extend(wire::Batch { namespaces, ..wire::Batch::default() }.encode_to_vec());
        }
    }
}

/// How large the batches of so many changes should become, bytes. The server keeps the room for the largest one of a host,
/// but each costs both sides a write of its own: a busy host is given the room.
fn aim(changes: usize) -> usize {
    (changes.saturating_mul(ROW_BYTES) / MANY_BATCHES).clamp(BATCH_BYTES_AIM, BATCH_BYTES_LIMIT)
}

struct Packer {
    content: Content,
    window: Window,
    aim: usize,
    parts: Packed,
    load: Load,
}

/// What is in the batch that is being filled.
#[derive(Default)]
struct Load {
    changes: Vec<Change>,
    owners: usize,
    /// By their places in memory: comparing texts would cost more than the rest.
    processes: HashMap<usize, Arc<Owner>>,
    bytes: usize,
}

/// What a change adds to a batch.
struct Weight {
    owners: usize,
    processes: usize,
    bytes: usize,
}

impl Load {
    fn weight(&self, socket: &Socket) -> Weight {
        let mut new: Vec<&Arc<Owner>> =
            socket.owners.iter().filter(|owner| !self.processes.contains_key(&place(owner))).collect();
        new.sort_unstable_by_key(|owner| place(owner));
        new.dedup_by_key(|owner| place(owner));
        let texts: usize = new.iter().flat_map(|owner| owner.texts()).map(|text| text.len() + STRING_BYTES).sum();
        let path = socket.path.as_ref().map_or(0, |path| path.len());
        Weight {
            owners: socket.owners.len(),
            processes: new.len(),
            bytes: ROW_BYTES + socket.owners.len() * REFERENCE_BYTES + new.len() * PROCESS_BYTES + texts + path,
        }
    }

    fn has_room_for(&self, weight: &Weight, aim: usize) -> bool {
        let processes = self.processes.len() + weight.processes;
        self.changes.len() < BATCH_SOCKETS_LIMIT
            && self.owners + weight.owners <= BATCH_OWNERS_LIMIT
            && processes <= BATCH_PROCESSES_LIMIT
            // And the empty string.
            && processes * STRINGS < BATCH_STRINGS_LIMIT
            && self.bytes + weight.bytes <= if self.changes.is_empty() { BATCH_BYTES_LIMIT } else { aim }
    }

    fn add(&mut self, weight: &Weight, change: Change) {
        self.owners += weight.owners;
        self.bytes += weight.bytes;
        self.processes.extend(change.socket.owners.iter().map(|owner| (place(owner), Arc::clone(owner))));
        self.changes.push(change);
    }
}

fn place(owner: &Arc<Owner>) -> usize {
    Arc::as_ptr(owner).addr()
}

impl Packer {
    fn new(content: Content, window: Window, aim: usize) -> Packer {
        Packer { content, window, aim, parts: Packed::default(), load: Load::default() }
    }

    fn add(&mut self, mut change: Change) {
        self.parts.details_lost += cut_to_limits(&mut change.socket);
        let mut weight = self.load.weight(&change.socket);
        if !self.load.changes.is_empty() && !self.load.has_room_for(&weight, self.aim) {
            let kind = match self.content {
                Content::Changes => BatchKind::Changes,
                Content::Snapshot if self.parts.drafts.is_empty() => BatchKind::SnapshotBegin,
                Content::Snapshot => BatchKind::SnapshotPart,
            };
            self.close(kind);
            weight = self.load.weight(&change.socket);
        }
        // A single socket whose owners' texts are as long as they can be.
        while !self.load.has_room_for(&weight, self.aim) && change.socket.owners.pop().is_some() {
            self.parts.details_lost += 1;
            weight = self.load.weight(&change.socket);
        }
        self.load.add(&weight, change);
    }

    fn close(&mut self, kind: BatchKind) {
        let Window { boot_id, since, until } = self.window;
        let changes = std::mem::take(&mut self.load).changes;
        let rows = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let (observed_since, observed_until) = (since, until);
        let (digest, namespaces) = (None, Vec::new());
        let batch =
            Batch { epoch: 0, seq: 0, kind, boot_id, observed_since, observed_until, changes, digest, namespaces };
        let body = wire::Batch::from(&batch).encode_to_vec();
        self.parts.drafts.push(Draft { kind, rows, since, until, body });
    }

    fn finish(mut self) -> Packed {
        match self.content {
            Content::Changes if self.load.changes.is_empty() => {}
            Content::Changes => self.close(BatchKind::Changes),
            Content::Snapshot if self.parts.drafts.is_empty() => self.close(BatchKind::SnapshotWhole),
            Content::Snapshot => self.close(BatchKind::SnapshotEnd),
        }
        self.parts
    }
}

/// Shortens what the server would refuse, and tells how often.
fn cut_to_limits(socket: &mut Socket) -> u64 {
    let mut lost = u64::try_from(socket.owners.len().saturating_sub(SOCKET_OWNERS_LIMIT)).unwrap_or(u64::MAX);
    socket.owners.truncate(SOCKET_OWNERS_LIMIT);
    for owner in &mut socket.owners {
        if owner.texts().iter().any(|text| text.len() > BATCH_TEXT_LIMIT) {
            let owner = Arc::make_mut(owner);
            for text in owner.texts_mut() {
                let end = (0..=BATCH_TEXT_LIMIT).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
            }
            lost += 1;
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::stream::{BatchNumber, PackedBatch};
    use fleetsock_proto::{
        batch::{Op, Role},
        socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn window() -> Window {
        Window {
            boot_id: BootId::from_array([7; 16]),
            since: Timestamp::from_micros(1_700_000_000_000_000),
            until: Timestamp::from_micros(1_700_000_001_000_000),
        }
    }

    fn owner(pid: u32, exe: String) -> Arc<Owner> {
        let text = |name: &str| format!("{name}{pid}");
        let [process, user, container, unit, command_line] = ["p", "u", "c", "s", "l"].map(text);
        let started_at = Some(window().since);
        Arc::new(Owner { pid, started_at, process, exe, uid: pid, user, container, unit, command_line })
    }

    /// As wide as a row can be: IPv6, far times, all numbers long.
    fn change(cookie: u64, owners: Vec<Arc<Owner>>) -> Change {
        let peer = "[2001:db8::ffff]:65535".parse().unwrap();
        let socket = Socket {
            key: SocketKey { netns: u64::MAX, cookie },
            protocol: Protocol::Tcp,
            family: Family::Ipv6,
            state: SocketState::Established,
            local: "[2001:db8::1]:65535".parse().unwrap(),
            path: None,
            role: Role::Session { direction: Direction::Out, peer },
            opened_at: Timestamp::MIN,
            opened_known: Known::FirstSeen,
            owner_known: OwnerKnown::Exact,
            owners,
            bytes_sent: u64::MAX,
            bytes_received: u64::MAX,
        };
        Change { op: Op::Closed { at: Timestamp::MAX, known: Known::BetweenWalks }, socket }
    }

    fn read(packed: &Packed) -> Vec<Batch> {
        (1..)
            .zip(&packed.drafts)
            .map(|(seq, draft)| {
                let number = BatchNumber { epoch: 1, seq };
                PackedBatch::new(number, draft.since, draft.body.clone()).unpack().unwrap()
            })
            .collect()
    }

    #[test]
    fn nothing_changed_is_no_batch_and_nothing_open_is_a_snapshot() {
        assert_eq!(pack(Content::Changes, window(), []), Packed::default());
        let packed = pack(Content::Snapshot, window(), []);
        assert_eq!(read(&packed).iter().map(|batch| batch.kind).collect::<Vec<_>>(), [BatchKind::SnapshotWhole]);
    }

    #[test]
    fn what_is_open_after_them_is_said_by_the_last_batch_and_by_one_of_its_own_when_nothing_changed() {
        let open: Vec<Change> = (0..10_000).map(|cookie| change(cookie, Vec::new())).collect();
        let digest: Digest = open.iter().map(|change| &change.socket).collect();
        for content in [Content::Changes, Content::Snapshot] {
            let mut packed = pack(content, window(), open.clone());
            let without = read(&packed);
            packed.prove(window(), &digest);
            let proved = read(&packed);
            let (last, others) = proved.split_last().unwrap();
            assert!(!others.is_empty() && others.iter().all(|batch| batch.digest.is_none()));
            assert_eq!(last.digest, Some(digest));
            assert_eq!(last.changes, without.last().unwrap().changes);
        }
        let mut nothing = pack(Content::Changes, window(), []);
        nothing.prove(window(), &digest);
        let [batch] = &read(&nothing)[..] else { panic!("{nothing:?}") };
        assert_eq!((batch.kind, &batch.changes[..], batch.digest), (BatchKind::Changes, &[][..], Some(digest)));
    }

    #[test]
    fn a_large_snapshot_has_one_beginning_and_one_end() {
        let packed = pack(Content::Snapshot, window(), (0..10_000).map(|cookie| change(cookie, Vec::new())));
        let kinds: Vec<BatchKind> = packed.drafts.iter().map(|draft| draft.kind).collect();
        let (first, rest) = kinds.split_first().unwrap();
        let (last, parts) = rest.split_last().unwrap();
        assert_eq!((*first, *last), (BatchKind::SnapshotBegin, BatchKind::SnapshotEnd));
        assert!(!parts.is_empty() && parts.iter().all(|kind| *kind == BatchKind::SnapshotPart));
        let rows: u32 = packed.drafts.iter().map(|draft| draft.rows).sum();
        assert_eq!(rows, 10_000);
    }

    #[test]
    fn few_changes_make_small_batches_and_many_make_few_large_ones() {
        let largest = |packed: &Packed| packed.drafts.iter().map(|draft| draft.body.len()).max().unwrap();
        let changes = |count| (0..count).map(|cookie| change(cookie, Vec::new()));
        let few = pack(Content::Changes, window(), changes(300));
        assert!(largest(&few) <= BATCH_BYTES_AIM && few.drafts.len() > 2, "{}", largest(&few));
        let many = pack(Content::Changes, window(), changes(4000));
        assert!(largest(&many) > BATCH_BYTES_AIM && many.drafts.len() <= MANY_BATCHES + 1, "{}", many.drafts.len());
        let most = pack(Content::Changes, window(), changes(40_000));
        assert!(largest(&most) <= BATCH_BYTES_LIMIT && most.drafts.len() > MANY_BATCHES, "{}", most.drafts.len());
    }

    #[test]
    fn texts_and_owners_that_the_server_would_refuse_are_cut_and_counted() {
        let long = "/".to_owned() + &"\u{e9}".repeat(3000);
        let owners = (0..70).map(|pid| owner(pid, if pid == 0 { long.clone() } else { String::new() })).collect();
        let packed = pack(Content::Changes, window(), [change(1, owners)]);
        assert_eq!(packed.details_lost, 7);
        let batches = read(&packed);
        let owners = &batches[0].changes[0].socket.owners;
        assert_eq!((owners.len(), owners[0].exe.len()), (SOCKET_OWNERS_LIMIT, BATCH_TEXT_LIMIT - 1));
    }

    #[test]
    fn a_socket_whose_owners_do_not_fit_into_a_batch_is_told_with_fewer_of_them() {
        let owners = (0..64).map(|pid| owner(pid, format!("{pid}{}", "x".repeat(4000)))).collect();
        let packed = pack(Content::Changes, window(), [change(1, Vec::new()), change(2, owners)]);
        assert!(packed.details_lost > 0);
        assert!(packed.drafts.iter().all(|draft| draft.body.len() <= BATCH_BYTES_LIMIT));
        let batches = read(&packed);
        let kept = batches[1].changes[0].socket.owners.len();
        assert_eq!(kept as u64 + packed.details_lost, 64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn batches_fit_and_say_together_what_was_packed(
            sockets in vec((any::<u64>(), vec((0..3000_u32, 0..40_usize), 0..8)), 0..2500),
            repeated in 0..3_usize,
        ) {
            let changes: Vec<Change> = sockets
                .iter()
                .map(|(cookie, owners)| {
                    let owners =
                        owners.iter().map(|(pid, length)| owner(*pid, "x".repeat(length * 10 * repeated))).collect();
                    change(*cookie, owners)
                })
                .collect();
            let packed = pack(Content::Changes, window(), changes.clone());
            prop_assert!(packed.drafts.iter().all(|draft| draft.body.len() <= BATCH_BYTES_LIMIT));
            let told: Vec<Change> = read(&packed).into_iter().flat_map(|batch| batch.changes).collect();
            prop_assert_eq!(packed.details_lost, 0);
            prop_assert_eq!(told, changes);
        }
    }
}
