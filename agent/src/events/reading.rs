//! Bytes of a ring or of a page as records. Pure: whatever the bytes are, the outcome is records and counts.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use fleetsock_proto::socket::{Family, SocketState};

use super::{
    Drained,
    page::{Entries, Entry},
    record::{Actor, Record, SocketEvent, What},
    tracepoint::{DestroyFormat, EndsFormat, Field, StateFormat},
};
use crate::kernel::bytes::{at, u16_at, u32_at, u64_at};

// Numbers of include/uapi/linux/perf_event.h.
const LOST: u32 = 2;
const COMM: u32 = 3;
const EXIT: u32 = 4;
const FORK: u32 = 7;
const SAMPLE: u32 = 9;
const LOST_SAMPLES: u32 = 13;
const MISC_COMM_EXEC: u16 = 1 << 13;
/// Type, misc and size of every record.
const HEADER: usize = 8;
/// Thread and time behind every record that is no sample.
const TRAILER: usize = 16;
/// common_flags: the record was written in a hard or soft interrupt, and the current task is a stranger
/// (TRACE_FLAG_HARDIRQ, TRACE_FLAG_SOFTIRQ of include/linux/trace_events.h).
const IN_INTERRUPT: u8 = 0x18;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
/// Bytes of a process's name at most (TASK_COMM_LEN less the zero): more is not from the kernel.
const NAME_LIMIT: usize = 15;
/// The state of a socket that is no more, or not yet (TCP_CLOSE).
const CLOSE: i32 = 7;

/// Where the fields are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Formats {
    pub(super) state: StateFormat,
    pub(super) destroy: DestroyFormat,
}

/// Whether it is told which threads there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    Told,
    LeftOut,
}

/// Reads a page of a trace buffer and adds its records to `drained`. Entries know the thread that wrote them.
pub(super) fn read_page(page: &[u8], formats: &Formats, drained: &mut Drained) {
    let Ok(entries) = Entries::of(page) else {
        drained.unreadable += 1;
        return;
    };
    drained.lost = drained.lost.saturating_add(entries.missed());
    for entry in entries {
        match entry.map_or(Parsed::Unreadable, |Entry { at_ns, data }| socket(data, at_ns, Actor::Thread, formats)) {
            Parsed::Record(record) => drained.records.push(record),
            Parsed::Nothing => {}
            Parsed::Unreadable => drained.unreadable += 1,
        }
    }
}

/// Reads the records of a ring and adds them to `drained`.
pub(super) fn read(mut bytes: &[u8], formats: &Formats, threads: Threads, drained: &mut Drained) {
    while !bytes.is_empty() {
        let Some((kind, misc, size)) = header(bytes) else {
            // Where the next record begins is not known.
            drained.unreadable += 1;
            return;
        };
        let (record, rest) = bytes.split_at(size);
        bytes = rest;
        let body = &record[HEADER..];
        match kind {
            LOST => drained.lost = drained.lost.saturating_add(u64_at(body, 8).unwrap_or(1)),
            LOST_SAMPLES => drained.lost = drained.lost.saturating_add(u64_at(body, 0).unwrap_or(1)),
            _ => match parse(kind, misc, body, formats, threads) {
                Parsed::Record(record) => drained.records.push(record),
                Parsed::Nothing => {}
                Parsed::Unreadable => drained.unreadable += 1,
            },
        }
    }
}

enum Parsed {
    Record(Record),
    /// Nothing that matters here.
    Nothing,
    Unreadable,
}

fn header(bytes: &[u8]) -> Option<(u32, u16, usize)> {
    let (kind, misc, size) = (u32_at(bytes, 0)?, u16_at(bytes, 4)?, usize::from(u16_at(bytes, 6)?));
    (HEADER..=bytes.len()).contains(&size).then_some((kind, misc, size))
}

