-- Where the sessions with an address are, in place of which hosts had some and when: so that a question about an address reads
-- these sessions and no others. The place of a session is the number of its block times 2,048, and how many are before it in
-- that block. A file that was sealed before has pairs in place of this table.
DROP TABLE pairs;
CREATE TABLE peers (
    peer_address BLOB NOT NULL,
    first_place INTEGER NOT NULL,
    -- Those after it, at most 1,023, each as how far it is from the one before, seven bits a byte, the lowest first (LEB128).
    places BLOB NOT NULL,
    PRIMARY KEY (peer_address, first_place)
) STRICT, WITHOUT ROWID;
