-- The peers of the last rows, which are in no segment yet, are kept in memory (server/src/history/sqlite/latest.rs).
DROP TABLE zone_peers;

-- Which rows of a zone lasted for ten minutes or longer (server/src/history/sqlite/long.rs). Of zones that were full before
-- nothing is told.
CREATE TABLE zone_long (
    first_id INTEGER PRIMARY KEY,
    rows BLOB NOT NULL
) STRICT;