fn parse(kind: u32, misc: u16, body: &[u8], formats: &Formats, threads: Threads) -> Parsed {
    let found = match kind {
        SAMPLE => return sample(body, formats),
        // A thread's own name is not its process's.
        COMM if u32_at(body, 0) != u32_at(body, 4) => return Parsed::Nothing,
        COMM => named(body, misc),
        // Threads of a process come and go as well; only the first one is the process.
        FORK | EXIT if u32_at(body, 0) != u32_at(body, 8) => match (threads, kind) {
            (Threads::LeftOut, _) => return Parsed::Nothing,
            (Threads::Told, FORK) => life(body, |pid, _, thread| What::ThreadBegan { thread, pid }),
            (Threads::Told, _) => life(body, |_, _, thread| What::ThreadEnded { thread }),
        },
        FORK => life(body, |pid, parent, _| What::Forked { pid, parent }),
        EXIT => life(body, |pid, _, _| What::Exited { pid }),
        _ => return Parsed::Nothing,
    };
    found.map_or(Parsed::Unreadable, Parsed::Record)
}

/// pid, parent's pid, thread, parent's thread, time.
fn life(body: &[u8], what: impl FnOnce(u32, u32, u32) -> What) -> Option<Record> {
    Some(Record { at_ns: u64_at(body, 16)?, what: what(u32_at(body, 0)?, u32_at(body, 4)?, u32_at(body, 8)?) })
}

/// pid, thread, name with zeros behind it; then the trailer with the time.
fn named(body: &[u8], misc: u16) -> Option<Record> {
    let trailer = body.len().checked_sub(TRAILER).filter(|trailer| *trailer >= 8)?;
    let at_ns = u64_at(body, trailer + 8)?;
    let name = body[8..trailer].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(&name[..name.len().min(NAME_LIMIT)]).into_owned();
    Some(Record { at_ns, what: What::Named { pid: u32_at(body, 0)?, name, exec: misc & MISC_COMM_EXEC != 0 } })
}

/// pid, thread, time, size of the tracepoint's record, and that.
fn sample(body: &[u8], formats: &Formats) -> Parsed {
    let parts = || {
        let (pid, at_ns, size) = (u32_at(body, 0)?, u64_at(body, 8)?, u32_at(body, 16)?);
        Some((pid, at_ns, body.get(20..20 + usize::try_from(size).ok()?)?))
    };
    let Some((pid, at_ns, raw)) = parts() else { return Parsed::Unreadable };
    socket(raw, at_ns, |_| Actor::Process(pid), formats)
}

/// What a tracepoint wrote. Its own number of whoever did it is a thread's.
fn socket(raw: &[u8], at_ns: u64, actor: impl FnOnce(u32) -> Actor, formats: &Formats) -> Parsed {
    let Some(id) = u16_at(raw, 0).map(u64::from) else { return Parsed::Unreadable };
    let what = if id == formats.state.id {
        let format = &formats.state;
        match number::<2>(raw, format.protocol).map(u16::from_ne_bytes) {
            Some(IPPROTO_TCP) => state(raw, format, actor),
            // SCTP and MPTCP are told by the same tracepoint.
            Some(_) => return Parsed::Nothing,
            None => None,
        }
    } else if id == formats.destroy.id {
        destroyed(raw, &formats.destroy, actor)
    } else {
        return Parsed::Nothing;
    };
    what.map_or(Parsed::Unreadable, |what| Parsed::Record(Record { at_ns, what }))
}

fn state(raw: &[u8], format: &StateFormat, actor: impl FnOnce(u32) -> Actor) -> Option<What> {
    let word = |field| number::<4>(raw, field).map(i32::from_ne_bytes);
    let event = socket_event(raw, format.socket, &format.ends, actor)?;
    Some(What::State { event, old: socket_state(word(format.old)?)?, new: socket_state(word(format.new)?)? })
}

