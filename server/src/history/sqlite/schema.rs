//! The schema of each kind of file, and how a file gets the newest one.

use std::path::Path;

use rusqlite::Connection;

use super::database::{OpenError, engine};

/// The migrations of each kind, in its folder.
mod schemas {
    #![allow(
        clippy::unwrap_used,
        unreachable_pub,
        reason = "made by the macro; names of files are checked when it runs"
    )]
    pub(super) mod main {
        refinery::embed_migrations!("../migrations/sqlite/main");
    }
    pub(super) mod day {
        refinery::embed_migrations!("../migrations/sqlite/day");
    }
    pub(super) mod sealed {
        refinery::embed_migrations!("../migrations/sqlite/sealed");
    }
    pub(super) mod sums {
        refinery::embed_migrations!("../migrations/sqlite/sums");
    }
}

/// Which of the kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Main,
    Day,
    Sealed,
    Sums,
}

impl Kind {
    pub(super) fn runner(self) -> refinery::Runner {
        match self {
            Kind::Main => schemas::main::migrations::runner(),
            Kind::Day => schemas::day::migrations::runner(),
            Kind::Sealed => schemas::sealed::migrations::runner(),
            Kind::Sums => schemas::sums::migrations::runner(),
        }
    }
}

/// Makes the tables of a sealed file.
pub(super) fn make_sealed(path: &Path, sealed: &mut Connection) -> Result<(), OpenError> {
    migrate(path, sealed, &Kind::Sealed.runner())
}

/// Makes the tables of a file of sums.
pub(super) fn make_sums(path: &Path, sums: &mut Connection) -> Result<(), OpenError> {
    migrate(path, sums, &Kind::Sums.runner())
}

/// Refuses a file of a schema that this program does not know.
pub(super) fn check_schema(path: &Path, connection: &Connection, kind: Kind) -> Result<(), OpenError> {
    refuse_newer(path, connection, &kind.runner()).map(drop)
}

/// Brings a file to the newest schema.
pub(super) fn migrate(path: &Path, connection: &mut Connection, runner: &refinery::Runner) -> Result<(), OpenError> {
    let migrated = runner.run(connection).map(drop);
    migrated.map_err(|error| match error.kind() {
        refinery::error::Kind::Connection(_, cause) => match cause.downcast_ref::<rusqlite::Error>() {
            Some(cause) => engine(path, cause),
            None => OpenError::Engine { path: path.to_owned(), problem: cause.to_string() },
        },
        _ => OpenError::Altered { path: path.to_owned(), problem: error.to_string() },
    })
}

/// The newest schema that this program knows.
pub(super) fn newest(runner: &refinery::Runner) -> i32 {
    runner.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

/// Looks at the schema of a file before anything is changed in it; which that is, 0 for none.
pub(super) fn refuse_newer(path: &Path, connection: &Connection, runner: &refinery::Runner) -> Result<i32, OpenError> {
    let (found, known) = (schema_of(path, connection)?, newest(runner));
    if found > known { Err(OpenError::Newer { path: path.to_owned(), found, known }) } else { Ok(found) }
}

/// The schema of a file, 0 for none.
pub(super) fn schema_of(path: &Path, connection: &Connection) -> Result<i32, OpenError> {
    let found = || {
        let table = "SELECT count(*) FROM sqlite_schema WHERE name = 'refinery_schema_history'";
        if connection.query_row(table, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(0);
        }
        connection.query_row("SELECT coalesce(max(version), 0) FROM refinery_schema_history", [], |row| row.get(0))
    };
    found().map_err(|error| engine(path, &error))
}

#[cfg(test)]
mod tests {
    use refinery::Target;

    use super::*;

    #[test]
    fn who_made_a_token_before_tokens_said_so_is_what_the_audit_log_tells() {
        let mut main = Connection::open_in_memory().unwrap();
        Kind::Main.runner().set_target(Target::Version(8)).run(&mut main).unwrap();
        let token = |id: &str| format!("('{id}', x'00', 0, 1, 1, 1, '')");
        let order = |id: i64, actor: &str, action: &str, detail: &str| {
            format!("({id}, 0, '{actor}', '', '{action}', '{detail}', x'00')")
        };
        main.execute_batch(&format!(
            "INSERT INTO tokens (token_id, secret_hash, created_at_us, expires_at_us, uses_left, uses_total, note)
                 VALUES {}, {}, {};
             INSERT INTO audit (id, at_us, actor, address, action, detail, hash) VALUES {}, {}, {};",
            token("aa"),
            token("aab"),
            token("cc"),
            order(1, "operator/admin/alice", "create token", "aa for 3 hosts"),
            order(2, "local", "create token", "aab for the operator admin/bob"),
            order(3, "operator/admin/bob", "revoke token", "cc")
        ))
        .unwrap();
        Kind::Main.runner().run(&mut main).unwrap();
        let mut statement = main.prepare("SELECT created_by FROM tokens ORDER BY token_id").unwrap();
        let makers: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(makers, ["operator/admin/alice", "local", ""]);
    }
}
