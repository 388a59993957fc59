//! Which programs are in use. The dictionary of programs would grow for ever: each container and each command line is another one.
//!
//! Each notes the last file of sessions in which it was named: by the writer when a host tells of it, and for whatever is open
//! when a file takes over from the one before. So none that was last named in a file before the oldest that is kept is named by
//! a session. Listeners and changes of owners name some that are: these are looked through. Whatever names a program
//! later has it from a host, which notes it anew, or from a row that named it then.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{Connection, Params, Transaction, params};

use super::coding::OwnerColumns;

/// Shows the programs that rows name: the columns that do, and which rows of which table.
pub(super) fn each_named(
    file: &Connection,
    (columns, rows): (&str, &str),
    values: impl Params,
    mut show: impl FnMut(i64),
) -> Result<(), rusqlite::Error> {
    // The other columns of owners name none.
    let mut statement = file.prepare_cached(&format!("SELECT DISTINCT 0, 0, 0, {columns} FROM {rows}"))?;
    let mut rows = statement.query(values)?;
    while let Some(row) = rows.next()? {
        OwnerColumns::read_from(row, 0)?.program_ids().into_iter().for_each(&mut show);
    }
    Ok(())
}

/// The columns of most tables.
pub(super) const NAMING: &str = "program_id, more_owners";

/// Programs are named in a file of sessions.
pub(super) fn note(main: &Transaction<'_>, programs: &BTreeSet<i64>, file: i64) -> Result<(), rusqlite::Error> {
    let mut note = main.prepare_cached("UPDATE programs SET part_id = ?2 WHERE id = ?1 AND part_id < ?2")?;
    programs.iter().try_for_each(|program| note.execute([*program, file]).map(drop))
}

/// Programs behind one that nothing names which is kept in this file of sessions or later ones, and the last one that was
/// looked at of so many at most; nothing when there are no more.
pub(super) fn unused(
    main: &Connection,
    oldest: i64,
    (after, most): (i64, u32),
) -> Result<Option<(Vec<i64>, i64)>, rusqlite::Error> {
    let view = main.unchecked_transaction()?;
    let mut old: HashSet<i64> = view
        .prepare("SELECT id FROM programs WHERE id > ?1 AND part_id < ?2 ORDER BY id LIMIT ?3")?
        .query_map(params![after, oldest, most], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let Some(last) = old.iter().max().copied() else { return Ok(None) };
    for named in
        [(NAMING, "listeners"), (NAMING, "owner_changes"), ("before_program_id, before_more_owners", "owner_changes")]
    {
        each_named(&view, named, [], |program| {
            old.remove(&program);
        })?;
    }
    Ok(Some((old.into_iter().collect(), last)))
}

/// Removes those of some programs that were not named since; how many.
pub(super) fn forget(main: &mut Connection, programs: &[i64], oldest: i64) -> Result<usize, rusqlite::Error> {
    let transaction = main.transaction()?;
    let mut forgotten = 0;
    {
        let mut forget = transaction.prepare_cached("DELETE FROM programs WHERE id = ?1 AND part_id < ?2")?;
        for program in programs {
            forgotten += forget.execute([*program, oldest])?;
        }
    }
    transaction.commit()?;
    Ok(forgotten)
}
