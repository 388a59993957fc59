//! Typed clients of a server: they take and return the types of the domain, never generated ones.

use std::{path::PathBuf, pin::Pin as PinBox, sync::LazyLock};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{IntoStreamingRequest, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};

pub use crate::connection::{
    CONNECT_TIMEOUT, CallError, ConnectError, Dial, Dialling, KEEP_ALIVE, Refusal, Wire, dial_tcp,
};
use crate::{
    InvalidMessage,
    answer::{AnswerMeta, Gap},
    audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    change::ChangeRecord,
    codec::FrugalCodec,
    condition::Condition,
    connection::{Connection, check_expiry},
    host::{Host, HostId, HostSelector},
    identity::{Identity, Key, pin_of},
    join::JoinString,
    listener::Listener,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    session::Session,
    stream::{Outgoing, PackedRequest, ServerMessage},
    summary::Sum,
    time::{self, Timestamp},
    tls,
    token::{Conditions, NewToken, Operator, OperatorCertificate, RevokedOperator, Token},
    wire::{
        self, admin_client::AdminClient, agent_client, enrollment_client::EnrollmentClient,
        inventory_client::InventoryClient,
    },
};

mod backups;
mod roots;

pub use self::{
    backups::Backup,
    roots::{RenewalWatch, renew_operator},
};

/// The method whose batches travel as they lie in the agent's spool, so that no generated client calls it.
static SESSION: LazyLock<PathAndQuery> = LazyLock::new(|| PathAndQuery::from_static("/fleetsock.v1.Agent/Session"));

/// Largest message that an operator's client takes, bytes. A server's chunks stay far below.
pub const ANSWER_BYTES_LIMIT: usize = 4 * 1024 * 1024;

/// Largest message that an agent takes, and that anybody takes of which certificates are a part, bytes: a few of them, and
/// a word. Within a larger one a hostile server could pack millions of empty ones, each of which takes room.
pub const CERTIFICATES_BYTES_LIMIT: usize = 64 * 1024;

/// Trades a token for an identity. The key never leaves this process.
///
/// `host_name` is what the host calls itself; operators leave it empty.
pub async fn enroll(join: &JoinString, host_name: &str, key: Key) -> Result<Identity, ConnectError> {
    enroll_by(dial_tcp, join, host_name, key).await
}

/// The same by a wire of the caller's choice.
pub async fn enroll_by(dial: Dial, join: &JoinString, host_name: &str, key: Key) -> Result<Identity, ConnectError> {
    let name = join.trust_domain.enroll_name();
    let connection = Connection::tls(dial, &join.address, name, tls::pinned(join.pin)).await?;
    let request = wire::EnrollRequest {
        token_id: join.token_id.clone(),
        token_secret: join.secret.as_bytes().to_vec(),
        csr_der: key.request_der()?,
        host_name: host_name.to_owned(),
    };
    let response =
        enrollment(&connection).enroll(request).await.map_err(|status| connection.call_error(status))?.into_inner();
    // While a root takes the place of another, the join string may be of either.
    let told = std::iter::once(&response.root_der).chain(&response.roots_der);
    let pins = told.map(|root| pin_of(root)).collect::<Result<Vec<_>, _>>()?;
    if !pins.contains(&join.pin) {
        let field = "EnrollResponse.root_der";
        return Err(CallError::from(InvalidMessage::new(field, "is not the CA of the join string")).into());
    }
    let mut identity = Identity::new(join.address.clone(), response.root_der, response.certificate_chain_der, key)?;
    identity.trust(&response.roots_der)?;
    Ok(identity)
}

/// A new certificate for a new key in place of one that is over; the old key proves who asks. The server gives it for a
/// while after the end, unless the host was revoked or another certificate took the old one's place; then, and for every
/// other reason, it says [`CallError::Denied`] and only a new token helps.
pub async fn renew_expired(identity: &Identity) -> Result<Identity, ConnectError> {
    renew_expired_by(dial_tcp, identity).await
}

