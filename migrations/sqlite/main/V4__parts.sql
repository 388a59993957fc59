-- The files that hold sessions, one for a day. State 0 is written to, 1 is complete, 3 is being dropped.
ALTER TABLE parts ADD COLUMN sessions INTEGER NOT NULL DEFAULT 0;
-- The latest closing in a file that is complete.
ALTER TABLE parts ADD COLUMN max_closed_at_us INTEGER NOT NULL DEFAULT 0;

-- What is over since before this moment is not kept any more.
CREATE TABLE horizon (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at_us INTEGER NOT NULL
) STRICT;
