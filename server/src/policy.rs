//! Who may call what: one table, and everything that is not in it is denied.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fleetsock_proto::{root::RENEW_BEFORE, token::Role};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::{
    api::{Clock, status},
    authority::{self, Authority},
    history::{Registry, Standing, Subject},
    metrics::{
        Meters,
        counting::{CallMeter, Counted},
    },
    peer::{Caller, Peer},
    rates::Rates,
    refusals::Refusals,
    warnings::Warnings,
};

/// A kind of caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Anonymous,
    Agent,
    Viewer,
    Admin,
    Local,
}

use Who::{Admin, Agent, Anonymous, Local, Viewer};

/// The call by which an agent gets its next certificate.
pub(crate) const RENEWAL: &str = "/fleetsock.v1.Agent/RenewCertificate";
/// The call by which an agent begins a stream.
pub(crate) const SESSION: &str = "/fleetsock.v1.Agent/Session";

/// Every call, and who may make it.
const TABLE: [(&str, &[Who]); 30] = [
    ("/fleetsock.v1.Enrollment/Enroll", &[Anonymous]),
    ("/fleetsock.v1.Enrollment/RenewExpired", &[Anonymous]),
    ("/fleetsock.v1.Agent/Session", &[Agent]),
    ("/fleetsock.v1.Agent/RenewCertificate", &[Agent]),
    ("/fleetsock.v1.Inventory/ListHosts", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/ListPorts", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/ListSessions", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/ListCoverage", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/ListChanges", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/Summarize", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/RenewOperator", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Inventory/ShowServer", &[Viewer, Admin, Local]),
    ("/fleetsock.v1.Admin/CreateToken", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ListTokens", &[Admin, Local]),
    ("/fleetsock.v1.Admin/RevokeToken", &[Admin, Local]),
    ("/fleetsock.v1.Admin/IssueOperator", &[Admin, Local]),
    ("/fleetsock.v1.Admin/RevokeHost", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ApproveHost", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ListOperators", &[Admin, Local]),
    ("/fleetsock.v1.Admin/RevokeOperator", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ListAudit", &[Admin, Local]),
    ("/fleetsock.v1.Admin/VerifyAudit", &[Admin, Local]),
    ("/fleetsock.v1.Admin/Backup", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ListRoots", &[Admin, Local]),
    ("/fleetsock.v1.Admin/PrepareRoot", &[Admin, Local]),
    ("/fleetsock.v1.Admin/ActivateRoot", &[Admin, Local]),
    ("/fleetsock.v1.Admin/RetireRoot", &[Admin, Local]),
    ("/fleetsock.v1.Admin/AbortRoot", &[Admin, Local]),
    // Who may ask may also ask whether there will be an answer (grpc.health.v1).
    ("/grpc.health.v1.Health/Check", &[Viewer, Admin, Local]),
    ("/grpc.health.v1.Health/Watch", &[Viewer, Admin, Local]),
];

/// Every call.
pub(crate) fn methods() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(call, _)| *call)
}

fn who(caller: &Caller) -> Who {
    match caller {
        Caller::Anonymous => Anonymous,
        Caller::Agent { .. } => Agent,
        Caller::Operator { operator, .. } => match operator.role() {
            Role::Viewer => Viewer,
            Role::Admin => Admin,
        },
        Caller::Local => Local,
    }
}

/// Whether `caller` may call `path`; if not, with words for him.
fn decide(path: &str, caller: &Caller) -> Result<(), Status> {
    match TABLE.iter().find(|(call, _)| *call == path) {
        Some((_, allowed)) if allowed.contains(&who(caller)) => Ok(()),
        Some((_, allowed)) if who(caller) == Viewer && allowed.contains(&Admin) => {
            Err(Status::permission_denied(format!("{caller} may only ask; this takes the role admin")))
        }
        Some(_) => Err(Status::permission_denied(format!("{caller} may not call {path}"))),
        None => Err(Status::unimplemented("this server does not know that call")),
    }
}

/// Whether somebody should be able to look up later that a call was refused: one that is an operator's to make, or was made
/// by one. Not that the server does not know a call, or cannot tell.
fn is_noted(path: &str, caller: &Caller, refused: Code) -> bool {
    let is_refusal = matches!(refused, Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted);
    let Some((_, allowed)) = TABLE.iter().find(|(call, _)| *call == path) else { return false };
    is_refusal && (allowed.contains(&Admin) || matches!(caller, Caller::Operator { .. }))
}

/// What a certificate that is not good any more is told.
fn refusal(standing: Standing) -> Option<&'static str> {
    match standing {
        // What a host that waits for approval may do is decided where it speaks.
        Standing::Good | Standing::Waits => None,
        Standing::Revoked => Some("revoked"),
        Standing::Superseded => Some("replaced by a newer one: two machines may be using one identity"),
        Standing::Unknown => Some("unknown to this server"),
    }
}

/// Guards a server's services.
#[derive(Clone)]
pub struct Policy {
    registry: Arc<dyn Registry>,
    rates: Arc<Rates>,
    warnings: Arc<Warnings>,
    refusals: Arc<Refusals>,
    meters: Meters,
    authority: Arc<Authority>,
    clock: Clock,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policy")
    }
}

