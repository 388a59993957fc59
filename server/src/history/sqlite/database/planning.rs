//! Statements that are planned once.

use rusqlite::{Connection, config::DbConfig};

/// Has a statement that is kept ready keep its plan (<https://sqlite.org/queryplanner-ng.html#qpstab>). SQLite may look at the
/// values that are bound when it plans, and makes such a statement anew when others are bound; that they are forgotten when it is
/// put back is enough for that. The plans here follow from the schema alone.
pub(super) fn keep_plans(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_statement_that_is_kept_ready_is_not_made_anew_whatever_is_bound() {
        let made_anew = |connection: &Connection| {
            connection
                .execute_batch(
                    "CREATE TABLE open (host_id INTEGER NOT NULL, cookie INTEGER NOT NULL, opened_at_us INTEGER NOT NULL,
                         PRIMARY KEY (host_id, cookie)) STRICT, WITHOUT ROWID;
                     INSERT INTO open VALUES (1, 70, 5), (2, 71, 6)",
                )
                .unwrap();
            let sql =
                "SELECT cookie FROM open WHERE host_id = ?2 AND opened_at_us <= ?1 ORDER BY opened_at_us DESC, cookie";
            for (host, expected) in [(1, 70), (2, 71), (1, 70)] {
                let mut statement = connection.prepare_cached(sql).unwrap();
                assert_eq!(statement.query_row([9, host], |row| row.get(0)), Ok(expected));
            }
            connection.prepare_cached(sql).unwrap().get_status(StatementStatus::RePrepare)
        };
        let planned_once = Connection::open_in_memory().unwrap();
        keep_plans(&planned_once).unwrap();
        assert_eq!(made_anew(&planned_once), 0);
        assert!(made_anew(&Connection::open_in_memory().unwrap()) > 0, "without it each use but the first");
    }
}