fn destroyed(raw: &[u8], format: &DestroyFormat, actor: impl FnOnce(u32) -> Actor) -> Option<What> {
    let event = socket_event(raw, format.socket, &format.ends, actor)?;
    Some(What::Destroyed { event, cookie: number(raw, format.cookie).map(u64::from_ne_bytes)? })
}

/// The state of a number; the inner `None` is CLOSE.
fn socket_state(number: i32) -> Option<Option<SocketState>> {
    match number {
        CLOSE => Some(None),
        // TCP_NEW_SYN_RECV and TCP_BOUND_INACTIVE: not yet connected either way.
        12 => Some(Some(SocketState::SynReceived)),
        13 => Some(None),
        number => SocketState::from_number(number).map(Some),
    }
}

fn socket_event(raw: &[u8], socket: Field, ends: &EndsFormat, actor: impl FnOnce(u32) -> Actor) -> Option<SocketEvent> {
    let [flags] = number::<1>(raw, ends.flags)?;
    let thread = number(raw, ends.thread).map(u32::from_ne_bytes)?;
    let port = |field| number::<2>(raw, field).map(u16::from_ne_bytes);
    let address = |field| number::<16>(raw, field).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical());
    Some(SocketEvent {
        socket: number(raw, socket).map(u64::from_ne_bytes)?,
        family: if port(ends.family)? == AF_INET6 { Family::Ipv6 } else { Family::Ipv4 },
        local: SocketAddr::new(address(ends.local)?, port(ends.local_port)?),
        peer: SocketAddr::new(address(ends.peer)?, port(ends.peer_port)?),
        // Number 0 is the idle task.
        by: match actor(thread) {
            Actor::Process(0) | Actor::Thread(0) => Actor::Kernel,
            _ if flags & IN_INTERRUPT != 0 => Actor::Kernel,
            actor => actor,
        },
    })
}

