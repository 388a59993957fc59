//! `fleetctl tokens`: what hosts and operators enrol with.

use std::{collections::BTreeMap, io::Write};

use clap::{Args, Subcommand};
use fleetsock_proto::token::{
    Approval, Conditions, Label, NewToken, Operator, Role, TOKEN_LIFETIME_S, TOKEN_NOTE_LIMIT, TOKEN_USES_LIMIT, Token,
    TokenPurpose,
};

use crate::{
    Invocation, clock,
    failure::{Ended, Exit, Failure},
    filters::Peer,
    listing::Listing,
    moment,
    render::Format,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl tokens create                                      one host may enrol within an hour
  fleetctl tokens create --uses 500 --lifetime 7d --label site=berlin > join
  fleetctl tokens create --uses 50 --from 10.0.0.0/8 --approve
  fleetctl tokens create --operator alice --role viewer       what alice gives to fleetctl login
  fleetctl tokens list
  fleetctl tokens revoke 1f0c9a37d2e64b58

";

/// What to do with tokens.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token; its join string is written to standard output, now and never again.
    #[command(before_help = EXAMPLES)]
    Create(Create),
    /// List tokens, newest first.
    List,
    /// End a token early; what enrolled with it stays.
    Revoke {
        /// Ids, as `tokens list` shows them.
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// How often it may be used.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_LIMIT)))]
    uses: u32,
    /// How long it is valid, a minute to a year.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    lifetime: String,
    /// A label for the hosts that enrol with it; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "operator")]
    label: Vec<String>,
    /// Admit only from addresses of this prefix, as in 10.0.0.0/8 or 203.0.113.7.
    #[arg(long, value_name = "CIDR")]
    from: Option<String>,
    /// Hosts that enrol with it wait until `fleetctl hosts approve HOST`.
    #[arg(long, conflicts_with = "operator")]
    approve: bool,
    /// Enrol this operator, and no host.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// What the operator may do: viewer or admin.
    #[arg(long, value_name = "ROLE", default_value = "viewer", requires = "operator")]
    role: String,
    /// What people will see in lists.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    match arguments.what.unwrap_or(What::List) {
        What::Create(create) => self::create(invocation, create).await,
        What::List => {
            let listing = Listing::<Token>::new(invocation, &[])?;
            let tokens = server::connect(invocation).await?.list_tokens().await?;
            listing.write_rows(invocation, tokens)
        }
        What::Revoke { tokens } => {
            let mut client = server::connect(invocation).await?;
            for token in tokens {
                let revoked = client.revoke_token(&token).await;
                revoked.map_err(|error| Failure::from(error).or_hint("fleetctl tokens list"))?;
                invocation.console.note(&format!("token {token} is revoked"));
            }
            Ok(Exit::Done)
        }
    }
}

impl Create {
    fn conditions(&self) -> Result<Conditions, Failure> {
        let from = match self.from.as_deref().map(|text| (text, text.parse::<Peer>())) {
            None => None,
            Some((_, Ok(Peer::Prefix(prefix)))) => Some(prefix),
            Some((text, _)) => {
                return Err(Failure::usage(format!("--from: `{text}` is no IP address or CIDR prefix"))
                    .hint("--from 10.0.0.0/8, --from 203.0.113.7 or --from 2001:db8::/32"));
            }
        };
        Ok(Conditions { from, approval: if self.approve { Approval::Needed } else { Approval::NotNeeded } })
    }

    fn token(&self) -> Result<NewToken, Failure> {
        let usage = |message: String| Failure::usage(message).hint("fleetctl tokens create --help");
        let lifetime = moment::parse_lapse(&self.lifetime).map_err(|error| usage(format!("--lifetime: {error}")))?;
        if !TOKEN_LIFETIME_S.contains(&lifetime.as_secs()) {
            return Err(usage(format!("--lifetime: {} is not within a minute and a year", self.lifetime)));
        }
        if self.note.len() > TOKEN_NOTE_LIMIT {
            return Err(usage(format!("--note: {} bytes are more than {TOKEN_NOTE_LIMIT}", self.note.len())));
        }
        let purpose = match &self.operator {
            Some(name) => {
                let role = self.role.parse::<Role>().map_err(|error| usage(format!("--role: {error}")))?;
                let operator = Operator::new(name, role).map_err(|error| usage(format!("--operator: {error}")))?;
                TokenPurpose::Operator(operator)
            }
            None => {
                let labels = self
                    .label
                    .iter()
                    .map(|text| text.parse::<Label>().map(|label| (label.key, label.value)))
                    .collect::<Result<BTreeMap<_, _>, _>>()
                    .map_err(|error| usage(format!("--label: {error}")))?;
                TokenPurpose::Hosts { labels }
            }
        };
        Ok(NewToken { lifetime_s: lifetime.as_secs(), uses: self.uses, purpose, note: self.note.clone() })
    }
}

