-- Sessions that are over, of one file that was complete: blocks of up to 2,048 of one host, in the order of their closing.
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY,
    host_id INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    min_opened_at_us INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL,
    max_closed_at_us INTEGER NOT NULL,
    -- How the columns are to be read.
    codec INTEGER NOT NULL
) STRICT;
CREATE INDEX blocks_by_host ON blocks (host_id, max_closed_at_us);

-- What is in a block, apart so that looking through the blocks reads none of it.
CREATE TABLE contents (
    block_id INTEGER PRIMARY KEY,
    columns BLOB NOT NULL
) STRICT;

-- Which hosts had sessions with an address, and between which times they closed (whole seconds, rounded down).
CREATE TABLE pairs (
    peer_address BLOB NOT NULL,
    host_id INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    min_closed_at_s INTEGER NOT NULL,
    max_closed_at_s INTEGER NOT NULL,
    PRIMARY KEY (peer_address, host_id)
) STRICT, WITHOUT ROWID;