/// The same by a wire of the caller's choice.
pub async fn renew_expired_by(dial: Dial, identity: &Identity) -> Result<Identity, ConnectError> {
    let name = identity.spiffe_id.trust_domain.enroll_name();
    let connection = Connection::tls(dial, &identity.address, name, tls::trusting(identity.roots())).await?;
    let key = Key::generate()?;
    let csr_der = key.request_der()?;
    let request = wire::RenewExpiredRequest {
        certificate_der: identity.chain().first().map(|leaf| leaf.to_vec()).unwrap_or_default(),
        signature: identity.sign_renewal(&csr_der)?,
        csr_der,
    };
    let response = enrollment(&connection)
        .renew_expired(request)
        .await
        .map_err(|status| connection.call_error(status))?
        .into_inner();
    let mut renewed = identity.renewed(response.certificate_chain_der, key)?;
    renewed.trust(&response.roots_der)?;
    Ok(renewed)
}

fn enrollment(connection: &Connection) -> EnrollmentClient<tonic::transport::Channel> {
    EnrollmentClient::new(connection.channel.clone()).max_decoding_message_size(CERTIFICATES_BYTES_LIMIT)
}

async fn identified(dial: Dial, identity: &Identity) -> Result<Connection, ConnectError> {
    check_expiry(&identity.address, identity.expires_at, Timestamp::now())?;
    let name = identity.spiffe_id.trust_domain.server_name();
    Connection::tls(dial, &identity.address, name, tls::identified(identity)).await
}

/// The server as an agent sees it.
#[derive(Debug)]
pub struct AgentClient {
    connection: Connection,
    client: agent_client::AgentClient<tonic::transport::Channel>,
}

/// A certificate in place of the one before.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// Leaf first, then the issuing CA, DER.
    pub chain_der: Vec<Vec<u8>>,
    /// End of its validity.
    pub expires_at: Timestamp,
    /// The roots to trust from now on, DER, the one in use first; none means those before.
    pub roots_der: Vec<Vec<u8>>,
}

impl AgentClient {
    /// Connects with the identity of an agent.
    pub async fn connect(identity: &Identity) -> Result<AgentClient, ConnectError> {
        AgentClient::connect_by(dial_tcp, identity).await
    }

    /// The same by a wire of the caller's choice.
    pub async fn connect_by(dial: Dial, identity: &Identity) -> Result<AgentClient, ConnectError> {
        let connection = identified(dial, identity).await?;
        let client = agent_client::AgentClient::new(connection.channel.clone())
            .max_decoding_message_size(CERTIFICATES_BYTES_LIMIT);
        Ok(AgentClient { connection, client })
    }

    /// Opens the stream. What is sent into `outgoing` travels; the first message must be a Hello.
    pub async fn session<M: Into<Outgoing> + Send + 'static>(
        &mut self,
        outgoing: mpsc::Receiver<M>,
    ) -> Result<ServerMessages, CallError> {
        let outgoing = ReceiverStream::new(outgoing).map(|message| PackedRequest::from(message.into()));
        let opened = async {
            let channel = self.connection.channel.clone();
            let mut grpc = Grpc::new(channel).max_decoding_message_size(CERTIFICATES_BYTES_LIMIT);
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = FrugalCodec::<PackedRequest, wire::SessionResponse>::default();
            grpc.streaming(outgoing.into_streaming_request(), SESSION.clone(), codec).await
        };
        match opened.await {
            Ok(response) => Ok(ServerMessages { connection: self.connection.clone(), stream: response.into_inner() }),
            Err(status) => Err(self.connection.call_error(status)),
        }
    }

    /// Asks for a certificate for a new key.
    pub async fn renew(&mut self, csr_der: Vec<u8>) -> Result<Renewed, CallError> {
        let response = self
            .client
            .renew_certificate(wire::RenewCertificateRequest { csr_der })
            .await
            .map_err(|status| self.connection.call_error(status))?
            .into_inner();
        let expires_at = time::required("RenewCertificateResponse.expires_at", response.expires_at)?;
        Ok(Renewed { chain_der: response.certificate_chain_der, expires_at, roots_der: response.roots_der })
    }
}

