//! How values of the domain are written in columns.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use fleetsock_proto::{listener::ListenAddress, owner::Owner, socket::OwnerKnown, time::Timestamp};
use rusqlite::{
    Row, ToSql,
    types::{ToSqlOutput, Type, ValueRef},
};

/// Bytes of one packed owner: pid, start, program.
const OWNER_BYTES: usize = 20;
/// Begins the path of a UNIX socket.
const AF_UNIX: u8 = 1;

/// A column that does not hold what the schema says: the file was changed by somebody else.
pub(super) fn wrong(column: &'static str, problem: impl Into<String>) -> rusqlite::Error {
    let problem = std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{column}: {}", problem.into()));
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, Box::new(problem))
}

/// An address as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum AddressBytes {
    V4([u8; 5]),
    V6([u8; 17]),
}

impl AddressBytes {
    pub(super) fn of(address: IpAddr) -> AddressBytes {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                AddressBytes::V4([4, a, b, c, d])
            }
            IpAddr::V6(v6) => {
                let mut bytes = [6; 17];
                bytes[1..].copy_from_slice(&v6.octets());
                AddressBytes::V6(bytes)
            }
        }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            AddressBytes::V4(bytes) => bytes,
            AddressBytes::V6(bytes) => bytes,
        }
    }
}

impl ToSql for AddressBytes {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>, rusqlite::Error> {
        Ok(ToSqlOutput::from(self.as_slice()))
    }
}

/// An address in numbers, which are compared in a fraction of the time; in the order of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Numeric {
    is_v6: bool,
    bits: u128,
}

impl From<IpAddr> for Numeric {
    #[inline]
    fn from(address: IpAddr) -> Numeric {
        match address {
            IpAddr::V4(address) => Numeric { is_v6: false, bits: address.to_bits().into() },
            IpAddr::V6(address) => Numeric { is_v6: true, bits: address.to_bits() },
        }
    }
}

impl Numeric {
    /// The IPv6 address with these bits, or the IPv4 address with the lower ones.
    #[inline]
    pub(super) const fn of(is_v6: bool, bits: u128) -> Numeric {
        Numeric { is_v6, bits: if is_v6 { bits } else { bits & u32::MAX as u128 } }
    }

    pub(super) const fn is_v6(self) -> bool {
        self.is_v6
    }

    pub(super) const fn bits(self) -> u128 {
        self.bits
    }

    #[inline]
    pub(super) fn address(self) -> IpAddr {
        match self.is_v6 {
            false => Ipv4Addr::from_bits(self.bits as u32).into(),
            true => Ipv6Addr::from_bits(self.bits).into(),
        }
    }
}

/// The higher and the lower half of a number.
pub(super) const fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}

/// The 5 or 17 bytes of an address: its family, then its value, so that they sort as addresses do.
pub(super) fn address_bytes(address: IpAddr) -> Vec<u8> {
    AddressBytes::of(address).as_slice().to_vec()
}

/// The same of what a listener is bound to; a path is the byte 1 (AF_UNIX), then its text.
pub(super) fn listen_address_bytes(address: &ListenAddress) -> Vec<u8> {
    match address {
        ListenAddress::Ip(address) => address_bytes(*address),
        ListenAddress::Path(path) => [&[AF_UNIX][..], path.as_bytes()].concat(),
    }
}

/// What a listener is bound to.
pub(super) fn listen_address(value: ValueRef<'_>) -> Result<ListenAddress, rusqlite::Error> {
    match value {
        ValueRef::Blob([AF_UNIX, path @ ..]) => match std::str::from_utf8(path) {
            Ok(path) => Ok(ListenAddress::Path(path.to_owned())),
            Err(error) => Err(wrong("address", error.to_string())),
        },
        value => address_of(value).map(ListenAddress::Ip),
    }
}

/// Takes one address off the front of `bytes`.
pub(super) fn take_address(bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match bytes.split_first()? {
        (4, rest) => rest.split_first_chunk::<4>().map(|(v4, rest)| (IpAddr::V4(Ipv4Addr::from(*v4)), rest)),
        (6, rest) => rest.split_first_chunk::<16>().map(|(v6, rest)| (IpAddr::V6(Ipv6Addr::from(*v6)), rest)),
        _ => None,
    }
}

