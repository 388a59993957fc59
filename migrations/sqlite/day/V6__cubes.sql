-- Sums of rows of `sessions`, of some thousands at a time (server/src/history/sqlite/cubes.rs): by service, and by host and
-- program, NULL where they would be too large; and of which hosts the rows are.
CREATE TABLE cubes (
    first_id INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL,
    hosts BLOB NOT NULL,
    services BLOB,
    owners BLOB
) STRICT;
