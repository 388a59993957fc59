//! In which rows each address is the peer: the addresses of many rows sorted, each with the numbers of its rows, in pages.
//!
//! An index that grows row by row is written to at a random place for each, which is what no growing file can bear. This one
//! is written in segments, each at once when its rows are complete, and several small segments become a large one. So a
//! search looks into few segments, and in each at a page or two.
//!
//! A page has the addresses of one family: each as its difference to the one before, then its rows as differences, then 0. Steps
//! before them say what can be skipped: after which address one can begin to read, and where.

use std::{
    iter::zip,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use super::{
    coding::halves,
    sealed::{Damaged, Reading, Writing},
};

/// Bytes of a page, at most: one of SQLite's pages of 4 KiB holds them with what it keeps beside them.
const PAGE_BYTES: usize = 4000;
/// Bytes that the next row may add to a page, at most, with what ends the page.
const ROW_BYTES: usize = 32;
/// Bytes of a step, at most.
const STEP_BYTES: usize = 24;
/// Bytes between two steps, at least: so a search reads a sixteenth of a page, and as many steps.
const STRIDE: usize = 256;
/// Added to the family of a page with steps: those of earlier versions have none.
const WITH_STEPS: u8 = 8;
/// Bytes of what is kept of the first address of a page.
const FIRST_BYTES: usize = 8;

/// From which address to which of the same family, both included.
pub(super) type Addresses = (IpAddr, IpAddr);

/// The peers of rows, in no order. Rows are counted from the first one of their segment.
#[derive(Debug, Default)]
pub(super) struct Peers {
    v4: Apart,
    v6: Vec<(u128, u32)>,
}

/// Addresses of IPv4, and beside them the rows: to look at all of them takes several at a time then.
#[derive(Debug, Default)]
struct Apart {
    addresses: Vec<u32>,
    rows: Vec<u32>,
}

/// Addresses that are looked at before it is asked whether any of them is meant.
const LOOKED_AT: usize = 64;

impl Apart {
    fn find(&self, (first, last): (Ipv4Addr, Ipv4Addr), mut show: impl FnMut(u32)) {
        let (first, width) = (first.to_bits(), last.to_bits().saturating_sub(first.to_bits()));
        let is_meant = |address: &u32| address.wrapping_sub(first) <= width;
        for (addresses, rows) in zip(self.addresses.chunks(LOOKED_AT), self.rows.chunks(LOOKED_AT)) {
            if addresses.iter().fold(false, |any, address| any | is_meant(address)) {
                zip(addresses, rows).filter(|(address, _)| is_meant(address)).for_each(|(_, row)| show(*row));
            }
        }
    }

    /// Address and row in one number each, which sorts faster than two.
    fn together(self) -> Vec<u64> {
        zip(self.addresses, self.rows).map(|(address, row)| u64::from(address) << 32 | u64::from(row)).collect()
    }
}

/// The pages of a segment.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The pages, in the order of their addresses.
    pub(super) pages: Vec<Vec<u8>>,
    /// The beginning of the first address of each, for [`among`].
    pub(super) firsts: Vec<u8>,
}

impl Peers {
    pub(super) fn add(&mut self, peer: IpAddr, row: u32) {
        match peer {
            IpAddr::V4(v4) => {
                self.v4.addresses.push(v4.to_bits());
                self.v4.rows.push(row);
            }
            IpAddr::V6(v6) => self.v6.push((v6.to_bits(), row)),
        }
    }

    /// Shows the rows with addresses that are meant: all of them are looked at, each in a nanosecond or less.
    pub(super) fn find(&self, (first, last): Addresses, mut show: impl FnMut(u32)) {
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self.v4.find((first, last), show),
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let meant = self.v6.iter().filter(|(peer, _)| (first.to_bits()..=last.to_bits()).contains(peer));
                meant.for_each(|(_, row)| show(*row));
            }
            // A network is of one family.
            _ => {}
        }
    }

    /// Adds what is in a page of a segment that begins so many rows later.
    pub(super) fn add_page(&mut self, page: &[u8], later: u32) -> Result<(), Damaged> {
        let mut postings = Postings::of(page, None)?;
        while let Some((address, row)) = postings.next()? {
            let peer = postings.address_of(address)?;
            self.add(peer, row.checked_add(later).ok_or(Damaged("a row has too large a number"))?);
        }
        Ok(())
    }

    /// The pages of a segment of these; shows all of them in order, too.
    pub(super) fn pages(mut self, mut also: impl FnMut(IpAddr, u32)) -> Pages {
        // What is merged was sorted before in parts, which a stable sort makes use of.
        let mut v4 = self.v4.together();
        v4.sort();
        self.v6.sort();
        let mut turning = Turning::default();
        for both in v4 {
            let [address, row] = [both >> 32, both & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or(0));
            let peer = IpAddr::V4(Ipv4Addr::from_bits(address));
            turning.add(peer, row);
            also(peer, row);
        }
        for (address, row) in self.v6 {
            let peer = IpAddr::V6(Ipv6Addr::from_bits(address));
            turning.add(peer, row);
            also(peer, row);
        }
        turning.finish()
    }
}

