//! The exchange of the root CA: when a step may be made, and what follows from it. Steps change files, not the history:
//! each is in the audit log before it is made, and one that cannot be written down is not made.

use std::{sync::Arc, time::Duration};

use fleetsock_proto::{
    root::{Behind, Renewal, Root, RootState, Stragglers},
    stream::Roots,
    time::Timestamp,
};
use tokio::{runtime::Handle, sync::Mutex, task::spawn_blocking};
use tonic::Status;

use super::{Clock, status};
use crate::{
    acceptor::Shown,
    authority::{Authority, KnownRoot, Step},
    history::{Actor, AuditEntry, HistoryError, Registry},
    live::Live,
};

/// Renewals that the agents of a fleet are asked for in a second, when all of them are: each is a certificate, a handshake
/// and a few writes.
const RENEWALS_PER_SECOND: u64 = 100;
/// The shortest time over which they are spread.
const SPREAD_LEAST: Duration = Duration::from_secs(2);

/// Where the exchange takes effect.
#[derive(Clone)]
pub struct Exchange {
    authority: Arc<Authority>,
    registry: Arc<dyn Registry>,
    live: Arc<Live>,
    shown: Shown,
    renewable: Duration,
    clock: Clock,
    /// Held by the one step that is being made.
    turning: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exchange")
    }
}

/// The word of a step in the audit log.
fn action(step: Step) -> &'static str {
    match step {
        Step::Prepare => "prepare root",
        Step::Activate => "activate root",
        Step::Retire => "retire root",
        Step::Abort => "abort root",
    }
}

/// Why a step is refused that would strand somebody.
fn stranding(step: Step, behind: &Behind) -> String {
    let lack = match step {
        Step::Retire => "still have a certificate of the root before",
        _ => "do not have the new root yet",
    };
    format!(
        "{behind} {lack}; connected hosts renew by themselves within seconds, operators with their next command; who will \
         not come back can be revoked, or stranded"
    )
}

/// Which certificates are to be renewed now, and how fast, so that a fleet of so many hosts does not come at once.
pub(super) fn renewal(authority: &Authority, live: &Live) -> Option<Renewal> {
    let before = authority.renew_before()?;
    let hosts = u64::try_from(live.count()).unwrap_or(u64::MAX);
    let within = Duration::from_secs(hosts / RENEWALS_PER_SECOND).max(SPREAD_LEAST);
    Some(Renewal { before: crate::authority::begins_at(before), within })
}

impl Exchange {
    /// The exchange of an authority. A host whose certificate is over for longer than `renewable` needs a token anyway.
    pub fn new(
        authority: Arc<Authority>,
        registry: Arc<dyn Registry>,
        live: Arc<Live>,
        shown: Shown,
        renewable: Duration,
        clock: Clock,
    ) -> Exchange {
        Exchange { authority, registry, live, shown, renewable, clock, turning: Arc::default() }
    }

    /// Whom the next step waits for: those whose certificate in use is older than the step before. Roots travel with
    /// certificates, and the first use of one proves that it is on its holder's disk.
    async fn behind(&self, now: Timestamp) -> Result<Behind, Status> {
        let Some(before) = self.authority.renew_before() else { return Ok(Behind::default()) };
        self.registry.made_before(before, now.minus(self.renewable), now).await.map_err(status::of)
    }

    fn root(known: KnownRoot, behind: &Behind) -> Root {
        let KnownRoot { state, pin, expires_at } = known;
        let behind = if state == RootState::Active { Behind::default() } else { behind.clone() };
        Root { state, pin, expires_at, behind }
    }

    /// The roots that are handed out, the active one first, and whom the next step waits for.
    pub(super) async fn list(&self) -> Result<Vec<Root>, Status> {
        let behind = self.behind((self.clock)()).await?;
        Ok(self.authority.roots().into_iter().map(|known| Exchange::root(known, &behind)).collect())
    }

    /// Makes a step, unless it would strand somebody who is protected; tells of the root that it was about, and who was
    /// stranded.
    pub(super) async fn turn(&self, step: Step, stragglers: Stragglers, by: Actor) -> Result<(Root, Behind), Status> {
        let turning = Arc::clone(&self.turning).lock_owned().await;
        self.authority.may(step).map_err(status::of_authority)?;
        let stranded = match step {
            Step::Activate | Step::Retire => self.behind(by.at).await?,
            Step::Prepare | Step::Abort => Behind::default(),
        };
        if stragglers == Stragglers::Protect && !stranded.is_nobody() {
            return Err(Status::failed_precondition(stranding(step, &stranded)));
        }
        let record = recorder(&self.registry, by, step, stranded.clone());
        let exchange = self.clone();
        // To the end, even when the one who ordered it has left.
        let turned = spawn_blocking(move || {
            let known = exchange.authority.turn(step, exchange.clock, record).map_err(status::of_authority)?;
            exchange.take_effect()?;
            drop(turning);
            Ok::<_, Status>(known)
        });
        let known = turned.await.map_err(|_| Status::internal("the step was not made"))??;
        tracing::info!(step = action(step), %stranded, "a step of the exchange of the root was made");
        let behind = self.behind((self.clock)()).await?;
        Ok((Exchange::root(known, &behind), stranded))
    }

    /// New connections are held against what is trusted now, and hosts that are connected are told.
    fn take_effect(&self) -> Result<(), Status> {
        self.shown.exchange(&self.authority).map_err(|error| {
            tracing::error!(%error, "the root was exchanged, but new connections are not held against it");
            Status::internal("the step is made, and takes effect when the server is started again; its log says why")
        })?;
        self.live.tell(Roots { roots_der: self.authority.roots_der(), renewal: renewal(&self.authority, &self.live) });
        Ok(())
    }
}

/// Writes a step into the audit log, from a thread that may wait.
fn recorder(
    registry: &Arc<dyn Registry>,
    by: Actor,
    step: Step,
    stranded: Behind,
) -> impl FnOnce(&KnownRoot) -> Result<(), HistoryError> + Send + use<> {
    let (registry, runtime) = (Arc::clone(registry), Handle::current());
    move |known| {
        let mut detail: String = known.pin.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        if !stranded.is_nobody() {
            detail.push_str(&format!("; strands {stranded}"));
        }
        runtime.block_on(registry.record(vec![AuditEntry { by, action: action(step), detail, rows: None }]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_how_many_who_and_what_they_lack() {
        let host_names = vec!["db1".to_owned(), "web1".to_owned()];
        let behind = Behind { hosts: 7, operators: 1, host_names, operator_names: vec!["alice".to_owned()] };
        let text = stranding(Step::Retire, &behind);
        let start = "7 hosts (db1, web1, ...) and 1 operator (alice) still have a certificate of the root before; ";
        assert!(text.starts_with(start), "{text}");
    }
}
