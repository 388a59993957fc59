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