/// The family of an address, and its number.
fn key(address: IpAddr) -> (u8, u128) {
    match address {
        IpAddr::V4(v4) => (4, v4.to_bits().into()),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    }
}

/// The beginning of an address as a number that sorts as addresses do, but not all apart.
fn beginning(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => 1 << 63 | halves(v6.to_bits())[0] >> 1,
    }
}

/// Pages while they are written.
#[derive(Default)]
struct Turning {
    done: Pages,
    page: Option<Page>,
}

struct Page {
    family: u8,
    steps: Steps,
    postings: Writing,
    /// The last address, when there is one, and its last row.
    last: Option<(u128, u32)>,
}

/// Steps while they are written.
#[derive(Default)]
struct Steps {
    writing: Writing,
    count: u64,
    /// The last one: after which address one can begin to read, and where.
    last: (u128, usize),
}

impl Turning {
    fn add(&mut self, peer: IpAddr, row: u32) {
        let (family, address) = key(peer);
        if self.page.as_ref().is_some_and(|page| page.family != family || page.is_full()) {
            self.turn();
        }
        let page = self.page.get_or_insert_with(|| {
            self.done.firsts.extend(beginning(peer).to_be_bytes());
            Page { family, steps: Steps::default(), postings: Writing::default(), last: None }
        });
        page.add(address, row);
    }

    fn turn(&mut self) {
        if let Some(page) = self.page.take() {
            self.done.pages.push(page.finish());
        }
    }

    fn finish(mut self) -> Pages {
        self.turn();
        self.done
    }
}

impl Page {
    fn is_full(&self) -> bool {
        self.postings.length() + self.steps.writing.length() + STEP_BYTES + ROW_BYTES > PAGE_BYTES
    }

    fn add(&mut self, address: u128, row: u32) {
        match self.last {
            Some((last, before)) if last == address => self.postings.unsigned((row - before).into()),
            last => {
                let last = last.map(|(last, _)| last);
                if let Some(last) = last {
                    self.postings.unsigned(0);
                    if self.postings.length() >= self.steps.last.1 + STRIDE {
                        self.steps.add(self.family, (last, self.postings.length()));
                    }
                }
                write_address(&mut self.postings, self.family, address - last.unwrap_or_default());
                self.postings.unsigned(u64::from(row) + 1);
            }
        }
        self.last = Some((address, row));
    }

    fn finish(mut self) -> Vec<u8> {
        self.postings.unsigned(0);
        let mut page = Writing::default();
        page.unsigned((self.family + WITH_STEPS).into());
        page.unsigned(self.steps.count);
        page.append(self.steps.writing.bytes());
        page.append(self.postings.bytes());
        page.finish()
    }
}

impl Steps {
    fn add(&mut self, family: u8, (address, at): (u128, usize)) {
        let (before, begun) = std::mem::replace(&mut self.last, (address, at));
        write_address(&mut self.writing, family, address - before);
        self.writing.unsigned((at - begun) as u64);
        self.count += 1;
    }
}

fn write_address(writing: &mut Writing, family: u8, number: u128) {
    let [high, low] = halves(number);
    if family == 6 {
        writing.unsigned(high);
    }
    writing.unsigned(low);
}

fn read_address(reading: &mut Reading<'_>, family: u8) -> Result<u128, Damaged> {
    let high = if family == 6 { reading.unsigned()? } else { 0 };
    Ok(u128::from(high) << 64 | u128::from(reading.unsigned()?))
}

/// What is in a page.
struct Postings<'a> {
    family: u8,
    reading: Reading<'a>,
    address: u128,
    /// The last row and one more; 0 before an address.
    row: u64,
}

