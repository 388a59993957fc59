//! Where the kernel describes its tracepoints, and where the fields of their records are.
//!
//! Field offsets are read and not assumed: they are no part of the kernel's promise to programs.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Where tracefs is mounted: on its own (since Linux 4.1), or below debugfs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
pub(super) const STATE: &str = "sock/inet_sock_set_state";
pub(super) const DESTROY: &str = "tcp/tcp_destroy_sock";

/// Why a tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TracepointError {
    /// tracefs is not there.
    #[error("tracefs is not mounted at {} (mount -t tracefs none {})", TRACEFS[0], TRACEFS[0])]
    NotMounted,
    /// It is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The description is not what is understood here.
    #[error("{}: {problem}", path.display())]
    Unknown {
        /// Of which tracepoint.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
}

/// The kernel's descriptions of tracepoints.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
}

/// A field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) offset: usize,
    pub(super) size: usize,
}

/// `sock:inet_sock_set_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateFormat {
    pub(super) id: u64,
    pub(super) socket: Field,
    pub(super) old: Field,
    pub(super) new: Field,
    pub(super) protocol: Field,
    pub(super) ends: EndsFormat,
}

/// `tcp:tcp_destroy_sock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DestroyFormat {
    pub(super) id: u64,
    pub(super) socket: Field,
    pub(super) cookie: Field,
    pub(super) ends: EndsFormat,
}

/// The socket pair, which both tell alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndsFormat {
    pub(super) flags: Field,
    pub(super) thread: Field,
    pub(super) family: Field,
    pub(super) local_port: Field,
    pub(super) peer_port: Field,
    pub(super) local: Field,
    pub(super) peer: Field,
}

impl Tracefs {
    /// Finds tracefs. Reading it takes root or CAP_DAC_READ_SEARCH.
    pub(super) fn find() -> Result<Tracefs, TracepointError> {
        let mut problem = TracepointError::NotMounted;
        for root in TRACEFS.map(Path::new) {
            match std::fs::metadata(root.join("events").join(STATE)) {
                Ok(_) => return Ok(Tracefs { root: root.to_owned() }),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => problem = TracepointError::Unreadable { path: root.to_owned(), source },
            }
        }
        Err(problem)
    }

    /// Where it is mounted.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn state_format(&self) -> Result<StateFormat, TracepointError> {
        self.format(STATE, |text| {
            let description = Description::parse(text)?;
            Ok(StateFormat {
                id: description.id,
                socket: description.field("skaddr", 8)?,
                old: description.field("oldstate", 4)?,
                new: description.field("newstate", 4)?,
                protocol: description.field("protocol", 2)?,
                ends: EndsFormat::of(&description)?,
            })
        })
    }

    pub(super) fn destroy_format(&self) -> Result<DestroyFormat, TracepointError> {
        self.format(DESTROY, |text| {
            let description = Description::parse(text)?;
            Ok(DestroyFormat {
                id: description.id,
                socket: description.field("skaddr", 8)?,
                cookie: description.field("sock_cookie", 8)?,
                ends: EndsFormat::of(&description)?,
            })
        })
    }

    fn format<T>(&self, tracepoint: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, TracepointError> {
        let path = self.root.join("events").join(tracepoint).join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text).map_err(|problem| TracepointError::Unknown { path, problem }),
            Err(source) => Err(TracepointError::Unreadable { path, source }),
        }
    }
}

impl EndsFormat {
    fn of(description: &Description) -> Result<EndsFormat, String> {
        Ok(EndsFormat {
            flags: description.field("common_flags", 1)?,
            thread: description.field("common_pid", 4)?,
            family: description.field("family", 2)?,
            local_port: description.field("sport", 2)?,
            peer_port: description.field("dport", 2)?,
            // For AF_INET these hold the IPv4-mapped form, so that one field is enough.
            local: description.field("saddr_v6", 16)?,
            peer: description.field("daddr_v6", 16)?,
        })
    }
}

/// A format file.
struct Description {
    id: u64,
    fields: Vec<(String, Field)>,
}

impl Description {
    fn parse(text: &str) -> Result<Description, String> {
        let id = text.lines().filter_map(|line| line.strip_prefix("ID:")).next_back();
        let id = id.and_then(|number| number.trim().parse().ok());
        Ok(Description { id: id.ok_or("it has no ID")?, fields: fields(text)? })
    }

    fn field(&self, name: &str, size: usize) -> Result<Field, String> {
        match self.fields.iter().find(|(known, _)| known == name) {
            Some((_, field)) if field.size == size => Ok(*field),
            Some((_, field)) => Err(format!("{name} has {} bytes and not {size}", field.size)),
            None => Err(format!("it has no field {name}")),
        }
    }
}

/// The fields that a description declares, one a line.
pub(super) fn fields(text: &str) -> Result<Vec<(String, Field)>, String> {
    let declared = text.lines().filter_map(|line| line.trim().strip_prefix("field:"));
    declared.map(|declared| field(declared).ok_or_else(|| format!("`{declared}` is no field"))).collect()
}

/// `unsigned char common_flags; offset:2; size:1; signed:0;`
fn field(declared: &str) -> Option<(String, Field)> {
    let mut parts = declared.split(';').map(str::trim);
    let name = parts.next()?.rsplit(' ').next()?;
    let name = name.split('[').next()?.to_owned();
    let (mut offset, mut size) = (None, None);
    for part in parts {
        match part.split_once(':') {
            Some(("offset", number)) => offset = number.parse().ok(),
            Some(("size", number)) => size = number.parse().ok(),
            _ => {}
        }
    }
    Some((name, Field { offset: offset?, size: size? }))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Linux 6.18 describes it.
    pub(in crate::events) const STATE_TEXT: &str = "name: inet_sock_set_state
ID: 2287
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;
\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;
";

    #[test]
    fn fields_are_found_by_name() {
        let description = Description::parse(STATE_TEXT).unwrap();
        assert_eq!(description.id, 2287);
        assert_eq!(description.field("skaddr", 8), Ok(Field { offset: 8, size: 8 }));
        assert_eq!(description.field("daddr_v6", 16), Ok(Field { offset: 56, size: 16 }));
    }

    #[test]
    fn a_description_that_is_not_understood_says_what_is_missing() {
        let description = Description::parse(STATE_TEXT).unwrap();
        assert_eq!(description.field("sock_cookie", 8), Err("it has no field sock_cookie".to_owned()));
        assert_eq!(description.field("sport", 4), Err("sport has 2 bytes and not 4".to_owned()));
        assert!(Description::parse("name: x\n").is_err());
        assert!(Description::parse("ID: 1\n\tfield:int x; size:4;\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_fail_and_fields_are_as_many_as_lines(
            text in "(\\PC|\n){0,200}", line in "ID:[ 0-9]{0,24}\n|\tfield:[a-z0-9\\[\\] *;:]{0,60}\n", cut in 0..STATE_TEXT.len()
        ) {
            for text in [text.clone(), format!("{line}{text}"), format!("{}{line}", &STATE_TEXT[..cut])] {
                if let Ok(description) = Description::parse(&text) {
                    prop_assert!(description.fields.len() <= text.lines().count());
                    prop_assert!(EndsFormat::of(&description).is_err() || text.contains("daddr_v6"));
                }
            }
        }
    }
}
