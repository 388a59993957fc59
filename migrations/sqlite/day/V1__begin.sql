-- Sessions that are over, in the order of their arrival.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    host_id INTEGER NOT NULL,
    closed_at_us INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    opened_known INTEGER NOT NULL,
    closed_known INTEGER NOT NULL,
    netns INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    family INTEGER NOT NULL,
    direction INTEGER NOT NULL,
    state INTEGER NOT NULL,
    local_address BLOB NOT NULL,
    local_port INTEGER NOT NULL,
    peer_address BLOB NOT NULL,
    peer_port INTEGER NOT NULL,
    owner_known INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    program_id INTEGER NOT NULL,
    more_owners BLOB,
    bytes_sent INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_host ON sessions (host_id, closed_at_us);

-- Where in `sessions` a time is found: runs of rows and the times between which they closed.
CREATE TABLE zones (
    first_id INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL,
    max_closed_at_us INTEGER NOT NULL
) STRICT;

-- Sessions that are open.
CREATE TABLE open_sessions (
    host_id INTEGER NOT NULL,
    netns INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    opened_at_us INTEGER NOT NULL,
    opened_known INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    family INTEGER NOT NULL,
    direction INTEGER NOT NULL,
    state INTEGER NOT NULL,
    local_address BLOB NOT NULL,
    local_port INTEGER NOT NULL,
    peer_address BLOB NOT NULL,
    peer_port INTEGER NOT NULL,
    owner_known INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    program_id INTEGER NOT NULL,
    more_owners BLOB,
    bytes_sent INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    -- The last snapshot of its host that named it.
    snapshot INTEGER NOT NULL,
    PRIMARY KEY (host_id, netns, cookie)
) STRICT, WITHOUT ROWID;

-- How far the history of each host goes.
CREATE TABLE cursors (
    host_id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    boot_id BLOB NOT NULL,
    -- The last walk that is stored, by the server's clock.
    observed_until_us INTEGER NOT NULL,
    -- Number of the last snapshot, and whether parts of it are still to come.
    snapshot INTEGER NOT NULL,
    snapshot_unfinished INTEGER NOT NULL,
    -- The last walk before it began.
    observed_before_us INTEGER NOT NULL
) STRICT;