/// What the server says on a stream.
#[derive(Debug)]
pub struct ServerMessages {
    connection: Connection,
    stream: Streaming<wire::SessionResponse>,
}

impl ServerMessages {
    /// The next message; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, CallError> {
        match self.stream.message().await {
            Ok(Some(message)) => Ok(Some(ServerMessage::try_from(message)?)),
            Ok(None) => Ok(None),
            Err(status) => Err(self.connection.call_error(status)),
        }
    }
}

/// Which server an operator means.
#[derive(Debug)]
pub enum Target {
    /// A server anywhere, with the identity of an operator.
    Remote(Box<Identity>),
    /// The server on this machine, by its Unix socket; whoever can open that is an admin.
    Local(PathBuf),
}

/// The server as an operator sees it.
#[derive(Debug)]
pub struct OperatorClient {
    connection: Connection,
    inventory: InventoryClient<tonic::transport::Channel>,
    admin: AdminClient<tonic::transport::Channel>,
    renewals: RenewalWatch,
}

impl OperatorClient {
    /// Connects.
    pub async fn connect(target: Target) -> Result<OperatorClient, ConnectError> {
        let connection = match target {
            Target::Remote(identity) => identified(dial_tcp, &identity).await?,
            Target::Local(path) => Connection::local(&path).await?,
        };
        let inventory = InventoryClient::new(connection.channel.clone()).max_decoding_message_size(ANSWER_BYTES_LIMIT);
        let admin = AdminClient::new(connection.channel.clone()).max_decoding_message_size(ANSWER_BYTES_LIMIT);
        Ok(OperatorClient { connection, inventory, admin, renewals: RenewalWatch::default() })
    }

    /// The hosts, by name.
    pub async fn list_hosts(&mut self, hosts: HostSelector) -> Result<Answer<Host>, CallError> {
        let answer = self.inventory.list_hosts(wire::ListHostsRequest { hosts: Some(hosts.into()) }).await;
        self.answer(answer)
    }

    /// Listeners by host, protocol, port, address.
    pub async fn list_ports(&mut self, question: PortQuestion) -> Result<Answer<Listener>, CallError> {
        let answer = self.inventory.list_ports(wire::ListPortsRequest::from(question)).await;
        self.answer(answer)
    }

    /// Sessions, newest first.
    pub async fn list_sessions(&mut self, question: SessionQuestion) -> Result<Answer<Session>, CallError> {
        let answer = self.inventory.list_sessions(wire::ListSessionsRequest::from(question)).await;
        self.answer(answer)
    }

    /// What was not observed, newest first.
    pub async fn list_coverage(&mut self, question: CoverageQuestion) -> Result<Answer<Gap>, CallError> {
        let answer = self.inventory.list_coverage(wire::ListCoverageRequest::from(question)).await;
        self.answer(answer)
    }

    /// What opened, closed or changed hands, newest first.
    pub async fn list_changes(&mut self, question: ChangeQuestion) -> Result<Answer<ChangeRecord>, CallError> {
        let answer = self.inventory.list_changes(wire::ListChangesRequest::from(question)).await;
        self.answer(answer)
    }

    /// Listeners, sessions and bytes in sum, the largest groups first.
    pub async fn summarize(&mut self, question: SummaryQuestion) -> Result<Answer<Sum>, CallError> {
        let answer = self.inventory.summarize(wire::SummarizeRequest::from(question)).await;
        self.answer(answer)
    }

    /// Makes a token; the text is the join string, which is told only now.
    pub async fn create_token(&mut self, token: NewToken) -> Result<(Token, String), CallError> {
        self.create_token_under(token, Conditions::default()).await
    }

