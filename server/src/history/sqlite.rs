//! The history in SQLite.
