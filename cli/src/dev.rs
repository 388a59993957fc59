//! `fleetctl dev`: a whole fleet of this host alone, with the real programs over real mutual TLS, until Ctrl-C.
//!
//! It writes each command that it runs, so that a reader learns from it how to do the same for many hosts.

use std::{
    env,
    ffi::OsString,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use fleetsock_proto::{
    client::OperatorClient,
    host::{Host, HostSelector, HostState},
    identity::Identity,
    join::DEFAULT_PORT,
    listener::Listener,
    port::PortClass,
    private,
    question::PortQuestion,
    token::{NewToken, Operator, Role, TokenPurpose},
};
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use crate::{
    Invocation,
    contexts::{ContextName, Contexts},
    dev::{
        child::{Program, Surroundings},
        place::Place,
    },
    failure::{Ended, Exit, Failure},
    folders, login, server,
};

pub mod child;
pub mod place;
mod summary;

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl dev                                    a server and an agent for this host, until Ctrl-C
  sudo fleetctl dev                               the same, and the agent sees every process
  fleetctl ports --class well-known               in a second terminal meanwhile

";

const CONTEXT: &str = "dev";
/// How long the server may take to be there, and then the first report.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a host that reports may take to name its first listener; it may have none.
const LISTENERS_PATIENCE: Duration = Duration::from_secs(5);

/// How to run it.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder for everything it keeps [default: $XDG_STATE_HOME/fleetsock/dev].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Leave the fleet where it is at the end.
    #[arg(long)]
    keep: bool,
}

/// Runs the fleet until told to stop, and cleans up whatever happened.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let context = invocation.options.context.as_deref().unwrap_or(CONTEXT).parse::<ContextName>();
    let context = context.map_err(|error| Failure::usage(error.to_string()))?;
    let programs = Programs::find()?;
    let mut stop = Stop::new()?;
    let folder = match arguments.state {
        Some(folder) => std::path::absolute(&folder)
            .map_err(|error| Failure::usage(format!("--state {}: {error}", folder.display())))?,
        None => folders::state()?.join("dev"),
    };
    let config = folders::config()?;
    refuse_other_context(&config, &context, &folder)?;
    let place = Place::take(&folder).await?;
    let mut fleet = Fleet { place, programs, config, context, server: None, agent: None };
    let lived = tokio::select! {
        lived = fleet.live(invocation) => lived.map(|()| Exit::Done),
        () = stop.told() => {
            invocation.console.note("\nstopping");
            Ok(Exit::Done)
        }
    };
    let ended = fleet.end(invocation, arguments.keep).await;
    // What broke it matters more than what could not be cleaned up after that.
    let exit = lived?;
    ended?;
    Ok(exit)
}

/// A context of that name that another server is behind is not ours to replace.
fn refuse_other_context(config: &Path, context: &ContextName, folder: &Path) -> Result<(), Failure> {
    let contexts = Contexts::load(config)?;
    let Ok(identity) = contexts.identity_folder(context) else { return Ok(()) };
    let ours = Identity::load(identity).is_ok_and(|identity| identity.address.as_str().starts_with("127.0.0.1:"));
    if ours {
        return Ok(());
    }
    let message = format!("context {context} belongs to another server, not to a fleet in {}", folder.display());
    Err(Failure::usage(message).hint("fleetctl dev --context dev2"))
}

/// The signals that end it.
struct Stop {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Stop {
    fn new() -> Result<Stop, Failure> {
        let failed = |error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"));
        let listen = |kind| signal(kind).map_err(failed);
        Ok(Stop {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
        })
    }