impl Postings<'_> {
    /// All of a page, or without what is skipped because no address in it is as large as this one.
    fn of(page: &[u8], first: Option<u128>) -> Result<Postings<'_>, Damaged> {
        let mut reading = Reading::new(page);
        let form: u8 = reading.narrow()?;
        let family = form & !WITH_STEPS;
        if !matches!(family, 4 | 6) {
            return Err(Damaged("a family has no meaning"));
        }
        let (mut address, mut at, mut after) = (0, 0, (0, 0));
        for _ in 0..if form == family { 0 } else { reading.unsigned()? } {
            address = plus(address, read_address(&mut reading, family)?)?;
            at = reading.narrow::<usize>()?.saturating_add(at);
            if first.is_some_and(|first| address < first) {
                after = (address, at);
            }
        }
        let (address, at) = after;
        let rest = reading.rest().get(at..).ok_or(Damaged("a step leads too far"))?;
        Ok(Postings { family, reading: Reading::new(rest), address, row: 0 })
    }

    /// The next row, and the number of its address.
    fn next(&mut self) -> Result<Option<(u128, u32)>, Damaged> {
        loop {
            if self.row == 0 {
                if self.reading.rest().is_empty() {
                    return Ok(None);
                }
                self.address = plus(self.address, read_address(&mut self.reading, self.family)?)?;
            }
            match self.reading.unsigned()? {
                0 => self.row = 0,
                more => {
                    self.row = self.row.saturating_add(more);
                    let row = u32::try_from(self.row - 1).map_err(|_| Damaged("a row has too large a number"))?;
                    return Ok(Some((self.address, row)));
                }
            }
        }
    }

    fn address_of(&self, number: u128) -> Result<IpAddr, Damaged> {
        match self.family {
            4 => u32::try_from(number)
                .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
                .map_err(|_| Damaged("an address is too large")),
            _ => Ok(IpAddr::V6(Ipv6Addr::from_bits(number))),
        }
    }
}

fn plus(address: u128, more: u128) -> Result<u128, Damaged> {
    address.checked_add(more).ok_or(Damaged("an address is too large"))
}

/// Which pages of a segment may have addresses that are meant, by their [`Pages::firsts`].
pub(super) fn among(firsts: &[u8], (first, last): Addresses) -> Range<usize> {
    let (firsts, _) = firsts.as_chunks::<FIRST_BYTES>();
    let number = |first: &[u8; FIRST_BYTES]| u64::from_be_bytes(*first);
    // What begins a page may be in the one before as well.
    let begin = firsts.partition_point(|page| number(page) < beginning(first)).saturating_sub(1);
    begin..firsts.partition_point(|page| number(page) <= beginning(last))
}

/// How many pages have these [`Pages::firsts`].
pub(super) fn count(firsts: &[u8]) -> usize {
    firsts.len() / FIRST_BYTES
}

