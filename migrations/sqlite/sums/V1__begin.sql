-- Sums of the sessions of one file that is not kept any more. Hours are counted since the Unix epoch.

-- When the sessions opened and closed.
CREATE TABLE spans (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    max_opened_at_us INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL
) STRICT;

-- Names of processes. 0 in their place means that none was known, -1 that it is not told.
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE sums (
    host_id INTEGER NOT NULL,
    opened_hour INTEGER NOT NULL,
    closed_hour INTEGER NOT NULL,
    direction INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    family INTEGER NOT NULL,
    -- Of the service; less than 0 is a class of ports, negated, of which no port is told.
    port INTEGER NOT NULL,
    name_id INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    bytes_sent INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    PRIMARY KEY (host_id, opened_hour, closed_hour, direction, protocol, family, port, name_id)
) STRICT, WITHOUT ROWID;

-- The peers with most sessions of each host; the empty address is all others.
CREATE TABLE peers (
    host_id INTEGER NOT NULL,
    peer_address BLOB NOT NULL,
    sessions INTEGER NOT NULL,
    bytes_sent INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    PRIMARY KEY (host_id, peer_address)
) STRICT, WITHOUT ROWID;
