-- Addresses that sockets of a host were bound to, or that it said it has: where the other ends of sessions are looked for.
CREATE TABLE host_addresses (
    address BLOB NOT NULL,
    host_id INTEGER NOT NULL,
    -- Between these it had it, to the day.
    first_seen_us INTEGER NOT NULL,
    last_seen_us INTEGER NOT NULL,
    PRIMARY KEY (address, host_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX host_addresses_by_host ON host_addresses (host_id, last_seen_us);
