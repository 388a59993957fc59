-- The last file of sessions in which a program was named: once that and all before it are gone, no session names it any more.
ALTER TABLE programs ADD COLUMN part_id INTEGER NOT NULL DEFAULT 0;

UPDATE programs SET part_id = (SELECT coalesce(max(id), 0) FROM parts);
