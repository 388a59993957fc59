-- The sums of all hours of V4 together, so that a question about most of a file reads these and takes off them what it does not
-- mean. A kind is as there; there are none of a kind with too many of them, nor in a file that was sealed before.
CREATE TABLE cube_totals (
    kind INTEGER PRIMARY KEY,
    totals BLOB NOT NULL
) STRICT;

-- Which blocks are those of a host: all from one to another, and how their columns are to be read. So of a session whose place is
-- known it is also known whose it is, without looking up its block. A file that was sealed before has no such table.
CREATE TABLE extents (
    first_block INTEGER PRIMARY KEY,
    last_block INTEGER NOT NULL,
    host_id INTEGER NOT NULL,
    codec INTEGER NOT NULL
) STRICT;
