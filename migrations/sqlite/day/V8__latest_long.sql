-- The peers of the last rows, which are in no segment yet, are kept in memory (server/src/history/sqlite/latest.rs).
DROP TABLE zone_peers;

-- Sessions that lasted for ten minutes or longer: what was open at a moment and closed long after it is one of these. They are
-- few, and come almost in the order of the index.
CREATE INDEX sessions_long ON sessions (closed_at_us, duration_us) WHERE duration_us >= 600000000;
