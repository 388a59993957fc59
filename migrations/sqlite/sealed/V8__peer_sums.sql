-- Sums by peer (server/src/history/sqlite/by_peer.rs): how many sessions there were with each address, and their bytes. A scope is 1
-- for all sessions of the file, 2 for those that closed within an hour since the epoch, 3 for those that were open when an hour
-- began: opened not after its first microsecond, closed in it or later. Sums are stretches of consecutive addresses, in the order
-- of their numbers. A file that was sealed before has no such tables.
CREATE TABLE peer_sums (
    id INTEGER PRIMARY KEY,
    scope INTEGER NOT NULL,
    -- 0 for all sessions.
    hour INTEGER NOT NULL,
    sums BLOB NOT NULL
) STRICT;
CREATE INDEX peer_sums_of ON peer_sums (scope, hour);

-- The hours in which sessions closed, all of them, until when these opened (as exactly as sums tell), and whether it is told what was
-- open when each began. There are none where these would be too many, or more than can be counted.
CREATE TABLE peer_hours (
    hour INTEGER PRIMARY KEY,
    max_opened_at_us INTEGER NOT NULL,
    open INTEGER NOT NULL
) STRICT;
