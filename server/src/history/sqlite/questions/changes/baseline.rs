//! What is new of listeners: it opened within the window, and nothing like it was there since the baseline began. Listeners are alike
//! when host, protocol, address and port are the same. New sessions are found among sessions (`sessions/firsts.rs`).

use fleetsock_proto::time::Timestamp;
use rusqlite::{Connection, params};

use super::super::ports::StoredListener;
use crate::history::sqlite::coding;

/// Whether a listener like this one was there between the beginning of the baseline and its own opening.
pub(super) fn was_there(
    main: &Connection,
    listener: &StoredListener,
    baseline: Timestamp,
) -> Result<bool, rusqlite::Error> {
    let StoredListener { host_id, life: (.., opened_at_us), protocol, port, ref address, .. } = *listener;
    main.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM listeners INDEXED BY listeners_by_port
             WHERE host_id = ?1 AND port = ?2 AND opened_at_us < ?3 AND (closed_at_us IS NULL OR closed_at_us >= ?4)
                 AND protocol = ?5 AND address = ?6)",
    )?
    .query_row(
        params![
            host_id,
            port,
            opened_at_us,
            baseline.as_micros(),
            protocol.number(),
            coding::listen_address_bytes(address)
        ],
        |row| row.get(0),
    )
}
