-- Programs have a command line, where their hosts tell it. It is a part of what makes two programs one.
CREATE TABLE programs_with_command_lines (
    id INTEGER PRIMARY KEY,
    process TEXT NOT NULL,
    exe TEXT NOT NULL,
    uid INTEGER NOT NULL,
    user TEXT NOT NULL,
    container TEXT NOT NULL,
    unit TEXT NOT NULL,
    command_line TEXT NOT NULL DEFAULT '',
    UNIQUE (process, exe, uid, user, container, unit, command_line)
) STRICT;

INSERT INTO programs_with_command_lines (id, process, exe, uid, user, container, unit)
SELECT id, process, exe, uid, user, container, unit FROM programs;

DROP TABLE programs;
ALTER TABLE programs_with_command_lines RENAME TO programs;