    /// The same for a token that admits only under conditions.
    pub async fn create_token_under(
        &mut self,
        token: NewToken,
        conditions: Conditions,
    ) -> Result<(Token, String), CallError> {
        let response = self.admin.create_token(wire::CreateTokenRequest::from((token, conditions))).await;
        let response = self.answered(response)?;
        let token = response.token.ok_or_else(|| InvalidMessage::missing("CreateTokenResponse.token"))?;
        Ok((Token::try_from(token)?, response.join))
    }

    /// The tokens, newest first.
    pub async fn list_tokens(&mut self) -> Result<Vec<Token>, CallError> {
        let response = self.admin.list_tokens(wire::ListTokensRequest {}).await;
        let tokens = self.answered(response)?.tokens;
        Ok(tokens.into_iter().map(Token::try_from).collect::<Result<_, _>>()?)
    }

    /// Ends a token early.
    pub async fn revoke_token(&mut self, token_id: &str) -> Result<(), CallError> {
        let request = wire::RevokeTokenRequest { token_id: token_id.to_owned() };
        let response = self.admin.revoke_token(request).await;
        self.answered(response).map(drop)
    }

    /// An identity for an operator, with a key made here.
    pub async fn issue_operator(&mut self, operator: Operator) -> Result<Identity, ConnectError> {
        let key = Key::generate()?;
        let request = wire::IssueOperatorRequest { operator: Some(operator.into()), csr_der: key.request_der()? };
        let admin = self.admin.clone();
        let response = admin.max_decoding_message_size(CERTIFICATES_BYTES_LIMIT).issue_operator(request).await;
        let response = self.answered(response)?;
        let address = response.address.parse().map_err(|error: crate::join::InvalidServerAddress| {
            CallError::from(InvalidMessage::new("IssueOperatorResponse.address", error.to_string()))
        })?;
        let mut identity = Identity::new(address, response.root_der, response.certificate_chain_der, key)?;
        identity.trust(&response.roots_der)?;
        Ok(identity)
    }

    /// Refuses a host from now on, named by id or by a name that only one host has.
    pub async fn revoke_host(&mut self, host: &str, reason: &str) -> Result<HostId, CallError> {
        let request = wire::RevokeHostRequest { host: host.to_owned(), reason: reason.to_owned() };
        let response = self.admin.revoke_host(request).await;
        Ok(HostId::from_wire("RevokeHostResponse.host_id", &self.answered(response)?.host_id)?)
    }

    /// Lets a host speak that waits for approval.
    pub async fn approve_host(&mut self, host: &str) -> Result<HostId, CallError> {
        let response = self.admin.approve_host(wire::ApproveHostRequest { host: host.to_owned() }).await;
        Ok(HostId::from_wire("ApproveHostResponse.host_id", &self.answered(response)?.host_id)?)
    }

    /// The certificates of operators, by name.
    pub async fn list_operators(&mut self) -> Result<Vec<OperatorCertificate>, CallError> {
        let response = self.admin.list_operators(wire::ListOperatorsRequest {}).await;
        let certificates = self.answered(response)?.certificates;
        Ok(certificates.into_iter().map(OperatorCertificate::try_from).collect::<Result<_, _>>()?)
    }

    /// Refuses an operator from now on.
    pub async fn revoke_operator(&mut self, name: &str, reason: &str) -> Result<RevokedOperator, CallError> {
        let request = wire::RevokeOperatorRequest { name: name.to_owned(), reason: reason.to_owned() };
        let response = self.admin.revoke_operator(request).await;
        let wire::RevokeOperatorResponse { certificates, tokens } = self.answered(response)?;
        Ok(RevokedOperator { certificates, tokens })
    }

    /// Who did and asked what, newest first.
    pub async fn list_audit(&mut self, question: AuditQuestion) -> Result<Answer<AuditRow>, CallError> {
        let answer = self.admin.list_audit(wire::ListAuditRequest::from(question)).await;
        self.answer(answer)
    }

