//! The server of a context, and who we are to it.

use std::path::Path;

use fleetsock_proto::{
    client::{ConnectError, OperatorClient, Refusal, Target},
    identity::Identity,
};

use crate::{
    Invocation, clock,
    contexts::{ContextName, Contexts},
    failure::Failure,
    folders,
};

/// The context that is meant, and its identity.
pub fn identity(invocation: &Invocation) -> Result<(ContextName, Identity), Failure> {
    let contexts = Contexts::load(&folders::config()?)?;
    let name = contexts.choose(invocation.options.context.as_deref())?.clone();
    let identity = load(contexts.identity_folder(&name)?)?;
    Ok((name, identity))
}

/// An identity; its private key must be readable by us alone.
pub fn load(folder: &Path) -> Result<Identity, Failure> {
    Ok(Identity::load(folder)?)
}

/// Connects to the server of the context that is meant.
pub async fn connect(invocation: &Invocation) -> Result<OperatorClient, Failure> {
    let (_, identity) = identity(invocation)?;
    connect_as(invocation, identity).await
}

/// Connects to a server with an identity.
pub async fn connect_as(invocation: &Invocation, identity: Identity) -> Result<OperatorClient, Failure> {
    let expires_at = identity.expires_at;
    OperatorClient::connect(Target::Remote(Box::new(identity))).await.map_err(|error| {
        let now = invocation.clock.now();
        let expired = match &error {
            ConnectError::Refused { address, refusal: Refusal::Expired } if expires_at <= now => Some(format!(
                "server {address} refused our certificate (expired {} ago)",
                clock::lapse(now.since(expires_at))
            )),
            _ => None,
        };
        let failure = Failure::from(error);
        match expired {
            Some(message) => Failure { message, ..failure },
            None => failure,
        }
    })
}
