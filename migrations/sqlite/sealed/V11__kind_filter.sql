-- Which kinds are none of `kinds`, for most of the many that are new are in no file: a filter as that of the addresses
-- (V7__peer_filter.sql). A file that was sealed before has no such table.
CREATE TABLE kind_filter (blocks BLOB NOT NULL) STRICT;