    /// Whether each row of the audit log follows from the one before, and the row of `mark` is the one it was.
    pub async fn verify_audit(&mut self, mark: Option<AuditMark>) -> Result<AuditVerdict, CallError> {
        let response = self.admin.verify_audit(wire::VerifyAuditRequest::from(mark)).await;
        Ok(AuditVerdict::try_from(self.answered(response)?)?)
    }

    /// Whether the server does its work.
    pub async fn show_server(&mut self) -> Result<Condition, CallError> {
        let response = self.inventory.show_server(wire::ShowServerRequest {}).await;
        Ok(self.answered(response)?.into())
    }

    fn answered<T>(&self, response: Result<tonic::Response<T>, Status>) -> Result<T, CallError> {
        let (metadata, answered) = match response {
            Ok(response) => {
                let (metadata, message, _) = response.into_parts();
                (metadata, Ok(message))
            }
            Err(status) => (status.metadata().clone(), Err(self.connection.call_error(status))),
        };
        self.renewals.note(&metadata);
        answered
    }

    fn answer<P, T>(&self, response: Result<tonic::Response<Streaming<P>>, Status>) -> Result<Answer<T>, CallError>
    where
        P: Send + 'static,
        Part<T>: TryFrom<P, Error = InvalidMessage>,
    {
        let connection = self.connection.clone();
        let stream = self.answered(response)?.map(move |message| match message {
            Ok(message) => Ok(Part::try_from(message)?),
            Err(status) => Err(connection.call_error(status)),
        });
        Ok(Answer { parts: Box::pin(stream), meta: None })
    }
}

/// A message of an answer.
struct Part<T> {
    rows: Vec<T>,
    meta: Option<AnswerMeta>,
}

macro_rules! parts {
    ($($message:ident, $rows:ident, $row:ty;)*) => {$(
        impl TryFrom<wire::$message> for Part<$row> {
            type Error = InvalidMessage;

            fn try_from(message: wire::$message) -> Result<Part<$row>, InvalidMessage> {
                Ok(Part {
                    rows: message.$rows.into_iter().map(<$row>::try_from).collect::<Result<_, _>>()?,
                    meta: message.meta.map(AnswerMeta::try_from).transpose()?,
                })
            }
        }
    )*};
}

parts! {
    ListHostsResponse, hosts, Host;
    ListPortsResponse, ports, Listener;
    ListSessionsResponse, sessions, Session;
    ListCoverageResponse, gaps, Gap;
    ListChangesResponse, changes, ChangeRecord;
    SummarizeResponse, sums, Sum;
    ListAuditResponse, rows, AuditRow;
}

/// An answer that arrives in chunks, and at its end what it covers.
pub struct Answer<T> {
    parts: PinBox<Box<dyn Stream<Item = Result<Part<T>, CallError>> + Send>>,
    meta: Option<AnswerMeta>,
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl<T> Answer<T> {
    /// The next rows; `None` after the last. An answer that ends without saying what it covers is an error.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>, CallError> {
        while let Some(part) = self.parts.next().await {
            let part = part?;
            if part.meta.is_some() {
                self.meta = part.meta;
            }
            if !part.rows.is_empty() {
                return Ok(Some(part.rows));
            }
        }
        match self.meta {
            Some(_) => Ok(None),
            None => Err(CallError::Unavailable("the answer broke off".to_owned())),
        }
    }

    /// What the answer covers; there after [`Answer::next`] returned `None`.
    pub fn meta(&self) -> Option<&AnswerMeta> {
        self.meta.as_ref()
    }

    /// All rows and what they cover. For answers that are known to be short.
    pub async fn collect(mut self) -> Result<(Vec<T>, AnswerMeta), CallError> {
        let mut rows = Vec::new();
        while let Some(chunk) = self.next().await? {
            rows.extend(chunk);
        }
        Ok((rows, self.meta.unwrap_or_default()))
    }
}
