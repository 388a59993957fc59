//! Keeps the history of a fleet's sockets and answers questions about it.

pub mod history;
