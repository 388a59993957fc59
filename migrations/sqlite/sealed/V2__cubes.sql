-- Sums of all sessions of the file (server/src/history/sqlite/cubes.rs), in one row: by service, and by host and program, NULL
-- where they would be too large; and of which hosts they are. A file that was sealed before has no such table.
CREATE TABLE cubes (
    first_id INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL,
    hosts BLOB NOT NULL,
    services BLOB,
    owners BLOB
) STRICT;
