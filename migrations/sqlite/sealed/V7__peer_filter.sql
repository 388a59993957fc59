-- Which addresses are none of `peers`, for most files never met an address that is asked for: blocks of a split block Bloom filter,
-- each eight words of 32 bits, little-endian. A file that was sealed before has no such table.
CREATE TABLE peer_filter (blocks BLOB NOT NULL) STRICT;
