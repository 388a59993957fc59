-- Which peers may be among the rows of a zone (server/src/history/sqlite/peers.rs); NULL where it was not noted.
ALTER TABLE zones ADD COLUMN peers BLOB;
