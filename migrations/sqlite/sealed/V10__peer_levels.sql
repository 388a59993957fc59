-- Sums by peer (V8__peer_sums.sql), apart by how many sessions they count, so that of the few largest little is read. A level is 0
-- for sums of fewer than 8 sessions, 1 for those of fewer than 64, 2 for larger ones; of a scope an address is in one of them. Of a
-- file that was sealed before, sums are not used.
DROP TABLE peer_sums;
CREATE TABLE peer_sums (
    id INTEGER PRIMARY KEY,
    scope INTEGER NOT NULL,
    -- 0 for all sessions.
    hour INTEGER NOT NULL,
    level INTEGER NOT NULL,
    -- The last address of the stretch: those of a scope, an hour and a level are in the order of these.
    last_peer BLOB NOT NULL,
    sums BLOB NOT NULL
) STRICT;
CREATE INDEX peer_sums_of ON peer_sums (scope, hour, level, last_peer);
