//! Rebuilds when a migration is added: they are embedded by a macro, which does not see new files.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