fn number<const N: usize>(bytes: &[u8], field: Field) -> Option<[u8; N]> {
    at(bytes, field.offset)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn field(offset: usize, size: usize) -> Field {
        Field { offset, size }
    }

    fn formats() -> Formats {
        let ends = |base: usize, local: usize| EndsFormat {
            flags: field(2, 1),
            thread: field(4, 4),
            family: field(base + 4, 2),
            local_port: field(base, 2),
            peer_port: field(base + 2, 2),
            local: field(local, 16),
            peer: field(local + 16, 16),
        };
        Formats {
            state: StateFormat {
                id: 2287,
                socket: field(8, 8),
                old: field(16, 4),
                new: field(20, 4),
                protocol: field(30, 2),
                ends: ends(24, 40),
            },
            destroy: DestroyFormat { id: 2278, socket: field(8, 8), cookie: field(64, 8), ends: ends(16, 30) },
        }
    }

    fn framed(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let size = u16::try_from(HEADER + body.len()).unwrap();
        [&kind.to_ne_bytes()[..], &misc.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
    }

    fn sampled(pid: u32, at_ns: u64, raw: &[u8]) -> Vec<u8> {
        let size = u32::try_from(raw.len()).unwrap();
        let body =
            [&pid.to_ne_bytes()[..], &pid.to_ne_bytes(), &at_ns.to_ne_bytes(), &size.to_ne_bytes(), raw].concat();
        framed(SAMPLE, 0, &body)
    }

    fn put(raw: &mut [u8], offset: usize, bytes: &[u8]) {
        raw[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn destroyed_raw(flags: u8, cookie: u64) -> Vec<u8> {
        let mut raw = vec![0; 72];
        put(&mut raw, 0, &2278_u16.to_ne_bytes());
        raw[2] = flags;
        put(&mut raw, 8, &0xffff_8880_u64.to_ne_bytes());
        put(&mut raw, 16, &443_u16.to_ne_bytes());
        put(&mut raw, 18, &50_000_u16.to_ne_bytes());
        put(&mut raw, 20, &2_u16.to_ne_bytes());
        let mapped = |last| std::net::Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().octets();
        put(&mut raw, 30, &mapped(1));
        put(&mut raw, 46, &mapped(2));
        put(&mut raw, 64, &cookie.to_ne_bytes());
        raw
    }

    fn read_all(bytes: &[u8]) -> Drained {
        let mut drained = Drained::default();
        read(bytes, &formats(), Threads::Told, &mut drained);
        drained
    }

    fn read_page_of(raws: &[Vec<u8>]) -> Drained {
        let entry = |raw: &Vec<u8>| {
            let (words, delta) = (u32::try_from(raw.len() / 4).unwrap(), 5_u32);
            let word = if cfg!(target_endian = "big") { (words << 27) | delta } else { words | (delta << 5) };
            [&word.to_ne_bytes()[..], raw].concat()
        };
        let data: Vec<u8> = raws.iter().flat_map(entry).collect();
        let page = [&100_u64.to_ne_bytes()[..], &(data.len() as u64).to_ne_bytes(), &data].concat();
        let mut drained = Drained::default();
        read_page(&page, &formats(), &mut drained);
        drained
    }

    #[test]
    fn a_destroyed_socket_has_its_cookie_its_pair_and_whoever_did_it() {
        for (flags, by) in
            [(0, Actor::Process(77)), (0x10, Actor::Kernel), (0x08, Actor::Kernel), (0x01, Actor::Process(77))]
        {
            let drained = read_all(&sampled(77, 5, &destroyed_raw(flags, 9)));
            let event = SocketEvent {
                socket: 0xffff_8880,
                family: Family::Ipv4,
                local: "192.0.2.1:443".parse().unwrap(),
                peer: "192.0.2.2:50000".parse().unwrap(),
                by,
            };
            assert_eq!(drained.records, [Record { at_ns: 5, what: What::Destroyed { event, cookie: 9 } }]);
            assert_eq!((drained.lost, drained.unreadable), (0, 0));
        }
    }

    #[test]
    fn an_entry_of_a_page_is_the_same_record_of_the_thread_that_wrote_it() {
        let raws = [(0, 8), (0x10, 8), (0, 0)].map(|(flags, thread): (u8, u32)| {
            let mut raw = destroyed_raw(flags, 9);
            put(&mut raw, 4, &thread.to_ne_bytes());
            raw
        });
        let drained = read_page_of(&raws);
        let read = drained.records.iter().map(|record| match &record.what {
            What::Destroyed { event, cookie } => (record.at_ns, event.by, event.local.port(), *cookie),
            what => panic!("{what:?}"),
        });
        let expected = [(105, Actor::Thread(8)), (110, Actor::Kernel), (115, Actor::Kernel)];
        assert_eq!(read.collect::<Vec<_>>(), expected.map(|(at_ns, by)| (at_ns, by, 443, 9)));
        // Of another tracepoint, and one that was cut.
        let other = read_page_of(&[[&1_u16.to_ne_bytes()[..], &[0; 6]].concat(), raws[0][..40].to_vec()]);
        assert_eq!((other.records.len(), other.unreadable), (0, 1));
    }

    #[test]
    fn names_of_threads_are_left_out_and_their_lives_where_they_are_not_needed() {
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
        let trailer = [numbers(&[7, 7]), 99_u64.to_ne_bytes().to_vec()].concat();
        let comm = |pid, thread| [numbers(&[pid, thread]), b"nginx\0\0\0".to_vec(), trailer.clone()].concat();
        let life = |ids: &[u32]| [numbers(ids), 50_u64.to_ne_bytes().to_vec(), trailer.clone()].concat();
        let bytes = [
            framed(COMM, MISC_COMM_EXEC, &comm(7, 7)),
            framed(COMM, 0, &comm(7, 8)),
            framed(FORK, 0, &life(&[8, 7, 8, 7])),
            framed(FORK, 0, &life(&[7, 7, 9, 7])),
            framed(EXIT, 0, &life(&[8, 7, 8, 7])),
            framed(EXIT, 0, &life(&[7, 7, 9, 7])),
        ]
        .concat();
        let all = [
            What::Named { pid: 7, name: "nginx".to_owned(), exec: true },
            What::Forked { pid: 8, parent: 7 },
            What::ThreadBegan { thread: 9, pid: 7 },
            What::Exited { pid: 8 },
            What::ThreadEnded { thread: 9 },
        ];
        let without: Vec<What> = [0, 1, 3].map(|index: usize| all[index].clone()).to_vec();
        for (threads, expected) in [(Threads::Told, all.to_vec()), (Threads::LeftOut, without)] {
            let mut drained = Drained::default();
            read(&bytes, &formats(), threads, &mut drained);
            assert_eq!(drained.unreadable, 0);
            assert_eq!(drained.records.into_iter().map(|record| record.what).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn losses_are_added_up() {
        let lost = |id: u64, lost: u64| framed(LOST, 0, &[id.to_ne_bytes(), lost.to_ne_bytes()].concat());
        let samples = framed(LOST_SAMPLES, 0, &3_u64.to_ne_bytes());
        assert_eq!(read_all(&[lost(1, 40), lost(1, 2), samples].concat()).lost, 45);
    }

    #[test]
    fn a_record_that_was_cut_is_counted_and_ends_the_reading() {
        let whole = sampled(1, 1, &destroyed_raw(0, 1));
        for cut in 1..whole.len() {
            let drained = read_all(&[&whole[..], &whole[..cut]].concat());
            assert_eq!((drained.records.len(), drained.unreadable), (1, 1), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_bounded_records(bytes in vec(any::<u8>(), 0..600)) {
            let drained = read_all(&bytes);
            prop_assert!(drained.records.len() <= bytes.len() / HEADER);
        }

        #[test]
        fn arbitrary_records_in_whole_frames_are_all_accounted_for(
            frames in vec((0..16_u32, any::<u16>(), vec(any::<u8>(), 0..120)), 0..8)
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, misc, body)| framed(*kind, *misc, body)).collect();
            let drained = read_all(&bytes);
            prop_assert!(drained.records.len() as u64 + drained.unreadable <= frames.len() as u64);
        }

        #[test]
        fn a_name_of_any_length_is_as_short_as_the_kernels(body in vec(any::<u8>(), 24..400), flags in any::<u16>()) {
            let body = [&[1, 0, 0, 0, 1, 0, 0, 0], &body[..]].concat();
            let drained = read_all(&framed(COMM, flags, &body));
            let Some(Record { what: What::Named { name, .. }, .. }) = drained.records.first() else {
                return Err(TestCaseError::fail("the name is not read"));
            };
            // A byte that is no UTF-8 takes three.
            prop_assert!(name.len() <= 3 * NAME_LIMIT);
        }

        #[test]
        fn fields_that_lie_anywhere_make_no_reading_fail(
            offsets in vec(prop_oneof![0..80_usize, any::<usize>()], 6), raw in vec(any::<u8>(), 0..120), which in any::<bool>()
        ) {
            let at = |index: usize| field(offsets[index], 16);
            let ends = EndsFormat { flags: at(0), thread: at(1), family: at(1), local_port: at(2), peer_port: at(3), local: at(4), peer: at(5) };
            let mut formats = formats();
            (formats.state.ends, formats.destroy.ends, formats.state.socket) = (ends, ends, at(0));
            let id = if which { formats.state.id } else { formats.destroy.id };
            let raw = [&u16::try_from(id).unwrap().to_ne_bytes()[..], &raw].concat();
            let mut drained = Drained::default();
            read(&sampled(1, 1, &raw), &formats, Threads::Told, &mut drained);
            prop_assert!(drained.records.len() as u64 + drained.unreadable <= 1);
        }
    }
}
