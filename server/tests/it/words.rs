//! What the program says when it cannot go on.

use std::process::Command;

#[test]
fn a_program_that_ends_says_once_why() {
    let folder = tempfile::tempdir().unwrap();
    // A folder is no file of settings, for root neither.
    let ended = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
        .args(["serve", "--state"])
        .arg(folder.path())
        .arg("--config")
        .arg(folder.path())
        .output()
        .unwrap();
    let expected = format!("error: {}: Is a directory (os error 21)\n", folder.path().display());
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(1), expected));
}
