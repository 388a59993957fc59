-- Sums by peer (server/src/history/sqlite/by_peer.rs) of rows that have sums in `cubes`, which begin with the same one: between which
-- moments their sessions closed, and until when these opened. Of rows that were there before there are none, nor where they would
-- be more than can be counted.
CREATE TABLE peer_spans (
    first_id INTEGER PRIMARY KEY,
    min_closed_at_us INTEGER NOT NULL,
    max_closed_at_us INTEGER NOT NULL,
    max_opened_at_us INTEGER NOT NULL
) STRICT;

-- The sums: stretches of consecutive addresses, in the order of their numbers.
CREATE TABLE peer_sums (
    id INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    sums BLOB NOT NULL
) STRICT;
CREATE INDEX peer_sums_of ON peer_sums (first_id);
