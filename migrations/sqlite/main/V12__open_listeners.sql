-- Open listeners with all that answers tell of them: each was looked for in the table besides.
DROP INDEX listeners_open;
CREATE INDEX listeners_open ON listeners (
    host_id, port, protocol, address, opened_at_us, cookie,
    netns, opened_known, closed_at_us, closed_known, family, owner_known, pid, started_at_us, program_id, more_owners
) WHERE closed_at_us IS NULL;
