-- Sums by peer are apart by how many sessions they count: 0 for sums of fewer than 8, 1 for those of fewer than 64, 2 for larger
-- ones, and for all of those that were there before. Of these no last address is told.
ALTER TABLE peer_sums ADD COLUMN level INTEGER NOT NULL DEFAULT 2;
-- The last address of the stretch: those of a level are in the order of these, then of their numbers.
ALTER TABLE peer_sums ADD COLUMN last_peer BLOB NOT NULL DEFAULT x'';
DROP INDEX peer_sums_of;
CREATE INDEX peer_sums_of ON peer_sums (first_id, level, last_peer);
