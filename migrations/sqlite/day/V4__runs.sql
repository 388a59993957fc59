-- Where the sessions of a host are: runs of rows that follow each other, one for what a batch brought or more. They are
-- sorted by host within a chapter only, which is as long as few pages hold it, so that they are added at few places.
CREATE TABLE runs (
    chapter_id INTEGER NOT NULL,
    host_id INTEGER NOT NULL,
    first_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL,
    max_closed_at_us INTEGER NOT NULL,
    min_opened_at_us INTEGER NOT NULL,
    PRIMARY KEY (chapter_id, host_id, first_id)
) STRICT, WITHOUT ROWID;

-- The chapters of `runs`: how many runs each has, and between which times their sessions opened and closed.
CREATE TABLE chapters (
    id INTEGER PRIMARY KEY,
    runs INTEGER NOT NULL,
    min_closed_at_us INTEGER NOT NULL,
    max_closed_at_us INTEGER NOT NULL,
    min_opened_at_us INTEGER NOT NULL
) STRICT;

INSERT INTO runs
WITH beginnings AS (
    -- A run ends with its host, and after 1,024 rows.
    SELECT id, host_id, closed_at_us, duration_us,
        id % 1024 = 1 OR host_id IS NOT lag(host_id) OVER (ORDER BY id) AS begins
    FROM sessions
), counted AS (
    SELECT id, host_id, closed_at_us, duration_us, sum(begins) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS run
    FROM beginnings
)
SELECT (run - 1) / 1024 + 1, min(host_id), min(id), max(id), min(closed_at_us), max(closed_at_us),
    min(closed_at_us - duration_us)
FROM counted GROUP BY run;

INSERT INTO chapters
SELECT chapter_id, count(*), min(min_closed_at_us), max(max_closed_at_us), min(min_opened_at_us)
FROM runs GROUP BY chapter_id;

DROP INDEX sessions_by_host;
