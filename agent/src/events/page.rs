//! Pages of the kernel's trace buffers as entries. Pure: whatever the bytes are, the outcome is entries and counts.
//!
//! The layout is that of `struct buffer_data_page` and `struct ring_buffer_event` (kernel/trace/ring_buffer.c and
//! include/linux/ring_buffer.h), which tracefs describes in `events/header_page` and `events/header_event`.

use super::tracepoint::{Field, fields};
use crate::kernel::bytes::{u32_at, u64_at};

// Kinds of an entry, in the 5 bits of `type_len`; any other number is the length of its data in words.
const LONG: u32 = 0;
const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
/// Bits of an entry's time (TS_SHIFT).
const DELTA_BITS: u32 = 27;
/// What a time stamp has no room for and the time before it tells (TS_MSB).
const TIME_TOP: u64 = 0xf8 << 56;
/// Time and commit before the data of a page.
const HEADER: usize = 16;
/// Bits of commit that are the length of the data.
const LENGTH_MASK: u64 = 0xf_ffff;
/// Flags of commit: entries before these are missing; how many stands behind the data (RB_MISSED_EVENTS, RB_MISSED_STORED).
const MISSED: u64 = 1 << 31;
const MISSED_STORED: u64 = 1 << 30;
/// Bytes of the largest page that is believed in (buffer_subbuf_size_kb).
const PAGE_LIMIT: usize = 64 << 10;

/// An entry and its time, nanoseconds of the buffer's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) at_ns: u64,
    pub(super) data: &'a [u8],
}

/// What cannot be read, and so nothing behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// The entries of a page, in the order they were written in.
#[derive(Debug, Clone)]
pub(super) struct Entries<'a> {
    rest: &'a [u8],
    at_ns: u64,
    missed: u64,
}

/// The length of a page, bytes, when the kernel's two descriptions say what is understood here.
pub(super) fn page_bytes(header_page: &str, header_event: &str) -> Result<usize, String> {
    let fields = fields(header_page)?;
    let field = |name: &str| {
        let found = fields.iter().find(|(known, _)| known == name).map(|(_, field)| *field);
        found.ok_or_else(|| format!("a page has no {name}"))
    };
    for (name, offset) in [("timestamp", 0), ("commit", 8)] {
        if field(name)? != (Field { offset, size: 8 }) {
            return Err(format!("{name} is not the 8 bytes at {offset}"));
        }
    }
    let data = field("data")?;
    let bytes = data.offset.saturating_add(data.size);
    if data.offset != HEADER || bytes > PAGE_LIMIT {
        return Err(format!("the {} bytes at {} are no data of a page", data.size, data.offset));
    }
    let described: Vec<String> =
        header_event.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["type_len : 5 bits", "time_delta : 27 bits", "padding : type == 29", "time_extend : type == 30"] {
        if !described.iter().any(|described| described == line) {
            return Err(format!("an entry has no `{line}`"));
        }
    }
    Ok(bytes)
}

impl<'a> Entries<'a> {
    /// Those of a page.
    pub(super) fn of(page: &'a [u8]) -> Result<Entries<'a>, Unreadable> {
        let long = |offset| u64_at(page, offset).ok_or(Unreadable);
        let (at_ns, commit) = (long(0)?, long(8)?);
        // At most 20 bits.
        let length = (commit & LENGTH_MASK) as usize;
        let data = page.get(HEADER..).ok_or(Unreadable)?;
        let rest = data.get(..length).ok_or(Unreadable)?;
        let missed = match (commit & MISSED != 0, commit & MISSED_STORED != 0) {
            (false, _) => 0,
            (true, true) => u64_at(data, length).unwrap_or(1),
            (true, false) => 1,
        };
        Ok(Entries { rest, at_ns, missed })
    }

    /// How many entries before these are missing; 1 when that is not known.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// Takes the next entry; every one is at least one word, so that there is an end.
    fn entry(&mut self) -> Result<Option<Entry<'a>>, Unreadable> {
        while !self.rest.is_empty() {
            let (kind, delta) = kind_and_delta(word(self.rest, 0)?);
            match kind {
                // The rest of the page was too short for the entry after it.
                PADDING if delta == 0 => break,
                // Written and then discarded.
                PADDING => {
                    let length = word(self.rest, 4)? as usize;
                    self.skip(4_usize.saturating_add(length), delta)?;
                }
                TIME_EXTEND => {
                    let delta = delta | (u64::from(word(self.rest, 4)?) << DELTA_BITS);
                    self.skip(8, delta)?;
                }
                TIME_STAMP => {
                    let at_ns = delta | (u64::from(word(self.rest, 4)?) << DELTA_BITS);
                    self.at_ns = (at_ns & !TIME_TOP) | (self.at_ns & TIME_TOP);
                    self.skip(8, 0)?;
                }
                LONG => {
                    // The length has its own word in it.
                    let end = 4_usize.saturating_add(word(self.rest, 4)? as usize);
                    let data = self.rest.get(8..end).ok_or(Unreadable)?;
                    self.skip(end, delta)?;
                    return Ok(Some(Entry { at_ns: self.at_ns, data }));
                }
                words => {
                    let end = 4 + 4 * words as usize;
                    let data = self.rest.get(4..end).ok_or(Unreadable)?;
                    self.skip(end, delta)?;
                    return Ok(Some(Entry { at_ns: self.at_ns, data }));
                }
            }
        }
        self.rest = &[];
        Ok(None)
    }

