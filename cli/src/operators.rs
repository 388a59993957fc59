//! `fleetctl operators`: who may ask and order.

use clap::{Args, Subcommand};
use fleetsock_proto::token::{OperatorCertificate, RevokedOperator};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    listing::Listing,
    sanitise::sanitise,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl operators                              each certificate, whose it is and what it is worth
  fleetctl operators revoke alice --reason 'left the company'
  fleetctl tokens create --operator alice         how alice gets a new one

";

/// What to do with operators.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the certificates of operators, by name.
    List,
    /// Refuse every certificate and token of operators from now on, also the tokens that they made for others, and end
    /// answers that still run.
    Revoke {
        /// Names.
        #[arg(required = true, value_name = "NAME")]
        operators: Vec<String>,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    match arguments.what.unwrap_or(What::List) {
        What::List => {
            let listing = Listing::<OperatorCertificate>::new(invocation, &[])?;
            let certificates = server::connect(invocation).await?.list_operators().await?;
            listing.write_rows(invocation, certificates)
        }
        What::Revoke { operators, reason } => {
            let mut client = server::connect(invocation).await?;
            for operator in operators {
                let revoked = client.revoke_operator(&operator, &reason).await;
                let revoked = revoked.map_err(|error| Failure::from(error).or_hint("fleetctl operators"))?;
                invocation.console.note(&told(&operator, revoked));
            }
            Ok(Exit::Done)
        }
    }
}

fn told(operator: &str, revoked: RevokedOperator) -> String {
    let count = |number: u32, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    format!(
        "operator {} is revoked: {} and {} ended",
        sanitise(operator),
        count(revoked.certificates, "certificate"),
        count(revoked.tokens, "token")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_revocation_ended_is_counted() {
        let revoked = RevokedOperator { certificates: 1, tokens: 0 };
        assert_eq!(told("alice", revoked), "operator alice is revoked: 1 certificate and 0 tokens ended");
    }
}
