//! The agent: reads a host's socket table and its owners, and reports what changed to a fleetsock-server.
//!
//! The way of one socket: [`capture`] reads it from the kernel, [`owners`] finds who holds it, [`table`] decides what
//! changed, [`packing`] cuts that into batches, [`spool`] numbers and keeps them, [`uplink`] delivers them. [`observer`]
//! is the thread that does the first half, [`run`] holds both together.

pub mod ancestry;
pub mod capture;
pub mod chronicle;
pub mod config;
pub mod cost;
pub mod departures;
pub mod enrolment;
pub mod events;
pub mod facts;
mod kernel;
pub mod ledger;
pub mod lives;
pub mod losses;
pub mod namespaces;
pub mod observer;
pub mod outbox;
pub mod owners;
pub mod packing;
pub mod privileges;
pub mod remarks;
pub mod restraint;
pub mod run;
pub mod spool;
pub mod table;
pub mod threads;
pub mod uplink;
