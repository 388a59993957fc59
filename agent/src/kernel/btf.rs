//! The kernel's description of its own types: BTF (Documentation/bpf/btf.rst of the kernel). Tells where the fields are of
//! what a function of the kernel is given.

use std::{
    fs::File,
    io::{self, Read},
};

use super::bytes::{u16_at, u32_at};

/// Where the kernel describes its types.
pub(crate) const PATH: &str = "/sys/kernel/btf/vmlinux";
/// Most bytes of that which are read; kernels of distributions have 4 to 8 MiB.
const LIMIT: u64 = 64 << 20;

const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type`, before what its kind adds.
const TYPE_BYTES: usize = 12;
/// Bytes of `struct btf_member`.
const MEMBER_BYTES: usize = 12;
/// Bytes of `struct btf_param`.
const PARAMETER_BYTES: usize = 8;
/// Longest chain of names and qualifiers (`const`, `volatile`, tags) of one type that is followed.
const CHAIN_LIMIT: usize = 32;
/// Most members that are looked at for one, in a struct and in what it has without a name.
const MEMBERS_LIMIT: usize = 4096;

// Kinds of types.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Why a field is not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidBtf {
    /// The bytes are cut off, or of a form that is not known here.
    #[error("the kernel's BTF is cut off or of an unknown form")]
    Unreadable,
    /// The kernel has none of this name where it is looked for, or none that can be pointed to.
    #[error("the kernel's BTF has no `{0}`")]
    Absent(&'static str),
}

/// The description of the running kernel, for [`Btf::parse`]. It is megabytes, not to be kept.
pub(crate) fn read() -> io::Result<Vec<u8>> {
    let file = File::open(PATH)?;
    let size = file.metadata()?.len().min(LIMIT);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Types of a kernel. Each has a number, which counts from one.
#[derive(Debug)]
pub(crate) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins.
    places: Vec<u32>,
}

/// A type of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeId(pub(crate) u32);

/// A field of a struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// Bytes from the start of the struct.
    pub(crate) offset: u32,
    /// What it is.
    pub(crate) kind: TypeId,
}

/// `struct btf_type` and what its kind adds.
#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Members say how many bits they have.
    has_bit_fields: bool,
    /// The type that it is made of; of some kinds its size.
    of: TypeId,
    rest: &'a [u8],
}

impl<'a> Type<'a> {
    fn read(types: &'a [u8], place: usize) -> Option<Type<'a>> {
        let [name, info, of] = [u32_at(types, place)?, u32_at(types, place + 4)?, u32_at(types, place + 8)?];
        let (kind, count) = ((info >> 24) & 0x1f, usize::try_from(info & 0xffff).ok()?);
        let rest = types.get(place + TYPE_BYTES..)?.get(..added(kind, count)?)?;
        Some(Type { name, kind, has_bit_fields: info >> 31 == 1, of: TypeId(of), rest })
    }
}

/// Bytes that a kind adds to a type with so many members, values or parameters; none when the kind is unknown.
fn added(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        ENUM => 8 * count,
        FUNC_PROTO => PARAMETER_BYTES * count,
        STRUCT | UNION => MEMBER_BYTES * count,
        DATASEC | ENUM64 => 12 * count,
        _ => return None,
    })
}

impl<'a> Btf<'a> {
    /// Finds out where each type begins.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Btf<'a>, InvalidBtf> {
        Btf::cut(bytes).ok_or(InvalidBtf::Unreadable)
    }

    fn cut(bytes: &'a [u8]) -> Option<Btf<'a>> {
        if u16_at(bytes, 0)? != MAGIC {
            return None;
        }
        let number = |at| usize::try_from(u32_at(bytes, at)?).ok();
        let behind = bytes.get(number(4)?..)?;
        let section = |at| behind.get(number(at)?..)?.get(..number(at + 4)?);
        let (types, strings) = (section(8)?, section(16)?);
        let (mut place, mut places) = (0, Vec::new());
        while place < types.len() {
            places.push(u32::try_from(place).ok()?);
            place += TYPE_BYTES + Type::read(types, place)?.rest.len();
        }
        Some(Btf { types, strings, places })
    }

    /// A function of the kernel.
    pub(crate) fn function(&self, name: &'static str) -> Result<TypeId, InvalidBtf> {
        self.named(FUNC, name)
    }

    /// A struct of the kernel.
    pub(crate) fn structure(&self, name: &'static str) -> Result<TypeId, InvalidBtf> {
        self.named(STRUCT, name)
    }

    fn named(&self, kind: u32, name: &'static str) -> Result<TypeId, InvalidBtf> {
        let is_it = |place: &u32| {
            let read = usize::try_from(*place).ok().and_then(|place| Type::read(self.types, place));
            read.is_some_and(|found| found.kind == kind && self.is_called(found.name, name))
        };
        let index = self.places.iter().position(is_it).ok_or(InvalidBtf::Absent(name))?;
        u32::try_from(index + 1).map(TypeId).map_err(|_| InvalidBtf::Unreadable)
    }

    /// A parameter of a function: which, from nought, and its type.
    pub(crate) fn parameter(&self, function: TypeId, name: &'static str) -> Result<(usize, TypeId), InvalidBtf> {
        let signature = self.get(function).and_then(|function| self.get(function.of));
        let signature = signature.filter(|signature| signature.kind == FUNC_PROTO).ok_or(InvalidBtf::Absent(name))?;
        let mut parameters = signature.rest.chunks_exact(PARAMETER_BYTES).enumerate();
        let found = parameters.find_map(|(index, parameter)| {
            let is_it = self.is_called(u32_at(parameter, 0)?, name);
            is_it.then_some((index, TypeId(u32_at(parameter, 4)?)))
        });
        found.ok_or(InvalidBtf::Absent(name))
    }

    /// A field of a struct, or of the structs and unions without a name in it.
    pub(crate) fn field(&self, of: TypeId, name: &'static str) -> Result<Field, InvalidBtf> {
        self.member(of, name).ok_or(InvalidBtf::Absent(name))
    }

    fn member(&self, of: TypeId, name: &str) -> Option<Field> {
        let (mut inside, mut left) = (vec![(of, 0_u32)], MEMBERS_LIMIT);
        while let Some((of, begin)) = inside.pop() {
            let Some(of) = self.get(of).filter(|of| matches!(of.kind, STRUCT | UNION)) else { continue };
            for member in of.rest.chunks_exact(MEMBER_BYTES) {
                left = left.checked_sub(1)?;
                let [called, kind, bits] = [u32_at(member, 0)?, u32_at(member, 4)?, u32_at(member, 8)?];
                let (width, bits) = if of.has_bit_fields { (bits >> 24, bits & 0x00ff_ffff) } else { (0, bits) };
                let (bits, kind) = (begin.checked_add(bits)?, TypeId(kind));
                if self.is_called(called, "") {
                    inside.push((kind, bits));
                } else if self.is_called(called, name) {
                    return (width == 0 && bits % 8 == 0).then_some(Field { offset: bits / 8, kind });
                }
            }
        }
        None
    }

    /// Bytes of a struct.
    pub(crate) fn size(&self, of: TypeId) -> Option<u32> {
        self.get(of).filter(|of| of.kind == STRUCT).map(|of| of.of.0)
    }

    /// The struct that something of this type points to.
    pub(crate) fn pointee(&self, pointer: TypeId) -> Option<TypeId> {
        let (_, pointer) = self.bare(pointer)?;
        let (id, pointee) = self.bare((pointer.kind == PTR).then_some(pointer.of)?)?;
        (pointee.kind == STRUCT).then_some(id)
    }

    /// A type without its further names and qualifiers.
    fn bare(&self, mut id: TypeId) -> Option<(TypeId, Type<'a>)> {
        for _ in 0..CHAIN_LIMIT {
            let found = self.get(id)?;
            match found.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = found.of,
                _ => return Some((id, found)),
            }
        }
        None
    }

    fn get(&self, TypeId(id): TypeId) -> Option<Type<'a>> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        Type::read(self.types, usize::try_from(*self.places.get(index)?).ok()?)
    }

    fn is_called(&self, place: u32, name: &str) -> bool {
        let text = usize::try_from(place).ok().and_then(|place| self.strings.get(place..));
        text.and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|behind| behind.first() == Some(&0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Types as a kernel would write them.
    #[derive(Default)]
    struct Written {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Written {
        fn name(&mut self, name: &str) -> u32 {
            let place = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend([name.as_bytes(), b"\0"].concat());
            place
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        fn add(&mut self, name: &str, kind: u32, count: u32, of: u32, rest: &[u32]) {
            let name = self.name(name);
            self.words(&[name, (kind << 24) | count, of]);
            self.words(rest);
        }

        fn bytes(&self) -> Vec<u8> {
            let [types, strings] = [&self.types, &self.strings].map(|part| u32::try_from(part.len()).unwrap());
            let header: Vec<u8> = [24, 0, types, types, strings].iter().flat_map(|word| word.to_ne_bytes()).collect();
            [&MAGIC.to_ne_bytes()[..], &[1, 0], &header, &self.types, &self.strings].concat()
        }
    }

    /// `void iterate(u32 number, const struct outer __tag *outer)`; the struct has unions and bit fields without names.
    fn written() -> Written {
        let mut written = Written::default();
        let [none, number, outer, deep, bits, late] =
            ["", "number", "outer", "deep", "bits", "late"].map(|name| written.name(name));
        written.add("iterate", FUNC, 1, 2, &[]);
        written.add("", FUNC_PROTO, 2, 0, &[number, 3, outer, 4]);
        written.add("u32", INT, 0, 4, &[32]);
        written.add("", PTR, 0, 5, &[]);
        written.add("tag", TYPE_TAG, 0, 6, &[]);
        written.add("", CONST, 0, 7, &[]);
        written.add(
            "outer",
            STRUCT | 0x80,
            4,
            24,
            &[number, 3, 0, none, 8, 64, bits, 3, (3 << 24) | 128, late, 3, 160],
        );
        written.add("", UNION, 2, 8, &[none, 9, 0, none, 9, 32]);
        written.add("", STRUCT, 2, 8, &[deep, 3, 0, number, 3, 32]);
        written
    }

    #[test]
    fn a_field_is_found_where_it_is_also_in_what_has_no_name() {
        let bytes = written().bytes();
        let btf = Btf::parse(&bytes).unwrap();
        let function = btf.function("iterate").unwrap();
        assert_eq!((function, btf.parameter(function, "number")), (TypeId(1), Ok((0, TypeId(3)))));
        let (index, pointer) = btf.parameter(function, "outer").unwrap();
        let outer = btf.pointee(pointer).unwrap();
        assert_eq!((index, outer), (1, TypeId(7)));
        for (name, offset) in [("number", 0), ("late", 20), ("deep", 12)] {
            assert_eq!(btf.field(outer, name), Ok(Field { offset, kind: TypeId(3) }), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_by_its_name() {
        let bytes = written().bytes();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(
            (btf.structure("outer"), btf.structure("iterate")),
            (Ok(TypeId(7)), Err(InvalidBtf::Absent("iterate")))
        );
        assert_eq!(btf.function("outer"), Err(InvalidBtf::Absent("outer")));
        assert_eq!(btf.function("iter"), Err(InvalidBtf::Absent("iter")));
        assert_eq!(btf.parameter(TypeId(1), "deep"), Err(InvalidBtf::Absent("deep")));
        assert_eq!([7, 8, 99].map(|id| btf.size(TypeId(id))), [Some(24), None, None]);
        for (of, name) in [(7, "bits"), (7, "dee"), (3, "number"), (0, "number"), (99, "number")] {
            assert_eq!(btf.field(TypeId(of), name), Err(InvalidBtf::Absent(name)), "{of}");
        }
        assert_eq!((btf.pointee(TypeId(3)), btf.pointee(TypeId(0))), (None, None));
    }

    #[test]
    fn chains_and_structs_that_contain_themselves_come_to_an_end() {
        let mut circles = Written::default();
        let none = circles.name("");
        circles.add("", TYPEDEF, 0, 1, &[]);
        circles.add("", STRUCT, 2, 8, &[none, 2, 0, none, 2, 0]);
        let bytes = circles.bytes();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.pointee(TypeId(1)), btf.member(TypeId(2), "absent")), (None, None));
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let bytes = written().bytes();
        for cut in 0..bytes.len() {
            assert_eq!(Btf::parse(&bytes[..cut]).err(), Some(InvalidBtf::Unreadable), "cut at {cut}");
        }
        let mut unknown = written();
        unknown.add("", 31, 0, 0, &[]);
        assert_eq!(Btf::parse(&unknown.bytes()).err(), Some(InvalidBtf::Unreadable));
    }

    /// Looks for everything everywhere.
    fn explore(bytes: &[u8]) -> Result<(), TestCaseError> {
        let Ok(btf) = Btf::parse(bytes) else { return Ok(()) };
        prop_assert!(btf.places.len() <= bytes.len() / TYPE_BYTES);
        let found: Result<TypeId, InvalidBtf> = btf.function("iterate");
        prop_assert!(found.is_ok_and(|TypeId(id)| id as usize <= btf.places.len()) || found.is_err());
        for id in (0..=u32::try_from(btf.places.len()).unwrap()).map(TypeId) {
            let field = btf.field(id, "number").ok();
            prop_assert!(field.is_none_or(|field| field.offset <= u32::MAX / 8));
            prop_assert!(btf.pointee(id).is_none_or(|pointee| btf.get(pointee).is_some()));
            prop_assert!(btf.parameter(id, "outer").is_err() || btf.get(id).is_some());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_to_an_end(bytes in vec(any::<u8>(), 0..300)) {
            explore(&bytes)?;
            let mut within = written();
            within.types = bytes;
            explore(&within.bytes())?;
        }

        #[test]
        fn arbitrary_types_are_read_to_an_end(types in vec((0..40_u32, 1..20_u32, 0..6_u32, 0..12_u32, vec(0..40_u32, 20)), 0..12)) {
            let mut arbitrary = Written::default();
            for name in ["", "number", "outer", "iterate"] {
                arbitrary.name(name);
            }
            for (name, kind, count, of, rest) in types {
                arbitrary.words(&[name, (kind << 24) | count, of]);
                let length = added(kind, count as usize).unwrap_or(0) / 4;
                arbitrary.words(&rest.into_iter().cycle().take(length).collect::<Vec<_>>());
            }
            explore(&arbitrary.bytes())?;
        }

        #[test]
        fn a_description_with_other_bytes_in_it_is_read_to_an_end(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..9)) {
            let mut bytes = written().bytes();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            explore(&bytes)?;
        }
    }
}
