//! The dictionary of programs: what many owners share is stored once.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

use fleetsock_proto::{batch::Batch, owner::Owner};
use rusqlite::{OptionalExtension, Transaction, params};

/// Bytes of programs that are remembered; beyond them the memory starts anew and the dictionary is asked again.
const REMEMBERED_BYTES: usize = 32 * 1024 * 1024;
/// The part of it that one host may fill. What it tells of beyond that is looked up each time: a host that makes up
/// programs pays for it alone, and does not take the memory from others.
const REMEMBERED_BYTES_OF_HOST: usize = 1024 * 1024;
/// Bytes that a remembered program takes besides its texts.
const PROGRAM_BYTES: usize = 256;

/// The part of an owner that many processes share: two are the same when that part is.
#[derive(Debug)]
struct Program(Arc<Owner>);

impl Program {
    fn shared(&self) -> (&str, &str, u32, &str, &str, &str, &str) {
        let Owner { process, exe, uid, user, container, unit, command_line, .. } = self.0.as_ref();
        (process, exe, *uid, user, container, unit, command_line)
    }

    fn bytes(&self) -> usize {
        PROGRAM_BYTES + self.0.texts().iter().map(|text| text.len()).sum::<usize>()
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Program) -> bool {
        self.shared() == other.shared()
    }
}

impl Eq for Program {}

impl Hash for Program {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shared().hash(state);
    }
}

/// Numbers of programs.
#[derive(Debug, Default)]
pub(super) struct Programs {
    ids: HashMap<Program, Known>,
    bytes: usize,
    /// How much each host brought, by its number.
    bytes_of: HashMap<i64, usize>,
}

/// What is remembered of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    id: i64,
    /// The last file of sessions in which it was named: when it is another one, it may be forgotten by now (`in_use.rs`).
    file: i64,
}

/// The number of every owner's program in one batch. An owner is known by its place in memory, because all sockets of
/// a process share it and comparing its texts once per socket would cost more than storing the row.
#[derive(Debug, Default)]
pub(super) struct ProgramIds(HashMap<usize, i64>);

fn place(owner: &Arc<Owner>) -> usize {
    Arc::as_ptr(owner).addr()
}

impl ProgramIds {
    /// The number of an owner's program; 0, which no program has, for an owner of another batch.
    pub(super) fn of(&self, owner: &Arc<Owner>) -> i64 {
        self.0.get(&place(owner)).copied().unwrap_or(0)
    }
}

/// The owners of a batch, each once.
fn owners(batch: &Batch) -> HashMap<usize, &Arc<Owner>> {
    batch.changes.iter().flat_map(|change| &change.socket.owners).map(|owner| (place(owner), owner)).collect()
}

impl Programs {
    /// Forgets everything when it has grown too large. Only between groups: within one, numbers must stay.
    pub(super) fn trim(&mut self) {
        if self.bytes > REMEMBERED_BYTES {
            *self = Programs::default();
        }
    }

    fn remember(&mut self, host: i64, program: Program, known: Known) {
        if let Some(before) = self.ids.get_mut(&program) {
            *before = known;
            return;
        }
        let bytes = program.bytes();
        let of_host = self.bytes_of.entry(host).or_default();
        if *of_host + bytes <= REMEMBERED_BYTES_OF_HOST {
            *of_host += bytes;
            self.bytes += bytes;
            self.ids.insert(program, known);
        }
    }

    /// The numbers of a batch's owners, when all are known and were named in this file of sessions before.
    pub(super) fn ids(&self, batch: &Batch, file: i64) -> Option<ProgramIds> {
        let id = |(place, owner): (usize, &Arc<Owner>)| {
            let known = self.ids.get(&Program(Arc::clone(owner))).filter(|known| known.file == file)?;
            Some((place, known.id))
        };
        owners(batch).into_iter().map(id).collect::<Option<_>>().map(ProgramIds)
    }

    /// The numbers of the owners of a host's batch, which are named in this file of sessions; new ones are given out.
    pub(super) fn learn(
        &mut self,
        transaction: &Transaction<'_>,
        (host, file): (i64, i64),
        batch: &Batch,
    ) -> Result<ProgramIds, rusqlite::Error> {
        let mut ids = HashMap::new();
        for (place, owner) in owners(batch) {
            let program = Program(Arc::clone(owner));
            let id = match self.ids.get(&program) {
                Some(known) if known.file == file => known.id,
                Some(_) | None => {
                    let id = find(transaction, &program, file)?;
                    self.remember(host, program, Known { id, file });
                    id
                }
            };
            ids.insert(place, id);
        }
        Ok(ProgramIds(ids))
    }
}

fn find(transaction: &Transaction<'_>, program: &Program, file: i64) -> Result<i64, rusqlite::Error> {
    let (process, exe, uid, user, container, unit, command_line) = program.shared();
    let known: Option<(i64, i64)> = transaction
        .prepare_cached(
            "SELECT id, part_id FROM programs WHERE process = ?1 AND exe = ?2 AND uid = ?3 AND user = ?4 AND container = ?5
                 AND unit = ?6 AND command_line = ?7",
        )?
        .query_row(params![process, exe, uid, user, container, unit, command_line], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        Some((id, last)) => {
            if last < file {
                transaction.prepare_cached("UPDATE programs SET part_id = ?2 WHERE id = ?1")?.execute([id, file])?;
            }
            Ok(id)
        }
        None => transaction
            .prepare_cached(
                "INSERT INTO programs (process, exe, uid, user, container, unit, command_line, part_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id",
            )?
            .query_row(params![process, exe, uid, user, container, unit, command_line, file], |row| row.get("id")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { id: 7, file: 1 };

    fn program(number: usize, length: usize) -> Program {
        let [process, exe, user, container, unit, command_line] = [0; 6].map(|_| format!("{number:0length$}"));
        Program(Arc::new(Owner { pid: 1, started_at: None, process, exe, uid: 0, user, container, unit, command_line }))
    }

    #[test]
    fn a_host_that_makes_up_programs_fills_only_its_part_and_others_are_remembered() {
        let mut programs = Programs::default();
        for number in 0..1000 {
            programs.remember(1, program(number, 4000), KNOWN);
        }
        assert!(programs.bytes <= REMEMBERED_BYTES_OF_HOST && programs.bytes > REMEMBERED_BYTES_OF_HOST / 2);
        programs.remember(2, program(5000, 10), KNOWN);
        programs.trim();
        assert_eq!(programs.ids.get(&program(5000, 10)), Some(&KNOWN));
    }

    #[test]
    fn many_hosts_together_fill_no_more_than_there_is() {
        let mut programs = Programs::default();
        for number in 0..100_000 {
            programs.trim();
            programs.remember(i64::try_from(number % 100).unwrap(), program(number, 100), KNOWN);
            assert!(programs.bytes <= REMEMBERED_BYTES + 1000);
        }
        assert!(programs.ids.len() < 100_000);
    }
}
