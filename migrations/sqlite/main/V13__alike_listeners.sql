-- Lives of listeners that are alike beside each other, with when they were: each was looked for in the table besides, however long ago
-- it was.
DROP INDEX listeners_by_port;
CREATE INDEX listeners_by_port ON listeners (host_id, port, protocol, address, closed_at_us, opened_at_us);
