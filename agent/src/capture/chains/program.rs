//! What the kernel does for a group of chains of its table of TCP connections: the program, assembled for this kernel.
//!
//! In C it would be (`READ` is `bpf_probe_read_kernel`; `AS` is `bpf_rdonly_cast`, after which the kernel's machine reads
//! nought where there is no memory):
//!
//! ```c
//! int each(struct bpf_iter__bpf_map_elem *context) {
//!     struct net *net = READ(bpf_get_current_task_btf()->nsproxy->net_ns);
//!     struct inet_hashinfo *table = READ(net->ipv4.tcp_death_row.hashinfo);
//!     u64 begin = *(u32 *)context->key * GROUP, mask = READ(table->ehash_mask);
//!     if (begin > mask)
//!         return 0;
//!     if (mask >= entries || READ(net->ns.inum) != netns)
//!         goto doubtful;
//!     for (bucket = table->ehash + begin; bucket < table->ehash + begin + GROUP; bucket++) {
//!         for (node = bucket->chain.first; !(node & 1); node = node->next) {
//!             if (!node)
//!                 goto doubtful;
//!             struct sock *sk = AS(struct sock, node - offsetof(struct sock, sk_nulls_node));
//!             struct record record = {sk->sk_cookie};
//!             if (!(1 << sk->sk_state & CONNECTED) || sk->sk_net.net != net)
//!                 continue;
//!             record.inode = sk->sk_ino, ...;
//!             if (!record.cookie || sk->sk_cookie != record.cookie)
//!                 goto doubtful;
//!             bpf_seq_write(context->meta->seq, &record, sizeof(record));
//!         }
//!         if (node >> 1 != bucket - table->ehash)
//!             goto doubtful;
//!     }
//!     return 0;
//! doubtful:
//!     bpf_seq_write(context->meta->seq, &nothing, sizeof(nothing));
//!     return 0;
//! }
//! ```
//!
//! It takes no lock and holds no socket: the program runs in one grace period of RCU, and the memory of a TCP socket stays
//! one for TCP sockets (SLAB_TYPESAFE_BY_RCU). A socket that ended can become another one under its eyes. So the cookie, which
//! is never used again, is read before and after the rest, and a chain must end in its own end, which has its number: else the
//! program was led away to another chain. Processors that order reads weakly leave a window of nanoseconds in that.

use super::{
    super::diag::{AF_INET, AF_INET6, CONNECTED_STATES},
    record::RECORD_BYTES,
};
use crate::kernel::{
    assembly::{
        END, Label, Register, SEQ_WRITE, Step, add, assemble, call, call_kernel, copy, difference, end_if_zero, go,
        go_if, go_if_endless, go_unless, go_unless_less, go_unless_same, load, load_byte, load_half, load_word, mask,
        near, set, shift, shift_left, shift_right, store, store_half, store_word, sum,
    },
    bpf::Instruction,
    btf::{Btf, InvalidBtf, TypeId},
};

/// Stands for going through a map (kernel/bpf/map_iter.c of the kernel).
const ITERATOR: &str = "bpf_iter_bpf_map_elem";
/// Chains of one run. What a run writes must fit into what the kernel has for a reading (32 KiB, some 450 sockets).
pub(super) const GROUP: u32 = 16;
/// Bytes of the head of a chain, `struct inet_ehash_bucket`.
const HEAD_BYTES: u32 = 8;

// Functions of include/uapi/linux/bpf.h.
const PROBE_READ_KERNEL: i32 = 113;
const GET_CURRENT_TASK_BTF: i32 = 158;

// The stack, in bytes below its end.
const CONTEXT: i16 = -8;
const NET: i16 = -16;
const HEADS: i16 = -24;
const SCRATCH: i16 = -32;
const RECORD: i16 = -104;

// Places in the program.
const CHAIN: Label = Label(0);
const NODE: Label = Label(1);
const NEXT: Label = Label(2);
const CHAIN_END: Label = Label(3);
const IPV4: Label = Label(4);
const WRITE: Label = Label(5);
const DOUBTFUL: Label = Label(6);

