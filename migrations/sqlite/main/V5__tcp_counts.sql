-- TCP sockets that are neither listeners nor sessions, as their host last counted them; NULL until it did, and where its
-- kernel does not tell of bound ones.
ALTER TABLE hosts ADD COLUMN tcp_time_wait INTEGER;
ALTER TABLE hosts ADD COLUMN tcp_syn_received INTEGER;
ALTER TABLE hosts ADD COLUMN tcp_bound INTEGER;