pub(super) fn addresses(column: &'static str, mut bytes: &[u8]) -> Result<Vec<IpAddr>, rusqlite::Error> {
    let mut addresses = Vec::new();
    while !bytes.is_empty() {
        let (address, rest) = take_address(bytes).ok_or_else(|| wrong(column, "no address"))?;
        addresses.push(address);
        bytes = rest;
    }
    Ok(addresses)
}

/// The one address that a value is.
pub(super) fn address_of(value: ValueRef<'_>) -> Result<IpAddr, rusqlite::Error> {
    match take_address(value.as_blob().map_err(|error| wrong("an address", error.to_string()))?) {
        Some((address, [])) => Ok(address),
        _ => Err(wrong("an address", "no address")),
    }
}

pub(super) fn time(row: &Row<'_>, column: &'static str) -> Result<Timestamp, rusqlite::Error> {
    row.get(column).map(Timestamp::from_micros)
}

pub(super) fn time_or_null(row: &Row<'_>, column: &'static str) -> Result<Option<Timestamp>, rusqlite::Error> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}

/// A word of the vocabulary by its number.
pub(super) fn word<T>(
    row: &Row<'_>,
    column: &'static str,
    word: impl FnOnce(i32) -> Option<T>,
) -> Result<T, rusqlite::Error> {
    meaning(column, row.get(column)?, word)
}

/// The word of a number.
pub(super) fn meaning<T>(
    column: &'static str,
    number: i32,
    word: impl FnOnce(i32) -> Option<T>,
) -> Result<T, rusqlite::Error> {
    word(number).ok_or_else(|| wrong(column, format!("{number} has no meaning")))
}

/// An unsigned number as the signed one of the same bits.
pub(super) const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn unsigned(row: &Row<'_>, column: &'static str) -> Result<u64, rusqlite::Error> {
    row.get(column).map(i64::cast_unsigned)
}

/// Who holds a socket and how that is known, in columns: the primary owner in three, the others packed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct OwnerColumns {
    pub(super) known: i32,
    pub(super) pid: u32,
    pub(super) started_at_us: i64,
    pub(super) program_id: i64,
    pub(super) more: Option<Vec<u8>>,
}

/// One owner as it is stored; its program is looked up apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredOwner {
    pub(super) pid: u32,
    pub(super) started_at: Option<Timestamp>,
    pub(super) program_id: i64,
}

impl OwnerColumns {
    /// The columns for these owners.
    pub(super) fn new(
        known: OwnerKnown,
        owners: &[Arc<Owner>],
        mut program_id: impl FnMut(&Arc<Owner>) -> Result<i64, rusqlite::Error>,
    ) -> Result<OwnerColumns, rusqlite::Error> {
        let known = known.number();
        let Some((primary, others)) = owners.split_first() else {
            return Ok(OwnerColumns { known, ..OwnerColumns::default() });
        };
        let started_at_us = |owner: &Owner| owner.started_at.map_or(0, Timestamp::as_micros);
        let mut more = Vec::with_capacity(others.len() * OWNER_BYTES);
        for owner in others {
            more.extend(owner.pid.to_le_bytes());
            more.extend(started_at_us(owner).to_le_bytes());
            more.extend(program_id(owner)?.to_le_bytes());
        }
        Ok(OwnerColumns {
            known,
            pid: primary.pid,
            started_at_us: started_at_us(primary),
            program_id: program_id(primary)?,
            more: (!more.is_empty()).then_some(more),
        })
    }

    /// Reads the columns of a row.
    pub(super) fn read(row: &Row<'_>) -> Result<OwnerColumns, rusqlite::Error> {
        Ok(OwnerColumns {
            known: row.get("owner_known")?,
            pid: row.get("pid")?,
            started_at_us: row.get("started_at_us")?,
            program_id: row.get("program_id")?,
            more: row.get("more_owners")?,
        })
    }