async fn create(invocation: &mut Invocation, create: Create) -> Result<Exit, Ended> {
    let (token, conditions) = (create.token()?, create.conditions()?);
    let (token, join) = server::connect(invocation).await?.create_token_under(token, conditions).await?;
    let out = &mut invocation.console.out;
    match invocation.options.output {
        Format::Json | Format::Jsonl => {
            let object = serde_json::json!({
                "join": join,
                "token_id": token.token_id,
                "expires_at": clock::rfc3339(token.expires_at),
                "uses_total": token.uses_total,
            });
            writeln!(out, "{object}")?;
        }
        _ => writeln!(out, "{join}")?,
    }
    out.flush()?;
    let valid = clock::lapse(token.expires_at.since(token.created_at));
    let (who, command) = match &token.purpose {
        TokenPurpose::Operator(operator) => (format!("operator {operator}"), "fleetctl login -"),
        TokenPurpose::Hosts { .. } => ("hosts".to_owned(), "fleetsock-agent enroll --join fsj1_..."),
    };
    let times = if token.uses_total == 1 { "once".to_owned() } else { format!("{} times", token.uses_total) };
    let from = token.conditions.from.map(|prefix| format!(", from {prefix}")).unwrap_or_default();
    let told = format!("token {} admits {who}{from}, {times}, within {valid}; it is a secret", token.token_id);
    invocation.console.note(&told);
    if token.conditions.approval == Approval::Needed {
        invocation.console.note("each host then waits for: fleetctl hosts approve HOST");
    }
    invocation.console.note(&format!("next, over there: {command}"));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> Create {
        Create {
            uses: 1,
            lifetime: "1h".to_owned(),
            label: Vec::new(),
            from: None,
            approve: false,
            operator: None,
            role: "viewer".to_owned(),
            note: String::new(),
        }
    }

    #[test]
    fn a_token_is_what_was_typed() {
        let token =
            Create { label: vec!["site=berlin".to_owned()], lifetime: "7d".to_owned(), ..create() }.token().unwrap();
        assert_eq!(token.lifetime_s, 604_800);
        let TokenPurpose::Hosts { labels } = token.purpose else { panic!("{token:?}") };
        assert_eq!(labels["site"], "berlin");
        let token =
            Create { operator: Some("alice".to_owned()), role: "admin".to_owned(), ..create() }.token().unwrap();
        assert_eq!(token.purpose, TokenPurpose::Operator(Operator::new("alice", Role::Admin).unwrap()));
    }

    #[test]
    fn a_token_holds_under_the_conditions_that_were_typed() {
        assert_eq!(create().conditions().unwrap(), Conditions::default());
        let given = Create { from: Some("10.1.2.3/8".to_owned()), approve: true, ..create() }.conditions().unwrap();
        assert_eq!(given, Conditions { from: "10.0.0.0/8".parse().ok(), approval: Approval::Needed });
        for text in ["10.0.0.0/33", "web1", "", "10.0.0"] {
            let failure = Create { from: Some(text.to_owned()), ..create() }.conditions().unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.message.starts_with("--from: "), "{text}: {failure}");
        }
    }

    #[test]
    fn what_no_server_would_take_is_refused_here() {
        for (wrong, expected) in [
            (Create { lifetime: "30s".to_owned(), ..create() }, "--lifetime: 30s is not within a minute and a year"),
            (Create { lifetime: "soon".to_owned(), ..create() }, "--lifetime: `soon` is no length of time"),
            (Create { label: vec!["site".to_owned()], ..create() }, "--label: `site` is no label"),
            (Create { operator: Some("Alice".to_owned()), ..create() }, "--operator: `Alice` is no operator name"),
            (
                Create { operator: Some("a".to_owned()), role: "boss".to_owned(), ..create() },
                "--role: `boss` is no role",
            ),
            (Create { note: "n".repeat(201), ..create() }, "--note: 201 bytes are more than 200"),
        ] {
            let failure = wrong.token().unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.message.starts_with(expected), "{failure}");
        }
    }
}