    fn skip(&mut self, bytes: usize, delta: u64) -> Result<(), Unreadable> {
        self.rest = self.rest.get(bytes..).ok_or(Unreadable)?;
        self.at_ns = self.at_ns.wrapping_add(delta);
        Ok(())
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry();
        if entry.is_err() {
            // Where the next one begins is not known.
            self.rest = &[];
        }
        entry.transpose()
    }
}

/// The first word of an entry; bit fields begin at the lowest bit where bytes do.
fn kind_and_delta(word: u32) -> (u32, u64) {
    match cfg!(target_endian = "big") {
        true => (word >> DELTA_BITS, u64::from(word & ((1 << DELTA_BITS) - 1))),
        false => (word & 31, u64::from(word >> 5)),
    }
}

/// The word at an offset.
fn word(bytes: &[u8], offset: usize) -> Result<u32, Unreadable> {
    u32_at(bytes, offset).ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// As Linux 6.18 describes them.
    const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
";
    const HEADER_EVENT: &str = "# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
";

    fn word(kind: u32, delta: u64) -> [u8; 4] {
        let delta = u32::try_from(delta).unwrap();
        let word = if cfg!(target_endian = "big") { (kind << DELTA_BITS) | delta } else { kind | (delta << 5) };
        word.to_ne_bytes()
    }

    fn extended(kind: u32, time: u64) -> Vec<u8> {
        let high = u32::try_from((time >> DELTA_BITS) & 0xffff_ffff).unwrap();
        [&word(kind, time & ((1 << DELTA_BITS) - 1))[..], &high.to_ne_bytes()].concat()
    }

    /// An entry as the kernel writes it: its data in whole words, and a word for its length when that is too large.
    fn written(delta: u64, data: &[u8]) -> Vec<u8> {
        let words = u32::try_from(data.len() / 4).unwrap();
        let (extend, delta) = match delta >> DELTA_BITS {
            0 => (Vec::new(), delta),
            _ => (extended(TIME_EXTEND, delta), 0),
        };
        let head = match words {
            1..PADDING => word(words, delta).to_vec(),
            _ => [word(LONG, delta), (4 * words + 4).to_ne_bytes()].concat(),
        };
        [extend, head, data.to_vec()].concat()
    }

    fn page(at_ns: u64, flags: u64, data: &[u8], behind: &[u8]) -> Vec<u8> {
        [&at_ns.to_ne_bytes()[..], &(data.len() as u64 | flags).to_ne_bytes(), data, behind].concat()
    }

    fn read(page: &[u8]) -> Vec<(u64, Vec<u8>)> {
        Entries::of(page).unwrap().map(|entry| entry.unwrap()).map(|entry| (entry.at_ns, entry.data.to_vec())).collect()
    }

    #[test]
    fn the_kernels_description_gives_the_length_of_a_page_and_another_one_is_refused() {
        assert_eq!(page_bytes(HEADER_PAGE, HEADER_EVENT), Ok(4096));
        for (from, to) in [
            ("commit;\toffset:8;\tsize:8", "commit;\toffset:8;\tsize:4"),
            ("timestamp;\toffset:0", "timestamp;\toffset:8"),
            ("data;\toffset:16", "data;\toffset:12"),
            ("size:4080", "size:99999999"),
            ("char data", "char bytes"),
        ] {
            assert!(page_bytes(&HEADER_PAGE.replace(from, to), HEADER_EVENT).is_err(), "{to}");
        }
        for (from, to) in [("5 bits", "6 bits"), ("type == 29", "type == 28"), ("time_extend", "time")] {
            assert!(page_bytes(HEADER_PAGE, &HEADER_EVENT.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn padding_and_time_stamps_are_no_entries_and_move_the_time() {
        let discarded = [&word(PADDING, 5)[..], &8_u32.to_ne_bytes(), &[0; 4]].concat();
        let end = [&word(PADDING, 0)[..], &[9; 20]].concat();
        let data = [discarded, written(3, b"four"), extended(TIME_STAMP, 1 << 40), written(1, b"more"), end].concat();
        let top = 0x18 << 56;
        assert_eq!(
            read(&page(top | 100, 0, &data, &[])),
            [(top | 108, b"four".to_vec()), (top | ((1 << 40) + 1), b"more".to_vec())]
        );
    }

    #[test]
    fn missing_entries_are_told_by_their_number_or_as_one() {
        let entry = written(0, b"four");
        for (flags, behind, missed) in [
            (0, &[0; 8], 0),
            (MISSED, &[9; 8], 1),
            (MISSED | MISSED_STORED, &77_u64.to_ne_bytes(), 77),
            (MISSED_STORED, &[9; 8], 0),
        ] {
            let page = page(1, flags, &entry, behind);
            assert_eq!((Entries::of(&page).unwrap().missed(), read(&page).len()), (missed, 1));
        }
        assert_eq!(Entries::of(&page(1, MISSED | MISSED_STORED, &entry, &[])).unwrap().missed(), 1);
    }

    #[test]
    fn a_page_that_was_cut_ends_with_what_cannot_be_read() {
        let data = [written(1, b"four"), written(2, &[7; 200])].concat();
        for cut in 9..data.len() {
            let page = page(0, 0, &data[..cut], &[]);
            let entries: Vec<_> = Entries::of(&page).unwrap().collect();
            assert_eq!((entries.len(), entries[1]), (2, Err(Unreadable)), "cut at {cut}");
        }
        let whole = page(0, 0, &data, &[]);
        for cut in 0..whole.len() {
            assert!(Entries::of(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            at_ns in 0..1_u64 << 58,
            entries in vec((prop_oneof![0..1_u64 << 27, 0..1_u64 << 50], 1..70_usize, any::<u8>()), 0..20)
        ) {
            let (mut now_ns, mut data, mut expected) = (at_ns, Vec::new(), Vec::new());
            for (delta, words, fill) in entries {
                let content = vec![fill; 4 * words];
                data.extend(written(delta, &content));
                now_ns += delta;
                expected.push((now_ns, content));
            }
            prop_assert_eq!(read(&page(at_ns, 0, &data, &[0; 8])), expected);
        }

        #[test]
        fn arbitrary_bytes_give_no_more_entries_than_words(bytes in vec(any::<u8>(), 0..600), is_whole in any::<bool>()) {
            let page = if is_whole { page(1, 0, &bytes, &[]) } else { bytes };
            if let Ok(entries) = Entries::of(&page) {
                let read: Vec<_> = entries.collect();
                prop_assert!(read.len() <= page.len() / 4 + 1);
                let bytes: usize = read.iter().flatten().map(|entry| entry.data.len()).sum();
                prop_assert!(bytes <= page.len());
            }
        }

        #[test]
        fn no_description_makes_a_page_larger_than_its_limit(
            page in "(\tfield: [a-z]{1,9};\toffset:[0-9]{1,20};\tsize:[0-9]{1,20};\n){0,4}", size in "[0-9]{1,20}"
        ) {
            for page in [page, HEADER_PAGE.replace("4080", &size)] {
                prop_assert!(page_bytes(&page, HEADER_EVENT).is_ok_and(|bytes| bytes <= PAGE_LIMIT)
                    || page_bytes(&page, HEADER_EVENT).is_err());
            }
        }
    }
}
