//! Messages that could be meant, made from the descriptors of the contract.

use fleetsock_proto::wire;
use prost::{Message, encoding::encode_varint};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

use super::mutation::Random;

/// Messages within messages beyond which the rest is left out.
const DEPTH: usize = 5;
const TEXTS: [&str; 10] =
    ["", "web1", "10.0.0.0/8", "::1", "*", "nginx", "0123456789abcdef", "a\u{308}", "\x1b[31m", "spiffe://x/agent/y"];

/// The descriptors of the contract.
pub(crate) struct Contract(FileDescriptorSet);

impl Contract {
    pub(crate) fn read() -> Contract {
        Contract(FileDescriptorSet::decode(wire::DESCRIPTORS).unwrap())
    }

    /// What every call takes and gives: the service and the name of the message.
    pub(crate) fn messages(&self) -> Vec<(String, String)> {
        let services = self.0.file.iter().flat_map(|file| &file.service);
        let mut all: Vec<(String, String)> = services
            .flat_map(|service| {
                let both = |method: &MethodDescriptorProto| [last(method.input_type()), last(method.output_type())];
                let names = service.method.iter().flat_map(both);
                names.map(|name| (service.name().to_owned(), name))
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    fn message(&self, name: &str) -> Option<&DescriptorProto> {
        self.0.file.iter().flat_map(|file| &file.message_type).find(|message| message.name() == name)
    }

    fn words(&self, name: &str) -> Option<&EnumDescriptorProto> {
        self.0.file.iter().flat_map(|file| &file.enum_type).find(|words| words.name() == name)
    }

    /// A message of this name with some of its fields. Columns have the same number of entries, nearly always.
    pub(crate) fn make(&self, random: &mut Random, name: &str) -> Vec<u8> {
        let rows = [0, 1, 2, 7, 300, 4096, 4097][random.below(7).min(random.below(7))];
        self.make_within(random, name, rows, 0)
    }

    fn make_within(&self, random: &mut Random, name: &str, rows: usize, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if name == "Timestamp" {
            let seconds = [0, 1_700_000_000, random.next()][random.below(3)];
            varint(&mut bytes, 1, seconds);
            return bytes;
        }
        let Some(message) = self.message(name) else { return bytes };
        let chosen = random.below(message.field.len().max(1));
        for (place, field) in message.field.iter().enumerate() {
            let one_of_several = field.oneof_index.is_some() && !field.proto3_optional();
            if depth < DEPTH && random.below(16) > 0 && (!one_of_several || place == chosen) {
                self.field(random, &mut bytes, field, (rows, depth));
            }
        }
        bytes
    }

    fn field(
        &self,
        random: &mut Random,
        bytes: &mut Vec<u8>,
        field: &FieldDescriptorProto,
        (rows, depth): (usize, usize),
    ) {
        let number = u64::try_from(field.number()).unwrap();
        let repeated = field.label() == Label::Repeated;
        match field.r#type() {
            Type::String | Type::Bytes | Type::Message => {
                let times = if repeated { 1 + random.below(4) } else { 1 };
                for _ in 0..times {
                    let content = match field.r#type() {
                        Type::String => random.one_of(&TEXTS).as_bytes().to_vec(),
                        Type::Bytes => {
                            let count = [0, 4, 16, 32, 4 * rows][random.below(5)];
                            random.bytes(count)
                        }
                        _ => self.make_within(random, &last(field.type_name()), rows, depth + 1),
                    };
                    block(bytes, number, &content);
                }
            }
            _ if repeated => {
                let mut column = Vec::new();
                for _ in 0..rows {
                    self.number(random, &mut column, field);
                }
                block(bytes, number, &column);
            }
            _ => {
                let wire_type = match field.r#type() {
                    Type::Fixed64 | Type::Sfixed64 | Type::Double => 1,
                    Type::Fixed32 | Type::Sfixed32 | Type::Float => 5,
                    _ => 0,
                };
                encode_varint(number << 3 | wire_type, bytes);
                self.number(random, bytes, field);
            }
        }
    }

    fn number(&self, random: &mut Random, bytes: &mut Vec<u8>, field: &FieldDescriptorProto) {
        let any = random.next();
        match field.r#type() {
            Type::Fixed64 | Type::Sfixed64 | Type::Double => bytes.extend(any.to_le_bytes()),
            Type::Fixed32 | Type::Sfixed32 | Type::Float => bytes.extend(&any.to_le_bytes()[..4]),
            Type::Enum => {
                let words = self.words(&last(field.type_name()));
                let numbers: Vec<i32> =
                    words.map(|words| words.value.iter().map(|word| word.number()).collect()).unwrap_or_default();
                let number = if numbers.is_empty() { 1 } else { *random.one_of(&numbers) };
                encode_varint(u64::try_from(number).unwrap_or_default(), bytes);
            }
            _ => {
                let small = any % 5;
                encode_varint([small, small, small, 4, 16, any >> 40, any][random.below(7)], bytes);
            }
        }
    }
}

fn last(path: &str) -> String {
    path.rsplit('.').next().unwrap_or_default().to_owned()
}

fn varint(bytes: &mut Vec<u8>, number: u64, value: u64) {
    encode_varint(number << 3, bytes);
    encode_varint(value, bytes);
}

fn block(bytes: &mut Vec<u8>, number: u64, content: &[u8]) {
    encode_varint(number << 3 | 2, bytes);
    encode_varint(u64::try_from(content.len()).unwrap(), bytes);
    bytes.extend(content);
}
