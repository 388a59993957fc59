//! The edge where messages become domain types: one file per service.

pub mod admin;
pub mod agent;
pub mod answering;
mod backups;
pub mod enrollment;
pub mod health;
pub mod inventory;
pub mod roots;
pub(crate) mod status;
mod wording;

use fleetsock_proto::time::Timestamp;
use tonic::{Request, Status};

use crate::peer::Peer;

/// The wall clock, given from outside so that tests can choose it.
pub type Clock = fn() -> Timestamp;

/// Who sent a request.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("a connection without a peer"))
}
