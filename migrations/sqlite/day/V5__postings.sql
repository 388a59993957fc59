-- In which rows of `sessions` an address is the peer: segments of rows, each with pages of sorted addresses and their rows
-- (server/src/history/sqlite/postings.rs). The last rows are in no segment yet.
CREATE TABLE segments (
    first_id INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL,
    -- Its pages follow each other from this one on.
    first_page INTEGER NOT NULL,
    -- How the first address of each of them begins.
    firsts BLOB NOT NULL
) STRICT;
CREATE TABLE postings (
    id INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

-- Which peers may be among the rows of a zone that are in no segment (server/src/history/sqlite/peers.rs): apart from the
-- zones, whose table is read whole.
CREATE TABLE zone_peers (
    first_id INTEGER PRIMARY KEY,
    filter BLOB NOT NULL
) STRICT;
INSERT INTO zone_peers SELECT first_id, peers FROM zones WHERE peers IS NOT NULL;
ALTER TABLE zones DROP COLUMN peers;
