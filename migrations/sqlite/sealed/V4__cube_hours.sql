-- The sums of V2, apart for each hour in which sessions closed, so that a question reads those of its window. A file that was
-- sealed before has other sums, which are not read any more, or none: its blocks are.
DROP TABLE cubes;

-- Of which rows there are sums, of which hosts these are, and whether there are those by service, and by host and program: not
-- where they would be too large.
CREATE TABLE cubes (
    first_id INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL,
    hosts BLOB NOT NULL,
    services INTEGER NOT NULL,
    owners INTEGER NOT NULL
) STRICT;

-- The sums (server/src/history/sqlite/cubes.rs) of the sessions that closed within an hour since the epoch. A kind is 1 for those
-- by service, 2 for those by host and program.
CREATE TABLE cube_hours (
    id INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    closed_hour INTEGER NOT NULL,
    -- Between which moments these sessions opened, as exactly as sums tell.
    min_opened_at_us INTEGER NOT NULL,
    max_opened_at_us INTEGER NOT NULL,
    -- Of all of them, and of those that opened in an earlier hour.
    totals BLOB NOT NULL,
    earlier BLOB NOT NULL
) STRICT;
CREATE INDEX cube_hours_of ON cube_hours (first_id, kind, closed_hour);

-- When the first session of the file opened, and when the first closed, in one row: what is later than a question is not looked
-- into. A file without sessions has none.
CREATE TABLE beginnings (
    id INTEGER PRIMARY KEY,
    min_opened_at_us INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL
) STRICT;
