-- Each time that a backup was put in place. What happened between the moment of the backup and that of the restore is not in
-- this history, unless it was carried over from the one that was there before.
CREATE TABLE restores (
    id INTEGER PRIMARY KEY,
    taken_at_us INTEGER NOT NULL,
    restored_at_us INTEGER NOT NULL,
    -- 1 when nothing was carried over: certificates that were made in between are taken up when they are shown.
    adopts INTEGER NOT NULL
) STRICT;

-- When a certificate was taken up that was made after the backup; NULL for those that this history made.
ALTER TABLE host_certificates ADD COLUMN adopted_at_us INTEGER;
ALTER TABLE operator_certificates ADD COLUMN adopted_at_us INTEGER;
