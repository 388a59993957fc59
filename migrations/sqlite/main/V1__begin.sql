-- Hosts, as they enrolled and as they last described themselves.
CREATE TABLE hosts (
    id INTEGER PRIMARY KEY,
    -- The UUID of its certificates, 16 bytes.
    host_id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    enrolled_at_us INTEGER NOT NULL,
    revoked_at_us INTEGER,
    revoked_reason TEXT,
    -- 1 while it waits for approval: nothing of it is stored before.
    waits INTEGER NOT NULL DEFAULT 0,
    -- What a person should look at, and when it was last noticed.
    warning TEXT,
    warned_at_us INTEGER,
    -- What follows is NULL until the host first speaks.
    last_seen_at_us INTEGER,
    -- The first walk that it told of, and the last, by the server's clock.
    observed_since_us INTEGER,
    observed_until_us INTEGER,
    clock_offset_us INTEGER NOT NULL DEFAULT 0,
    os TEXT,
    kernel TEXT,
    arch TEXT,
    boot_id BLOB,
    -- Addresses, one after another.
    addresses BLOB,
    ephemeral_first INTEGER,
    ephemeral_last INTEGER,
    agent_version TEXT,
    tier INTEGER,
    tier_reason TEXT,
    netns INTEGER,
    losses INTEGER NOT NULL DEFAULT 0,
    agent_cpu_millipercent INTEGER NOT NULL DEFAULT 0,
    agent_rss_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE host_labels (
    host_id INTEGER NOT NULL REFERENCES hosts (id),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (host_id, key)
) STRICT, WITHOUT ROWID;

-- Certificates that may be used. A host has one that is current and at most one that is pending; the first use of the
-- pending one makes it current and the other retired.
CREATE TABLE host_certificates (
    serial BLOB PRIMARY KEY,
    host_id INTEGER NOT NULL REFERENCES hosts (id),
    -- 1 current, 2 pending, 3 retired.
    state INTEGER NOT NULL,
    issued_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX host_certificates_by_host ON host_certificates (host_id, state);

CREATE TABLE operator_certificates (
    serial BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    role INTEGER NOT NULL,
    issued_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    revoked_at_us INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    -- SHA-256; the secret itself is not kept.
    secret_hash BLOB NOT NULL,
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    uses_left INTEGER NOT NULL CHECK (uses_left >= 0),
    uses_total INTEGER NOT NULL,
    -- Set when it admits an operator, NULL when it admits hosts.
    operator_name TEXT,
    operator_role INTEGER,
    note TEXT NOT NULL,
    revoked_at_us INTEGER,
    -- Where it may be used, in CIDR notation; NULL for anywhere.
    from_prefix TEXT,
    -- 1 when hosts that enrol with it wait for approval.
    approval INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE token_labels (
    token_id TEXT NOT NULL REFERENCES tokens (token_id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (token_id, key)
) STRICT, WITHOUT ROWID;

-- What each use of a token gave, so that an answer that was lost can be given again to the same key.
CREATE TABLE token_uses (
    token_id TEXT NOT NULL REFERENCES tokens (token_id) ON DELETE CASCADE,
    -- SHA-256 of the public key.
    key_hash BLOB NOT NULL,
    used_at_us INTEGER NOT NULL,
    serial BLOB NOT NULL,
    leaf_der BLOB NOT NULL,
    issuer_der BLOB NOT NULL,
    spiffe_id TEXT NOT NULL,
    expires_at_us INTEGER NOT NULL,
    PRIMARY KEY (token_id, key_hash)
) STRICT, WITHOUT ROWID;

-- Every order, written in the transaction of its effect, and every question of an operator. Numbers have no holes.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at_us INTEGER NOT NULL,
    actor TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL,
    -- Rows that were answered; NULL for orders and for an answer that was still running.
    answer_rows INTEGER,
    -- SHA-256 over the hash of the row before and the content of this one.
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (at_us);

-- The last row of the audit log, in one row: what is missing at the end is seen by it.
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
INSERT INTO audit_head (one, last, hash) VALUES (1, 0, zeroblob(32));

-- What runs: the part of an owner that many processes share. Never deleted while a row points to it.
CREATE TABLE programs (
    id INTEGER PRIMARY KEY,
    process TEXT NOT NULL,
    exe TEXT NOT NULL,
    uid INTEGER NOT NULL,
    user TEXT NOT NULL,
    container TEXT NOT NULL,
    unit TEXT NOT NULL,
    UNIQUE (process, exe, uid, user, container, unit)
) STRICT;

-- Listeners, open and closed: one row per life.
CREATE TABLE listeners (
    host_id INTEGER NOT NULL,
    netns INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    opened_at_us INTEGER NOT NULL,
    opened_known INTEGER NOT NULL,
    closed_at_us INTEGER,
    closed_known INTEGER,
    protocol INTEGER NOT NULL,
    family INTEGER NOT NULL,
    state INTEGER NOT NULL,
    address BLOB NOT NULL,
    port INTEGER NOT NULL,
    owner_known INTEGER NOT NULL,
    -- The primary owner; zeros when there is none. Further ones are packed in more_owners.
    pid INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    program_id INTEGER NOT NULL,
    more_owners BLOB,
    -- The last snapshot of its host that named it.
    snapshot INTEGER NOT NULL,
    PRIMARY KEY (host_id, netns, cookie, opened_at_us)
) STRICT, WITHOUT ROWID;
CREATE INDEX listeners_open ON listeners (host_id, port) WHERE closed_at_us IS NULL;
CREATE INDEX listeners_past ON listeners (host_id, opened_at_us);

-- How far the listeners and gaps of each host go. They are committed before the file of the day is, so a batch whose
-- second half was not stored comes again, and its first half must not be stored twice.
CREATE TABLE listener_cursors (
    host_id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT;

-- Ranges that were not observed.
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY,
    host_id INTEGER NOT NULL,
    since_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    batches_lost INTEGER NOT NULL,
    -- A report that is told twice is stored once.
    UNIQUE (host_id, since_us, until_us, reason)
) STRICT;
CREATE INDEX gaps_by_time ON gaps (until_us);

-- The files that hold sessions. The newest one that is hot is written to.
CREATE TABLE parts (
    id INTEGER PRIMARY KEY,
    file TEXT NOT NULL UNIQUE,
    -- 0 hot, 1 sealing, 2 sealed, 3 dropping.
    state INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL
) STRICT;
