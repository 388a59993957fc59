//! The server of a context, and who we are to it.

use std::path::{Path, PathBuf};

use fleetsock_proto::{
    client::{ConnectError, OperatorClient, Refusal, Target, renew_operator},
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
    let client = connect_as(invocation, identity).await?;
    // A command that connects again asks the same server.
    invocation.renewals.get_or_init(|| client.renewal_watch());
    Ok(client)
}

/// Where the identity of the context that is meant lies.
pub fn identity_folder(invocation: &Invocation) -> Result<PathBuf, Failure> {
    let contexts = Contexts::load(&folders::config()?)?;
    let name = contexts.choose(invocation.options.context.as_deref())?.clone();
    contexts.identity_folder(&name).map(Path::to_owned)
}

/// Renews our certificate when an answer asked for that: the server has another root CA. The answer itself was given, so
/// what goes wrong is told and fails nothing.
pub async fn keep_up(invocation: &Invocation) {
    let Some(watch) = invocation.renewals.get() else { return };
    let Ok((_, before)) = identity(invocation) else { return };
    if !watch.asks_for(&before) {
        return;
    }
    match renew(invocation, &before).await {
        Ok(()) => {
            invocation.console.note("the server has another root CA: it is trusted, and your certificate is renewed")
        }
        Err(failure) => invocation.console.note(&format!(
            "the server has another root CA, and your certificate was not renewed: {}; run a command again, or log in \
             anew before the old root is retired",
            failure.message
        )),
    }
}

async fn renew(invocation: &Invocation, before: &Identity) -> Result<(), Failure> {
    let folder = identity_folder(invocation)?;
    Ok(renew_operator(before).await?.store(&folder)?)
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
