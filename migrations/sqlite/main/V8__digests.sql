-- The last walk as of which what is open of a host was what its agent has, by the server's clock; NULL until a digest showed
-- that.
ALTER TABLE hosts ADD COLUMN proved_at_us INTEGER;
