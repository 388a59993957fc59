-- Owners of listeners that changed while these were open: those before and those after. What else changes is told by the
-- intervals themselves.
CREATE TABLE owner_changes (
    id INTEGER PRIMARY KEY,
    -- The life: the key of `listeners`.
    host_id INTEGER NOT NULL,
    netns INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    opened_at_us INTEGER NOT NULL,
    -- Never less than that of the change before.
    at_us INTEGER NOT NULL,
    known INTEGER NOT NULL,
    before_known INTEGER NOT NULL,
    before_pid INTEGER NOT NULL,
    before_started_at_us INTEGER NOT NULL,
    before_program_id INTEGER NOT NULL,
    before_more_owners BLOB,
    owner_known INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    program_id INTEGER NOT NULL,
    more_owners BLOB
) STRICT;
CREATE INDEX owner_changes_by_time ON owner_changes (at_us);
CREATE INDEX owner_changes_by_host ON owner_changes (host_id, at_us);
CREATE INDEX owner_changes_by_life ON owner_changes (host_id, netns, cookie, opened_at_us, at_us);

-- When agents began to number anew: the first walk of that numbering, and the boot that it was about.
CREATE TABLE starts (
    id INTEGER PRIMARY KEY,
    host_id INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    boot_id BLOB NOT NULL,
    -- 1 when the boot before was another one.
    rebooted INTEGER NOT NULL
) STRICT;
CREATE INDEX starts_by_time ON starts (at_us);
CREATE INDEX starts_by_host ON starts (host_id, at_us);

-- The ends of intervals by time, of the fleet and of a host, and what listened on a port before.
CREATE INDEX listeners_opened ON listeners (opened_at_us);
CREATE INDEX listeners_closed ON listeners (closed_at_us) WHERE closed_at_us IS NOT NULL;
CREATE INDEX listeners_closed_of_host ON listeners (host_id, closed_at_us) WHERE closed_at_us IS NOT NULL;
CREATE INDEX listeners_by_port ON listeners (host_id, port, opened_at_us);