/// Words for somebody who asks too often.
fn too_often(what: &str, wait: Duration) -> Status {
    let seconds = wait.as_secs_f64();
    Status::resource_exhausted(format!("too many {what}; try again in {seconds:.1} s"))
}

impl Policy {
    /// The policy, with the registry of certificates in use.
    pub fn new(
        registry: Arc<dyn Registry>,
        rates: Arc<Rates>,
        warnings: Arc<Warnings>,
        refusals: Arc<Refusals>,
        meters: Meters,
        authority: Arc<Authority>,
        clock: Clock,
    ) -> Policy {
        Policy { registry, rates, warnings, refusals, meters, authority, clock }
    }

    /// Tells an operator with his answer which certificates are to be renewed.
    fn remind<R>(&self, peer: Option<&Peer>, answer: &mut Response<R>) {
        let before = self.authority.renew_before().map(authority::begins_at);
        if let (Some(Caller::Operator { .. }), Some(before)) = (peer.map(|peer| &peer.caller), before) {
            answer.headers_mut().insert(RENEW_BEFORE, before.as_micros().into());
        }
    }

    async fn check(&self, path: &str, peer: Option<&Peer>) -> Result<(), Status> {
        let peer = peer.ok_or_else(|| Status::internal("a connection without a peer"))?;
        let standing = match self.standing(peer).await? {
            Standing::Unknown => self.adopt(peer).await?,
            standing => standing,
        };
        if let Some(reason) = refusal(standing) {
            self.note(peer, standing).await;
            return Err(Status::unauthenticated(reason));
        }
        decide(path, &peer.caller)?;
        self.is_rare_enough(path, peer)
    }

    /// What a certificate is worth that the history does not know: it may be one that was lost with a part of it.
    async fn adopt(&self, peer: &Peer) -> Result<Standing, Status> {
        let holder = match &peer.caller {
            Caller::Agent { host, .. } => Subject::Host(*host),
            Caller::Operator { operator, .. } => Subject::Operator(operator.clone()),
            Caller::Anonymous | Caller::Local => return Ok(Standing::Unknown),
        };
        let Some(shown) = peer.shown.clone() else { return Ok(Standing::Unknown) };
        let standing = self.registry.adopt(holder, shown, peer.actor((self.clock)())).await.map_err(status::of)?;
        if standing == Standing::Good {
            tracing::warn!(caller = %peer.caller, "a certificate that was made after the restored backup was taken up");
        }
        Ok(standing)
    }

    async fn standing(&self, peer: &Peer) -> Result<Standing, Status> {
        match &peer.caller {
            Caller::Anonymous | Caller::Local => Ok(Standing::Good),
            Caller::Agent { host, serial } => {
                self.registry.host_standing(*host, serial.clone()).await.map_err(status::of)
            }
            Caller::Operator { operator, serial } => {
                self.registry.operator_standing(operator.clone(), serial.clone()).await.map_err(status::of)
            }
        }
    }

    /// A certificate whose place another took is in use somewhere: a copy of the host's identity, or a restored backup.
    async fn note(&self, peer: &Peer, standing: Standing) {
        if let (Caller::Agent { host, .. }, Standing::Superseded) = (&peer.caller, standing) {
            let from = peer.address.map(|address| address.to_string()).unwrap_or_default();
            let text = format!(
                "an older certificate of it was shown from {from}: its identity was copied, or restored from a backup"
            );
            self.warnings.warn(*host, text, (self.clock)()).await;
        }
    }

    fn is_rare_enough(&self, path: &str, peer: &Peer) -> Result<(), Status> {
        let now = Instant::now();
        match &peer.caller {
            Caller::Anonymous => {
                let from = peer.address.map(|address| address.to_string()).unwrap_or_default();
                self.rates
                    .enrol(peer.address, now)
                    .map_err(|wait| too_often(&format!("enrolments, from {from} or in all"), wait))
            }
            Caller::Agent { host, .. } if path == RENEWAL => {
                self.rates.renew(*host, now).map_err(|wait| too_often("renewals of this host's certificate", wait))
            }
            Caller::Operator { operator, .. } => self
                .rates
                .call(operator.name(), now)
                .map_err(|wait| too_often(&format!("calls of the operator {}", operator.name()), wait)),
            Caller::Agent { host, .. } if path == SESSION => {
                self.rates.begin_stream(*host, now).map_err(|wait| too_often("streams of this host", wait))
            }
            // Agents have no other call; the local admin is the owner of the machine.
            Caller::Agent { .. } | Caller::Local => Ok(()),
        }
    }
}