    /// Reads the columns of a row from this place on, in the same order.
    pub(super) fn read_from(row: &Row<'_>, first: usize) -> Result<OwnerColumns, rusqlite::Error> {
        Ok(OwnerColumns {
            known: row.get(first)?,
            pid: row.get(first + 1)?,
            started_at_us: row.get(first + 2)?,
            program_id: row.get(first + 3)?,
            more: row.get(first + 4)?,
        })
    }

    /// Reads the columns of the owners before a change of owners.
    pub(super) fn read_before(row: &Row<'_>) -> Result<OwnerColumns, rusqlite::Error> {
        Ok(OwnerColumns {
            known: row.get("before_known")?,
            pid: row.get("before_pid")?,
            started_at_us: row.get("before_started_at_us")?,
            program_id: row.get("before_program_id")?,
            more: row.get("before_more_owners")?,
        })
    }

    /// How the owners are known.
    pub(super) fn how_known(&self) -> Result<OwnerKnown, rusqlite::Error> {
        meaning("owner_known", self.known, OwnerKnown::from_number)
    }

    /// Whether nobody is known.
    pub(super) fn is_empty(&self) -> bool {
        self.program_id == 0
    }

    /// These owners, or those of `before`: whoever held a socket is not forgotten because nobody can be seen holding it
    /// now.
    pub(super) fn or(self, before: OwnerColumns) -> OwnerColumns {
        if self.is_empty() && !before.is_empty() { before } else { self }
    }

    /// The programs of the owners.
    pub(super) fn program_ids(&self) -> BTreeSet<i64> {
        self.owners().into_iter().map(|owner| owner.program_id).collect()
    }

    /// The owners, the primary one first.
    pub(super) fn owners(&self) -> Vec<StoredOwner> {
        if self.is_empty() {
            return Vec::new();
        }
        let owner = |pid, started_at_us: i64, program_id| StoredOwner {
            pid,
            started_at: (started_at_us != 0).then(|| Timestamp::from_micros(started_at_us)),
            program_id,
        };
        let mut owners = vec![owner(self.pid, self.started_at_us, self.program_id)];
        let (packed, _) = self.more.as_deref().unwrap_or_default().as_chunks::<OWNER_BYTES>();
        for bytes in packed {
            let [p0, p1, p2, p3, rest @ ..] = *bytes;
            let (started, program) = rest.split_at(8);
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            owners.push(owner(
                u32::from_le_bytes([p0, p1, p2, p3]),
                number(started).cast_signed(),
                number(program).cast_signed(),
            ));
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(pid: u32, started_at_us: i64) -> Arc<Owner> {
        Arc::new(Owner {
            pid,
            started_at: (started_at_us != 0).then(|| Timestamp::from_micros(started_at_us)),
            process: format!("p{pid}"),
            exe: String::new(),
            uid: 0,
            user: String::new(),
            container: String::new(),
            unit: String::new(),
            command_line: String::new(),
        })
    }

    #[test]
    fn owners_read_as_they_were_written() {
        for pids in [vec![], vec![7], vec![7, u32::MAX, 1]] {
            let owners: Vec<_> = pids.iter().map(|pid| owner(*pid, i64::from(*pid) - 1)).collect();
            let columns =
                OwnerColumns::new(OwnerKnown::Exact, &owners, |owner| Ok(i64::from(owner.pid) << 20)).unwrap();
            let expected: Vec<_> = owners
                .iter()
                .map(|owner| StoredOwner {
                    pid: owner.pid,
                    started_at: owner.started_at,
                    program_id: i64::from(owner.pid) << 20,
                })
                .collect();
            assert_eq!(columns.owners(), expected);
        }
    }

    #[test]
    fn addresses_sort_by_family_and_value_and_read_back() {
        let texts = ["0.0.0.0", "10.0.0.255", "10.0.1.0", "255.255.255.255", "::", "2001:db8::1", "fe80::1"];
        let parsed: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let encoded: Vec<_> = parsed.iter().map(|address| address_bytes(*address)).collect();
        assert!(encoded.is_sorted());
        assert_eq!(addresses("a", &encoded.concat()).unwrap(), parsed);
        for broken in [&[4, 1, 2, 3][..], &[5, 0, 0, 0, 0], &[6; 16]] {
            assert!(addresses("a", broken).is_err(), "{broken:?}");
        }
    }
}