/// Where in this kernel's memory is what the program reads: bytes from the start of each struct. Types by their numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// The iterator's function.
    pub(super) function: TypeId,
    meta: i16,
    key: i16,
    seq: i16,
    cast: i32,
    sock: i32,
    /// Any struct that begins with two numbers of eight bytes.
    numbers: i32,
    nsproxy: i32,
    net_ns: i32,
    inum: i32,
    table: i32,
    heads: i32,
    heads_mask: i32,
    node: i32,
    v6_local: i32,
    v6_peer: i32,
    v4_local: i16,
    v4_peer: i16,
    state: i16,
    net: i16,
    cookie: i16,
    inode: i16,
    uid: i16,
    local_port: i16,
    peer_port: i16,
    family: i16,
    cgroup: i16,
    cgroup_node: i16,
    cgroup_id: i16,
}

impl Layout {
    /// As the kernel says.
    pub(super) fn of(btf: &Btf<'_>) -> Result<Layout, InvalidBtf> {
        let function = btf.function(ITERATOR)?;
        let argument = |name: &'static str| -> Result<i16, InvalidBtf> {
            near(btf.parameter(function, name)?.0 * size_of::<u64>(), name)
        };
        let far = |of: &'static str, name: &'static str| -> Result<i32, InvalidBtf> {
            let offset = btf.field(btf.structure(of)?, name)?.offset;
            i32::try_from(offset).map_err(|_| InvalidBtf::Absent(name))
        };
        let field = |of, name| near(far(of, name)?, name);
        let id = |TypeId(id): TypeId, name| i32::try_from(id).map_err(|_| InvalidBtf::Absent(name));
        let structure = |name| id(btf.structure(name)?, name);
        if btf.size(btf.structure("inet_ehash_bucket")?) != Some(HEAD_BYTES) {
            return Err(InvalidBtf::Absent("inet_ehash_bucket"));
        }
        let cgroup = far("sock", "sk_cgrp_data")? + far("sock_cgroup_data", "cgroup")?;
        Ok(Layout {
            function,
            meta: argument("meta")?,
            key: argument("key")?,
            seq: field("bpf_iter_meta", "seq")?,
            cast: id(btf.function("bpf_rdonly_cast")?, "bpf_rdonly_cast")?,
            sock: structure("sock")?,
            numbers: structure("timespec64")?,
            nsproxy: far("task_struct", "nsproxy")?,
            net_ns: far("nsproxy", "net_ns")?,
            inum: far("net", "ns")? + far("ns_common", "inum")?,
            table: far("net", "ipv4")?
                + far("netns_ipv4", "tcp_death_row")?
                + far("inet_timewait_death_row", "hashinfo")?,
            heads: far("inet_hashinfo", "ehash")?,
            heads_mask: far("inet_hashinfo", "ehash_mask")?,
            node: far("sock_common", "skc_nulls_node")?,
            v6_local: far("sock_common", "skc_v6_rcv_saddr")?,
            v6_peer: far("sock_common", "skc_v6_daddr")?,
            v4_local: field("sock_common", "skc_rcv_saddr")?,
            v4_peer: field("sock_common", "skc_daddr")?,
            state: field("sock_common", "skc_state")?,
            net: field("sock_common", "skc_net")?,
            cookie: field("sock_common", "skc_cookie")?,
            inode: field("sock", "sk_ino")?,
            uid: field("sock", "sk_uid")?,
            local_port: field("sock_common", "skc_num")?,
            peer_port: field("sock_common", "skc_dport")?,
            family: field("sock_common", "skc_family")?,
            cgroup: near(cgroup, "sk_cgrp_data")?,
            cgroup_node: field("cgroup", "kn")?,
            cgroup_id: field("kernfs_node", "id")?,
        })
    }

    /// The program for a table of at most `entries` chains and for sockets of the network namespace with this inode.
    pub(super) fn program(&self, entries: i32, netns: u32) -> Vec<Instruction> {
        let steps = [self.find_group(entries, netns), self.go_through(), self.tell(), self.end()];
        assemble(&steps.concat())
    }

    /// From the calling thread's network namespace to the group's chains: the first one in Kept2, the end in Kept4.
    fn find_group(&self, entries: i32, netns: u32) -> Vec<Step> {
        use Register::{Argument1, Argument2, Argument3, Frame, Kept2, Kept3, Kept4, Outcome};
        let group_bytes = (GROUP * HEAD_BYTES).cast_signed();
        let mut steps = vec![
            store(Frame, CONTEXT, Argument1),
            load(Argument1, Argument1, self.key),
            // There is none when everything has been gone through.
            end_if_zero(Argument1),
            load_word(Kept2, Argument1, 0),
            set(Argument1, 0),
        ];
        steps.extend((0..9).map(|word| store(Frame, RECORD + 8 * word, Argument1)));
        steps.push(call(GET_CURRENT_TASK_BTF));
        steps.extend([copy(Argument3, Outcome), add(Argument3, self.nsproxy)]);
        steps.extend(read(8));
        steps.extend([load(Argument3, Frame, SCRATCH), add(Argument3, self.net_ns)]);
        steps.extend(read(8));
        steps.extend([load(Kept3, Frame, SCRATCH), store(Frame, NET, Kept3)]);
        steps.extend([copy(Argument3, Kept3), add(Argument3, self.inum)]);
        steps.extend(read(4));
        steps.extend([
            load_word(Argument1, Frame, SCRATCH),
            set(Argument2, netns.cast_signed()),
            shift_left(Argument2, 32),
            shift_right(Argument2, 32),
            go_unless_same(Argument1, Argument2, DOUBTFUL),
            copy(Argument3, Kept3),
            add(Argument3, self.table),
        ]);
        steps.extend(read(8));
        steps.extend([load(Kept3, Frame, SCRATCH), copy(Argument3, Kept3), add(Argument3, self.heads)]);
        steps.extend(read(8));
        steps.extend([load(Argument1, Frame, SCRATCH), store(Frame, HEADS, Argument1)]);
        steps.extend([copy(Argument3, Kept3), add(Argument3, self.heads_mask)]);
        steps.extend(read(4));
        steps.extend([
            load_word(Argument1, Frame, SCRATCH),
            set(Argument2, entries),
            go_unless_less(Argument1, Argument2, DOUBTFUL),
            shift_left(Kept2, GROUP.ilog2().cast_signed()),
            add(Argument1, 1),
            go_unless_less(Kept2, Argument1, END),
            shift_left(Kept2, HEAD_BYTES.ilog2().cast_signed()),
            load(Argument1, Frame, HEADS),
            sum(Kept2, Argument1),
            copy(Kept4, Kept2),
            add(Kept4, group_bytes),
        ]);
        steps
    }

    /// Chain by chain, node by node (Kept3): those of a connection of the namespace go on with what follows, in Kept1.
    fn go_through(&self) -> Vec<Step> {
        use Register::{Argument1, Argument2, Frame, Kept1, Kept2, Kept3, Kept4, Outcome};
        let mut steps = vec![Step::Here(CHAIN), go_if_endless(DOUBTFUL), go_unless_less(Kept2, Kept4, END)];
        steps.extend([copy(Argument1, Kept2), add(Kept2, HEAD_BYTES.cast_signed())]);
        steps.extend(self.seen_as(self.numbers));
        steps.extend([
            load(Kept3, Outcome, 0),
            Step::Here(NODE),
            go_if_endless(DOUBTFUL),
            copy(Argument1, Kept3),
            mask(Argument1, 1),
            go_unless(Argument1, 0, CHAIN_END),
            go_if(Kept3, 0, DOUBTFUL),
            copy(Argument1, Kept3),
            add(Argument1, -self.node),
        ]);
        steps.extend(self.seen_as(self.sock));
        steps.extend([
            copy(Kept1, Outcome),
            // Before everything else: it tells whether all of it is of one socket.
            load(Argument1, Kept1, self.cookie),
            store(Frame, RECORD, Argument1),
            load_byte(Argument1, Kept1, self.state),
            store_word(Frame, RECORD + 32, Argument1),
            set(Argument2, 1),
            shift(Argument2, Argument1),
            mask(Argument2, CONNECTED_STATES.cast_signed()),
            go_if(Argument2, 0, NEXT),
            load(Argument1, Kept1, self.net),
            load(Argument2, Frame, NET),
            go_unless_same(Argument1, Argument2, NEXT),
        ]);
        steps
    }

    /// Writes the record of a socket, and goes on with the next.
    fn tell(&self) -> Vec<Step> {
        use Register::{Argument1, Argument2, Frame, Kept1};
        let mut steps = vec![
            load(Argument1, Frame, RECORD),
            go_if(Argument1, 0, DOUBTFUL),
            load(Argument1, Kept1, self.inode),
            store(Frame, RECORD + 8, Argument1),
            load(Argument1, Kept1, self.cgroup),
            load(Argument1, Argument1, self.cgroup_node),
            load(Argument1, Argument1, self.cgroup_id),
            store(Frame, RECORD + 16, Argument1),
            load_word(Argument1, Kept1, self.uid),
            store_word(Frame, RECORD + 24, Argument1),
            load_half(Argument1, Kept1, self.local_port),
            store_half(Frame, RECORD + 28, Argument1),
            load_half(Argument1, Kept1, self.peer_port),
            store_half(Frame, RECORD + 30, Argument1),
            load_half(Argument1, Kept1, self.family),
            store_word(Frame, RECORD + 36, Argument1),
            go_if(Argument1, AF_INET.into(), IPV4),
            go_unless(Argument1, AF_INET6.into(), DOUBTFUL),
        ];
        steps.extend(self.copy_address(self.v6_local, RECORD + 40));
        steps.extend(self.copy_address(self.v6_peer, RECORD + 56));
        steps.extend([
            go(WRITE),
            Step::Here(IPV4),
            load_word(Argument1, Kept1, self.v4_local),
            store_word(Frame, RECORD + 40, Argument1),
            load_word(Argument1, Kept1, self.v4_peer),
            store_word(Frame, RECORD + 56, Argument1),
            Step::Here(WRITE),
            load(Argument1, Kept1, self.cookie),
            load(Argument2, Frame, RECORD),
            go_unless_same(Argument1, Argument2, DOUBTFUL),
        ]);
        steps.extend(self.write());
        steps
    }

    /// The next node; the end of a chain; and what is written when something is doubtful.
    fn end(&self) -> Vec<Step> {
        use Register::{Argument1, Argument2, Frame, Kept2, Kept3, Outcome};
        let mut steps = vec![Step::Here(NEXT), copy(Argument1, Kept3)];
        steps.extend(self.seen_as(self.numbers));
        steps.extend([
            load(Kept3, Outcome, 0),
            go(NODE),
            Step::Here(CHAIN_END),
            copy(Argument1, Kept2),
            add(Argument1, -HEAD_BYTES.cast_signed()),
            load(Argument2, Frame, HEADS),
            difference(Argument1, Argument2),
            shift_right(Argument1, HEAD_BYTES.ilog2().cast_signed()),
            shift_right(Kept3, 1),
            go_unless_same(Argument1, Kept3, DOUBTFUL),
            go(CHAIN),
            Step::Here(DOUBTFUL),
            set(Argument1, 0),
            store(Frame, RECORD, Argument1),
        ]);
        steps.extend(self.write());
        steps
    }

    /// Writes the record.
    fn write(&self) -> [Step; 7] {
        use Register::{Argument1, Argument2, Argument3, Frame};
        [
            load(Argument1, Frame, CONTEXT),
            load(Argument1, Argument1, self.meta),
            load(Argument1, Argument1, self.seq),
            copy(Argument2, Frame),
            add(Argument2, RECORD.into()),
            set(Argument3, RECORD_BYTES as i32),
            call(SEQ_WRITE),
        ]
    }

    /// What the address in Argument1 is the beginning of, as a struct of this type: in Outcome.
    fn seen_as(&self, kind: i32) -> [Step; 2] {
        [set(Register::Argument2, kind), call_kernel(self.cast)]
    }

    /// Copies 16 bytes of the socket of the node in Kept3 to the record.
    fn copy_address(&self, offset: i32, to: i16) -> Vec<Step> {
        use Register::{Argument1, Frame, Kept3, Outcome};
        let mut steps = vec![copy(Argument1, Kept3), add(Argument1, offset - self.node)];
        steps.extend(self.seen_as(self.numbers));
        steps.extend([load(Argument1, Outcome, 0), store(Frame, to, Argument1)]);
        steps.extend([load(Argument1, Outcome, 8), store(Frame, to + 8, Argument1)]);
        steps
    }
}

/// Reads so many bytes at the address in Argument3 into the scratch.
fn read(bytes: i32) -> [Step; 4] {
    use Register::{Argument1, Argument2, Frame};
    [copy(Argument1, Frame), add(Argument1, SCRATCH.into()), set(Argument2, bytes), call(PROBE_READ_KERNEL)]
}