/// Shows the rows in a page with addresses that are meant.
pub(super) fn find(page: &[u8], (first, last): Addresses, mut show: impl FnMut(u32)) -> Result<(), Damaged> {
    // By numbers, which is half the work: most addresses that are read are not meant.
    let ((family, first), (_, last)) = (key(first), key(last));
    let mut postings = Postings::of(page, Some(first))?;
    if family != postings.family {
        return Ok(());
    }
    while let Some((address, row)) = postings.next()?.filter(|(address, _)| *address <= last) {
        if address >= first {
            show(row);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|[.., last]| IpAddr::from([10, 0, last % 2, last])),
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<u16>().prop_map(|last| IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(last)).to_be_bytes())),
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ]
    }

    /// The page as earlier versions wrote it.
    fn without_steps(page: &[u8]) -> Vec<u8> {
        let postings = Postings::of(page, None).unwrap();
        [&[postings.family], postings.reading.rest()].concat()
    }

    fn found(pages: &Pages, meant: Addresses) -> Vec<u32> {
        let mut rows = Vec::new();
        for page in among(&pages.firsts, meant) {
            find(&pages.pages[page], meant, |row| rows.push(row)).unwrap();
        }
        rows.sort_unstable();
        rows
    }

    proptest! {
        #[test]
        fn exactly_the_rows_with_an_address_are_found(
            peers in vec(address(), 0..3000), again in 1_usize..9, others in vec(address(), 2..9)
        ) {
            let peers: Vec<IpAddr> = peers.iter().flat_map(|peer| std::iter::repeat_n(*peer, again)).collect();
            let rows = || (0..).zip(peers.iter().copied());
            // As a whole, and merged of three.
            let mut whole = Peers::default();
            rows().for_each(|(row, peer)| whole.add(peer, row));
            let mut held = Peers::default();
            rows().for_each(|(row, peer)| held.add(peer, row));
            let mut merged = Peers::default();
            let third = u32::try_from(peers.len()).unwrap() / 3 + 1;
            for begin in [0, third, 2 * third] {
                let mut part = Peers::default();
                rows().filter(|(row, _)| row / third * third == begin).for_each(|(row, peer)| part.add(peer, row - begin));
                for page in part.pages(|_, _| {}).pages {
                    // One of them an earlier version wrote.
                    let page = if begin == third { without_steps(&page) } else { page };
                    merged.add_page(&page, begin).unwrap();
                }
            }
            let (whole, merged) = (whole.pages(|_, _| {}), merged.pages(|_, _| {}));
            prop_assert_eq!((&whole.pages, &whole.firsts), (&merged.pages, &merged.firsts));
            prop_assert!(whole.pages.iter().all(|page| page.len() <= PAGE_BYTES));
            let earlier = Pages {
                pages: whole.pages.iter().map(|page| without_steps(page)).collect(),
                firsts: whole.firsts.clone(),
            };
            prop_assert_eq!(count(&whole.firsts), whole.pages.len());
            for meant in others.iter().chain(peers.iter().step_by(97)).zip(&others) {
                let network = (*meant.0.min(meant.1), *meant.0.max(meant.1));
                let is_of_one_family = network.0.is_ipv4() == network.1.is_ipv4();
                for (first, last) in [(*meant.0, *meant.0)].into_iter().chain(is_of_one_family.then_some(network)) {
                    let is_meant = |peer: &IpAddr| (first..=last).contains(peer);
                    let expected: Vec<u32> = rows().filter(|(_, peer)| is_meant(peer)).map(|(row, _)| row).collect();
                    prop_assert_eq!(&found(&whole, (first, last)), &expected);
                    prop_assert_eq!(&found(&earlier, (first, last)), &expected);
                    let mut shown = Vec::new();
                    held.find((first, last), |row| shown.push(row));
                    prop_assert_eq!(&shown, &expected);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(
            mut bytes: Vec<u8>, family in 3_u8..8, short: bool, steps: bool
        ) {
            bytes.insert(0, family + if steps { WITH_STEPS } else { 0 });
            for all in [(IpAddr::from([0; 4]), IpAddr::from([0xff; 4])), (IpAddr::from([0; 16]), IpAddr::from([0xff; 16]))] {
                let mut shown = 0;
                let found = find(&bytes, all, |_| shown += 1);
                prop_assert!(shown == 0 || family == key(all.0).0);
                let later = if short { 0 } else { u32::MAX };
                prop_assert!(found.is_ok() || Peers::default().add_page(&bytes, later).is_err());
                prop_assert!(among(&bytes, all).end <= bytes.len() / FIRST_BYTES);
            }
        }
    }

    #[test]
    fn of_a_page_little_is_read_for_one_address() {
        let mut peers = Peers::default();
        let addresses = || (0..2000_u32).map(|number| Ipv4Addr::from_bits(number * 50_000));
        addresses().zip(0..).for_each(|(address, row)| peers.add(address.into(), row));
        let Pages { pages, firsts } = peers.pages(|_, _| {});
        for address in addresses() {
            let address = IpAddr::from(address);
            let read = |page: usize| Postings::of(&pages[page], Some(key(address).1)).unwrap();
            let mut before_it = 0;
            for page in among(&firsts, (address, address)) {
                let mut postings = read(page);
                while postings.next().unwrap().is_some_and(|(found, _)| found < key(address).1) {
                    before_it += 1;
                }
            }
            // An address is three bytes here, a row is two, and then comes 0; where a page begins that before it is read too.
            assert!(before_it <= 2 * STRIDE / 6, "{before_it} of {address}");
        }
    }

    #[test]
    fn an_address_with_more_rows_than_a_page_holds_is_found_whole() {
        let peer = IpAddr::from([10, 0, 0, 1]);
        let mut peers = Peers::default();
        (0..20_000).for_each(|row| peers.add(peer, row));
        peers.add(IpAddr::from([10, 0, 0, 2]), 20_000);
        let pages = peers.pages(|_, _| {});
        assert!(pages.pages.len() > 4);
        assert_eq!(found(&pages, (peer, peer)), (0..20_000).collect::<Vec<u32>>());
    }
}
