//! Files that nobody writes to any more. SQLite looks for no locks and no changes in these, for which it would ask the
//! system several times for each row: most of what it takes to find one.

use std::{os::unix::ffi::OsStrExt, path::Path};

use rusqlite::{Connection, OpenFlags};

use super::settled_for_reading;
use crate::history::sqlite::sealed::ALONE;

/// A connection to a file that has its name only since it is complete.
pub(super) fn open_unchanging(path: &Path) -> Result<Connection, rusqlite::Error> {
    // With an empty authority, so that a path that begins with two slashes has none.
    let authority = if path.is_absolute() { "//" } else { "" };
    let uri = format!("file:{authority}{}?immutable=1", escaped(path));
    settled_for_reading(Connection::open_with_flags(uri, ALONE | OpenFlags::SQLITE_OPEN_URI)?)
}

/// A path as part of a URI (RFC 3986).
fn escaped(path: &Path) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let escape = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.as_os_str().as_bytes().iter().copied().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs};

    use super::*;

    #[test]
    fn a_file_is_found_whatever_its_folder_is_called() {
        let place = tempfile::tempdir().unwrap();
        for name in ["plain", "a b", "50%25", "what?mode=rw", "one#two", "file:", "gr\u{fc}n", "a+b&c=d"] {
            let folder = place.path().join(name);
            fs::create_dir(&folder).unwrap();
            let path = folder.join("day-1.sealed");
            Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7)").unwrap();
            let opened = open_unchanging(&path).unwrap();
            assert_eq!(opened.query_row("SELECT x FROM t", [], |row| row.get(0)), Ok(7), "{name}");
            assert!(opened.execute("INSERT INTO t VALUES (8)", []).is_err());
            let with_two_slashes = format!("/{}", path.display());
            assert!(open_unchanging(Path::new(&with_two_slashes)).is_ok(), "{with_two_slashes}");
        }
        assert_eq!(escaped(Path::new(OsStr::from_bytes(b"/\xff\n"))), "/%FF%0A");
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let place = tempfile::tempdir().unwrap();
        assert!(open_unchanging(&place.path().join("day-1.sealed")).is_err());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
