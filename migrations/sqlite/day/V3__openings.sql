-- The earliest opening among the rows of a zone; NULL where it was not noted.
ALTER TABLE zones ADD COLUMN min_opened_at_us INTEGER;
