//! `fleetctl login`: an identity from a server, kept as a context that is used from now on.

use std::{
    env,
    io::{self, Read},
    path::PathBuf,
};

use clap::Args;
use fleetsock_proto::{
    client::{self, ConnectError, OperatorClient, Target},
    identity::{Identity, Key},
    join::{JOIN_STRING_LIMIT, JoinString},
    spiffe::Subject,
    token::{Operator, Role},
};

use crate::{
    Invocation,
    contexts::{ContextName, Contexts},
    failure::{Ended, Exit, Failure},
    folders,
    record::context::operator,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl login fsj1_...                 with the join string that an admin made for you
  fleetctl login - < join                 the same, without a trace in the list of processes
  fleetctl login --context prod fsj1_...  a second server beside the first
  sudo fleetctl login --local /var/lib/fleetsock/server/admin.sock
                                          on the server itself: become its first admin

";

const JOIN_VARIABLE: &str = "FLEETSOCK_JOIN";

/// How to get an identity.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Join string; - reads it from standard input, nothing from FLEETSOCK_JOIN.
    #[arg(value_name = "JOIN", conflicts_with = "local")]
    join: Option<String>,
    /// The Unix socket of a server on this machine.
    #[arg(long, value_name = "SOCKET")]
    local: Option<PathBuf>,
    /// With --local: name of the operator [default: your user name].
    #[arg(long, value_name = "NAME", requires = "local")]
    name: Option<String>,
    /// With --local: what the operator may do, viewer or admin.
    #[arg(long, value_name = "ROLE", default_value = "admin", requires = "local")]
    role: String,
}

/// Gets an identity and makes its context the current one.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    // A wrong name is told before a token is spent.
    let asked = invocation.options.context.as_deref().map(str::parse::<ContextName>).transpose();
    let asked = asked.map_err(|error| Failure::usage(error.to_string()))?;
    let folder = folders::config()?;
    Contexts::load(&folder)?;
    let identity = match &arguments.local {
        Some(socket) => {
            let name = arguments.name.clone().unwrap_or_else(user_name);
            let role = arguments.role.parse::<Role>().map_err(|error| Failure::usage(format!("--role: {error}")))?;
            let operator = Operator::new(&name, role).map_err(|error| {
                Failure::usage(format!("--name: {error}")).hint("fleetctl login --local SOCKET --name alice")
            })?;
            issue(socket, operator).await?
        }
        None => enroll(&join_string(arguments.join)?, &asked, &folder).await?,
    };
    let name = match asked {
        Some(name) => name,
        None => name_for(&identity),
    };
    Contexts::change(&folder, |contexts| {
        refuse_other_server(contexts, &name, identity.address.as_str())?;
        contexts.put(name.clone(), &identity)?;
        contexts.set_current(Some(name.clone()))
    })?;
    let (server, operator) = (&identity.address, operator(&identity));
    invocation.console.note(&format!("context {name}: server {server}, as {operator}; in use from now on"));
    invocation.console.note("next: fleetctl hosts");
    Ok(Exit::Done)
}

/// An identity from the server on this machine.
pub(crate) async fn issue(socket: &std::path::Path, operator: Operator) -> Result<Identity, Failure> {
    let mut client = OperatorClient::connect(Target::Local(socket.to_owned())).await.map_err(|error| {
        let denied = io::ErrorKind::PermissionDenied;
        let refused = matches!(&error, ConnectError::Unreachable { source, .. } if source.kind() == denied);
        let failure = Failure::from(error);
        if refused {
            Failure { exit: Exit::Denied, ..failure }.hint("sudo fleetctl login --local ... (as the server's user)")
        } else {
            failure.hint("fleetsock-server serve (it makes the socket), or the path in its server.toml")
        }
    })?;
    Ok(client.issue_operator(operator).await?)
}

async fn enroll(join: &JoinString, asked: &Option<ContextName>, folder: &std::path::Path) -> Result<Identity, Failure> {
    if let Some(name) = asked {
        refuse_other_server(&Contexts::load(folder)?, name, join.address.as_str())?;
    }
    let identity = client::enroll(join, "", Key::generate()?).await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.exit {
            Exit::Denied => failure.hint("ask an admin for a new one: fleetctl tokens create --operator NAME"),
            _ => failure,
        }
    })?;
    match &identity.spiffe_id.subject {
        Subject::Operator(_) => Ok(identity),
        Subject::Agent(host) => {
            let message = format!(
                "this join string is for hosts, not for operators; it was used for a host {host} that will never report"
            );
            Err(Failure::new(Exit::Failed, message)
                .hint("fleetctl tokens create --operator NAME makes one for operators"))
        }
    }
}

/// The join string that was typed, piped or set.
fn join_string(typed: Option<String>) -> Result<JoinString, Failure> {
    let text = match typed.as_deref() {
        Some("-") => {
            let mut text = String::new();
            // One byte more than fits, so that too long a text is seen as one.
            let limit = u64::try_from(JOIN_STRING_LIMIT).unwrap_or(u64::MAX).saturating_mul(2);
            io::stdin()
                .take(limit)
                .read_to_string(&mut text)
                .map_err(|error| Failure::new(Exit::Failed, format!("cannot read standard input: {error}")))?;
            text
        }
        Some(text) => text.to_owned(),
        None => env::var(JOIN_VARIABLE).map_err(|_| {
            Failure::usage("login takes a join string, or --local SOCKET on the server itself")
                .hint("fleetctl login --help")
        })?,
    };
    text.parse().map_err(|error: fleetsock_proto::join::InvalidJoinString| {
        Failure::usage(error.to_string()).hint("fleetctl login fsj1_... (the whole word that tokens create wrote)")
    })
}

/// Logging in again replaces an identity of the same server; that of another server is not lost by a slip.
fn refuse_other_server(contexts: &Contexts, name: &ContextName, address: &str) -> Result<(), Failure> {
    let Ok(folder) = contexts.identity_folder(name) else { return Ok(()) };
    match Identity::load(folder) {
        Ok(there) if there.address.as_str() != address => {
            let message = format!("context {name} is for server {}, this is {address}", there.address);
            Err(Failure::usage(message).hint("fleetctl login --context ANOTHER-NAME ..."))
        }
        _ => Ok(()),
    }
}

/// The name of the server's machine, as far as it can be the name of a context.
fn name_for(identity: &Identity) -> ContextName {
    let address = identity.address.as_str();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name: String = host.chars().map(|c| if c == ':' { '-' } else { c }).take(64).collect();
    name.parse().unwrap_or_default()
}

/// The user's name, as far as it can be that of an operator.
fn user_name() -> String {
    let name = env::var("SUDO_USER").or_else(|_| env::var("USER")).or_else(|_| env::var("LOGNAME")).unwrap_or_default();
    let name: String =
        name.to_lowercase().chars().filter(|c| Operator::new(&c.to_string(), Role::Viewer).is_ok()).collect();
    if name.is_empty() { "admin".to_owned() } else { name }
}
