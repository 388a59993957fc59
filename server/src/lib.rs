//! The server: takes what agents observe, keeps its history, answers operators.
//!
//! A connection goes through [`acceptor`] (who is it), [`policy`] (may he) and [`api`] (what does he say) to
//! [`history`], which keeps and answers.

pub mod acceptor;
pub mod api;
pub mod authority;
pub mod backup;
pub mod config;
pub mod confinement;
pub mod gate;
pub mod health;
pub mod history;
pub mod ledger;
pub mod live;
pub mod metrics;
pub mod peer;
pub mod policy;
pub mod rates;
pub mod refusals;
pub mod serve;
pub mod setup;
pub mod warnings;
