-- The peers of the last rows, which are in no segment yet, are kept in memory (server/src/history/sqlite/latest.rs).
DROP TABLE zone_peers;
