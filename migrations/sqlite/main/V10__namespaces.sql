-- What network namespaces of a host other than its own were called, from one moment until another was called so that had the
-- same number: the kernel gives numbers again.
CREATE TABLE namespace_names (
    host_id INTEGER NOT NULL,
    netns INTEGER NOT NULL,
    since_us INTEGER NOT NULL,
    -- Absent while it is called so.
    until_us INTEGER,
    name TEXT NOT NULL,
    PRIMARY KEY (host_id, netns, since_us)
) STRICT, WITHOUT ROWID;
