-- Who made a token, as the audit log names him: with an operator go the tokens that he made. Of tokens that are older than
-- this the log knows it, for as long as it is kept; else it is empty.
ALTER TABLE tokens ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
UPDATE tokens SET created_by = coalesce(
    (SELECT actor FROM audit WHERE action = 'create token' AND detail LIKE tokens.token_id || ' %' ORDER BY id LIMIT 1),
    ''
);