impl<S> Layer<S> for Policy {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, policy: self.clone() }
    }
}

/// Services behind the policy.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    policy: Policy,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<Counted<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was polled ready is used, a clone takes its place.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let policy = self.policy.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let method = TABLE.iter().find(|(call, _)| *call == path).map_or("unknown", |(call, _)| *call);
            let meter = CallMeter::new(policy.meters.clone(), method);
            let peer = request.extensions().get::<Peer>().cloned();
            match policy.check(&path, peer.as_ref()).await {
                Ok(()) => {
                    let mut answer = ready.call(request).await?;
                    policy.remind(peer.as_ref(), &mut answer);
                    Ok(meter.watch(answer))
                }
                Err(status) => {
                    let caller = peer.as_ref().map(|peer| peer.caller.to_string()).unwrap_or_default();
                    tracing::info!(%caller, path, reason = status.message(), "call refused");
                    if let Some(peer) = peer.filter(|peer| is_noted(&path, &peer.caller, status.code())) {
                        policy.refusals.note(&peer, method, status.message()).await;
                    }
                    Ok(meter.watch(status.into_http()))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{host::HostId, token::Operator, wire};
    use prost::Message;

    use super::*;

    fn callers() -> [Caller; 5] {
        let operator = |role| Caller::Operator { operator: Operator::new("x", role).unwrap(), serial: Vec::new() };
        [
            Caller::Anonymous,
            Caller::Agent { host: HostId::random(), serial: Vec::new() },
            operator(Role::Viewer),
            operator(Role::Admin),
            Caller::Local,
        ]
    }

    #[test]
    fn every_call_of_the_contract_has_a_line_and_no_line_is_left_over() {
        let files = prost_types::FileDescriptorSet::decode(wire::DESCRIPTORS).unwrap();
        let mut calls: Vec<String> = Vec::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    calls.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        // Those of gRPC itself.
        calls.extend(["Check", "Watch"].map(|call| format!("/grpc.health.v1.Health/{call}")));
        let mut lines: Vec<&str> = TABLE.iter().map(|(call, _)| *call).collect();
        calls.sort();
        lines.sort_unstable();
        assert_eq!(calls, lines);
    }

    #[test]
    fn each_service_admits_only_its_callers() {
        // anonymous, agent, viewer, admin, local
        for (service, expected) in [
            ("Enrollment", [true, false, false, false, false]),
            ("Agent", [false, true, false, false, false]),
            ("Inventory", [false, false, true, true, true]),
            ("Admin", [false, false, false, true, true]),
            ("Health", [false, false, true, true, true]),
        ] {
            let package = if service == "Health" { "grpc.health.v1" } else { "fleetsock.v1" };
            let prefix = format!("/{package}.{service}/");
            for (call, _) in TABLE.iter().filter(|(call, _)| call.starts_with(&prefix)) {
                let decided = callers().map(|caller| decide(call, &caller).is_ok());
                assert_eq!(decided, expected, "{call}");
            }
        }
    }

    #[test]
    fn what_operators_may_do_and_what_they_may_not_is_noted_when_it_is_refused() {
        let noted = |path: &str, code| callers().map(|caller| is_noted(path, &caller, code));
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::ResourceExhausted] {
            assert_eq!(noted("/fleetsock.v1.Admin/Backup", code), [true; 5]);
            assert_eq!(noted("/fleetsock.v1.Inventory/ListHosts", code), [true; 5]);
            assert_eq!(noted(SESSION, code), [false, false, true, true, false]);
            assert_eq!(noted("/fleetsock.v1.Admin/Backups", code), [false; 5]);
        }
        assert_eq!(noted("/fleetsock.v1.Admin/Backup", Code::Unavailable), [false; 5]);
    }

    #[test]
    fn what_is_not_in_the_table_is_denied_to_everybody() {
        for path in ["", "/", "/fleetsock.v1.Admin/", "/fleetsock.v1.Admin/createtoken", "/grpc.health.v1.Health/List"]
        {
            for caller in callers() {
                assert!(decide(path, &caller).is_err(), "{path} for {caller}");
            }
        }
    }
}
