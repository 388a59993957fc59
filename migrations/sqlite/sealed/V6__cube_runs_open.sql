-- The sums of a few consecutive hours of V4 together, so that a question about half a file reads some of these and not each of its
-- hours. There are those of a kind where cube_totals has it and there are more hours than of one run; none in a file that was
-- sealed before.
CREATE TABLE cube_runs (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    first_hour INTEGER NOT NULL,
    last_hour INTEGER NOT NULL,
    totals BLOB NOT NULL
) STRICT;

-- The sums of what was open when an hour of V4 began and closed in it or later: opened not after its first microsecond. A question
-- whose window ends there reads these in place of what opened when of all later hours. They are there for each such hour with any
-- where the file has cube_totals of the kind, and not more hours than some days have, as long as they are not too many.
CREATE TABLE cube_open (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    totals BLOB NOT NULL
) STRICT;