    async fn told(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The programs that make a fleet.
#[derive(Debug)]
struct Programs {
    server: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// Those beside our own program, or else those in PATH.
    fn find() -> Result<Programs, Failure> {
        let own = env::current_exe()
            .map_err(|error| Failure::new(Exit::Failed, format!("where this program lies: {error}")))?;
        let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |name: &str| {
            let candidate = beside.join(name);
            if folders::is_executable(&candidate) {
                return Ok(candidate);
            }
            folders::in_path(name).ok_or_else(|| {
                let message = format!("{name} is neither in {} nor in PATH", beside.display());
                Failure::new(Exit::Failed, message).hint("cargo build --release --locked")
            })
        };
        Ok(Programs { server: find("fleetsock-server")?, agent: find("fleetsock-agent")? })
    }
}

/// A fleet of one host.
struct Fleet {
    place: Place,
    programs: Programs,
    config: PathBuf,
    context: ContextName,
    server: Option<Program>,
    agent: Option<Program>,
}

/// Arguments as a person types them.
fn typed(arguments: &[OsString]) -> String {
    arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn arguments<const N: usize>(parts: [&dyn AsRef<std::ffi::OsStr>; N]) -> Vec<OsString> {
    parts.iter().map(|part| part.as_ref().to_owned()).collect()
}

impl Fleet {
    fn say(&self, invocation: &Invocation, command: &str) {
        invocation.console.note(&format!("$ {command}"));
    }

    /// Begins everything, shows what there is, and returns only when something broke.
    async fn live(&mut self, invocation: &mut Invocation) -> Result<(), Ended> {
        self.begin_server(invocation).await?;
        let mut client = self.log_in(invocation).await?;
        self.begin_agent(invocation, &mut client).await?;
        let host = self.first_report(invocation, &mut client).await?;
        let (ports, _) = client.list_ports(PortQuestion::default()).await?.collect().await?;
        self.show(invocation, &host, &ports)?;
        drop(client);
        let (Some(server), Some(agent)) = (&mut self.server, &mut self.agent) else { return Ok(()) };
        Err(tokio::select! {
            failure = server.ended() => failure,
            failure = agent.ended() => failure,
        }
        .into())
    }

    fn surroundings(&self, log: &str) -> Surroundings<'_> {
        Surroundings { log: self.place.join(log), held: self.place.held() }
    }

    async fn begin_server(&mut self, invocation: &Invocation) -> Result<(), Failure> {
        let state = self.place.join("server");
        let listen = format!("127.0.0.1:{}", free_port()?);
        let init = arguments([&"init", &"--state", &state, &"--listen", &listen]);
        self.say(invocation, &format!("fleetsock-server {}", typed(&init)));
        Program::begin("fleetsock-server init", &self.programs.server, &init, self.surroundings("server.log"))?
            .succeed()
            .await?;
        let serve = arguments([&"serve", &"--state", &state]);
        self.say(invocation, &format!("fleetsock-server {} &", typed(&serve)));
        let server =
            Program::begin("fleetsock-server", &self.programs.server, &serve, self.surroundings("server.log"))?;
        let server = self.server.insert(server);
        let socket = state.join("admin.sock");
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).await.is_err() {
            if Instant::now() > deadline {
                return Err(server.failed(&format!("the server is not there after {} s", PATIENCE.as_secs())));
            }
            tokio::select! {
                failure = server.ended() => return Err(failure),
                () = sleep(LOOK_EVERY) => {}
            }
        }
        Ok(())
    }

    /// Becomes an admin of the fleet, and its context the one in use unless there is another.
    async fn log_in(&self, invocation: &Invocation) -> Result<OperatorClient, Failure> {
        let socket = self.place.join("server").join("admin.sock");
        let (socket_text, context) = (socket.display(), &self.context);
        self.say(invocation, &format!("fleetctl login --local {socket_text} --name dev --context {context}"));
        let operator =
            Operator::new("dev", Role::Admin).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let identity = login::issue(&socket, operator).await?;
        Contexts::change(&self.config, |contexts| {
            contexts.put(context.clone(), &identity)?;
            match contexts.current() {
                None => contexts.set_current(Some(context.clone())),
                Some(_) => Ok(()),
            }
        })?;
        server::connect_as(invocation, identity).await
    }

    async fn begin_agent(&mut self, invocation: &Invocation, client: &mut OperatorClient) -> Result<(), Failure> {
        let (state, join) = (self.place.join("agent"), self.place.join("join"));
        self.say(invocation, &format!("fleetctl tokens create --lifetime 10m --note dev > {}", join.display()));
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 600, uses: 1, purpose, note: "dev".to_owned() };
        let (_, secret) = client.create_token(token).await?;
        private::write(&join, format!("{secret}\n").as_bytes())?;
        let enroll = arguments([&"enroll", &"--state", &state, &"--join-file", &join]);
        self.say(invocation, &format!("fleetsock-agent {}", typed(&enroll)));
        Program::begin("fleetsock-agent enroll", &self.programs.agent, &enroll, self.surroundings("agent.log"))?
            .succeed()
            .await?;
        let run = arguments([&"run", &"--state", &state]);
        self.say(invocation, &format!("fleetsock-agent {} &", typed(&run)));
        let agent = Program::begin("fleetsock-agent", &self.programs.agent, &run, self.surroundings("agent.log"))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Waits until the host reports and its listeners are known.
    async fn first_report(&mut self, invocation: &Invocation, client: &mut OperatorClient) -> Result<Host, Failure> {
        invocation.console.note("waiting for the first report ...");
        let began = Instant::now();
        loop {
            let (hosts, _) = client.list_hosts(HostSelector::default()).await?.collect().await?;
            if let Some(host) = hosts.into_iter().find(|host| host.state == HostState::Online)
                && (host.listeners > 0 || began.elapsed() > LISTENERS_PATIENCE)
            {
                return Ok(host);
            }
            let (Some(server), Some(agent)) = (&mut self.server, &mut self.agent) else {
                return Err(Failure::new(Exit::Failed, "nothing runs"));
            };
            if began.elapsed() > PATIENCE {
                return Err(agent.failed(&format!("there is no report after {} s", PATIENCE.as_secs())));
            }
            tokio::select! {
                failure = server.ended() => return Err(failure),
                failure = agent.ended() => return Err(failure),
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn show(&self, invocation: &mut Invocation, host: &Host, ports: &[Listener]) -> Result<(), Ended> {
        for class in PortClass::ALL {
            summary::class(invocation, *class, ports)?;
        }
        let in_use = Contexts::load(&self.config).map_err(Failure::from)?.current() == Some(&self.context);
        summary::next(invocation, host, (!in_use).then_some(&self.context))
    }

    /// Stops what was begun, the agent first, and forgets the context.
    async fn end(mut self, invocation: &Invocation, keep: bool) -> Result<(), Failure> {
        for program in [self.agent.take(), self.server.take()].into_iter().flatten() {
            program.stop().await?;
        }
        if keep {
            let folder = self.place.keep()?;
            let kept = format!(
                "kept: {0} and context {1} (fleetsock-server serve --state {0}/server)",
                folder.display(),
                self.context
            );
            invocation.console.note(&kept);
            return Ok(());
        }
        if Contexts::load(&self.config)?.identity_folder(&self.context).is_ok() {
            Contexts::change(&self.config, |contexts| contexts.remove(&self.context))?;
        }
        self.place.clear()?;
        invocation.console.note("cleaned up");
        Ok(())
    }
}

/// The usual port, or any that is free when that is taken.
fn free_port() -> Result<u16, Failure> {
    [DEFAULT_PORT, 0]
        .iter()
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok())
        .and_then(|listener| listener.local_addr().ok())
        .map(|address| address.port())
        .ok_or_else(|| Failure::new(Exit::Failed, "no port is free on 127.0.0.1"))
}
