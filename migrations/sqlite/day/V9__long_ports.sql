-- Of zone_long: rows that lasted for a minute or longer, each with the port of its service (server/src/history/sqlite/long.rs). Of
-- zones that were there before nothing is told.
DELETE FROM zone_long;
