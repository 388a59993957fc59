-- Kinds of sessions (server/src/history/sqlite/kinds.rs): which hosts had sessions with an address, in which direction and of which
-- service, and in which hours the first and the last of these closed. Each row is of kinds that follow each other, the first of which
-- is its key; a service is 131072 times the protocol, and 65536 more for what went out, and the service's port. A file that was sealed
-- before has no such table. There are no rows where a session has a protocol below 0 or beyond 32767, or a direction that is none.
CREATE TABLE kinds (
    peer_address BLOB NOT NULL,
    host_id INTEGER NOT NULL,
    service INTEGER NOT NULL,
    kinds BLOB NOT NULL,
    PRIMARY KEY (peer_address, host_id, service)
) STRICT, WITHOUT ROWID;
