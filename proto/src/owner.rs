//! The process that holds a socket.

use crate::{InvalidMessage, time, time::Timestamp, wire};

/// A process that holds a socket. Its identity is boot id, pid and start time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Process id in the agent's pid namespace.
    pub pid: u32,
    /// Start of the process; absent when it could not be read.
    pub started_at: Option<Timestamp>,
    /// Command name, /proc/PID/comm.
    pub process: String,
    /// Path of the executable; empty when it could not be read.
    pub exe: String,
    /// Real user id.
    pub uid: u32,
    /// Name of the user; empty when the id has none.
    pub user: String,
    /// First 12 digits of the container's id; empty outside containers.
    pub container: String,
    /// systemd unit; empty when there is none.
    pub unit: String,
    /// Command line without the secrets in it; empty unless the agent was told to tell it.
    pub command_line: String,
}

impl Owner {
    /// How many texts it has.
    pub const TEXTS: usize = 6;

    /// Its texts, in the order of the contract's columns.
    pub fn texts(&self) -> [&String; Owner::TEXTS] {
        let Owner { process, exe, user, container, unit, command_line, .. } = self;
        [process, exe, user, container, unit, command_line]
    }

    /// The same, to be shortened.
    pub fn texts_mut(&mut self) -> [&mut String; Owner::TEXTS] {
        let Owner { process, exe, user, container, unit, command_line, .. } = self;
        [process, exe, user, container, unit, command_line]
    }
}

impl From<Owner> for wire::Owner {
    fn from(owner: Owner) -> wire::Owner {
        wire::Owner {
            pid: owner.pid,
            started_at: owner.started_at.map(Into::into),
            process: owner.process,
            exe: owner.exe,
            uid: owner.uid,
            user: owner.user,
            container: owner.container,
            unit: owner.unit,
            command_line: owner.command_line,
        }
    }
}

impl TryFrom<wire::Owner> for Owner {
    type Error = InvalidMessage;

    fn try_from(owner: wire::Owner) -> Result<Owner, InvalidMessage> {
        Ok(Owner {
            pid: owner.pid,
            started_at: time::optional("Owner.started_at", owner.started_at)?,
            process: owner.process,
            exe: owner.exe,
            uid: owner.uid,
            user: owner.user,
            container: owner.container,
            unit: owner.unit,
            command_line: owner.command_line,
        })
    }
}
