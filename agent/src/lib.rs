//! The agent: reads a host's socket table and its owners, and reports what changed to a fleetsock-server.
//!
//! The way of one socket: [`capture`] reads it from the kernel, [`owners`] finds who holds it, `table` decides what
//! changed, `spool` numbers and keeps that, `uplink` delivers it. `run` is the loop around them.

pub mod capture;
pub mod owners;
