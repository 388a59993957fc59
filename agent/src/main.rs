//! `fleetsock-agent`: enrols this host, and reports its sockets.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use fleetsock_agent::{
    capture::{Connections, Extent, Occasion, States, Surveyor},
    config::{ALL_SETTINGS, Config, DEFAULT_STATE, HostName},
    enrolment::{Enrolment, Existing, JoinSource},
    events::{BuffersName, make_buffers, remove_buffers},
    namespaces::{Namespaces, Pass},
    owners::{Holdings, Processes},
    privileges,
    run::{Foundation, run},
    table::{Search, Table, Walk},
};
use fleetsock_proto::{batch::Role, cause, tcp::TcpCounts, time::Timestamp, tls};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The join string, where the list of processes does not show it.
const JOIN_VARIABLE: &str = "FLEETSOCK_JOIN";
const EXAMPLES: &str = "\
Examples:
  fleetsock-agent enroll --join fsj1_...          trade a join string for an identity of this host
  fleetsock-agent enroll --join-file /root/join   the same from a file of mode 0600, deleted then
  fleetsock-agent run                             report this host's sockets, until told to end
  fleetsock-agent settings > /etc/fleetsock/agent.toml
                                                  what can be set, and the defaults
  fleetsock-agent walk                            show what a walk sees here, without any server
  fleetsock-agent buffers make service            as root: trace buffers for another user's agent
  fleetsock-agent run --buffers service           that agent

A join string is made by `fleetctl tokens create`. FLEETSOCK_JOIN in the environment does what
--join does, and does not show in the list of processes. FLEETSOCK_LOG chooses what is logged:
error, warn, info (default), debug.";

/// Reports this host's sockets to a fleetsock-server.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Get an identity for this host.
    Enroll {
        /// The join string [env: FLEETSOCK_JOIN].
        #[arg(long, value_name = "STRING", conflicts_with = "join_file")]
        join: Option<String>,
        /// A file with the join string, of mode 0600; it is deleted when the host is enrolled.
        #[arg(long, value_name = "FILE")]
        join_file: Option<PathBuf>,
        /// Folder for all that the agent keeps.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// What the host calls itself [default: its host name].
        #[arg(long)]
        name: Option<HostName>,
        /// Replace the identity that is there.
        #[arg(long)]
        force: bool,
    },
    /// Report this host's sockets, until SIGTERM or Ctrl-C.
    Run {
        /// Folder that `enroll` made.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Settings, which `settings` shows [default: agent.toml in the state folder, or /etc/fleetsock/agent.toml].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// What the host calls itself [default: `name` of the settings, or its host name].
        #[arg(long)]
        name: Option<HostName>,
        /// Trace buffers that `buffers make` made.
        #[arg(long, value_name = "NAME")]
        buffers: Option<BuffersName>,
    },
    /// Make or remove trace buffers for an agent that may not make its own and reads them with CAP_DAC_READ_SEARCH.
    Buffers {
        #[command(subcommand)]
        order: Order,
    },
    /// Show what can be set in agent.toml, with the defaults.
    Settings,
    /// Show the sockets that one walk sees in all network namespaces, and their owners.
    Walk,
}

#[derive(Debug, Subcommand)]
enum Order {
    /// Make them anew, unless an agent reads those of this name.
    Make {
        /// What `run --buffers` calls them.
        name: BuffersName,
    },
    /// Remove them, if they are there, unless an agent reads them.
    Remove {
        /// What they were made as.
        name: BuffersName,
    },
}

fn main() -> ExitCode {
    tls::install_provider();
    let arguments = Arguments::parse();
    match execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the last place there is; when it is closed too, the exit code remains.
            drop(writeln!(io::stderr(), "error: {}", cause::told(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Enroll { join, join_file, state, name, force } => {
            let named = name.as_ref().map(|name| format!(" --name {}", name.as_str())).unwrap_or_default();
            let name = name.map_or_else(machine_name, |name| name.as_str().to_owned());
            let existing = if force { Existing::Replace } else { Existing::Keep };
            let enrolment = Enrolment { state, join: join_source(join, join_file)?, name, existing };
            enroll(enrolment, &named)
        }
        Command::Run { state, config, name, buffers } => {
            log_to_stderr()?;
            let mut config = Config::load(&state, config.as_deref())?;
            config.name = name.or(config.name);
            config.buffers = buffers;
            runtime()?.block_on(run_until_told(Foundation { state, config, clock: Timestamp::now }))
        }
        Command::Buffers { order } => {
            log_to_stderr()?;
            match order {
                Order::Make { name } => {
                    let bytes = make_buffers(&name)?;
                    writeln!(io::stdout(), "made {} KiB of trace buffer for each processor", bytes >> 10)?;
                }
                Order::Remove { name } => remove_buffers(&name)?,
            }
            Ok(())
        }
        Command::Settings => Ok(io::stdout().write_all(ALL_SETTINGS.as_bytes())?),
        Command::Walk => walk(),
    }
}

/// One thread is enough to wait; what takes time has threads of its own.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn join_source(join: Option<String>, file: Option<PathBuf>) -> Result<JoinSource> {
    if let Some(path) = file {
        return Ok(JoinSource::File(path));
    }
    let Some(text) = join.or_else(|| std::env::var(JOIN_VARIABLE).ok()) else {
        bail!(
            "no join string: give it with --join, --join-file or {JOIN_VARIABLE}; \
             an admin makes one with `fleetctl tokens create`"
        );
    };
    Ok(JoinSource::Text(text))
}

/// What this machine calls itself.
fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn enroll(enrolment: Enrolment, named: &str) -> Result<()> {
    let state = enrolment.state.clone();
    let identity = runtime()?.block_on(enrolment.run())?;
    writeln!(
        io::stdout(),
        "enrolled as {}\nnext: fleetsock-agent run --state {}{named}",
        identity.spiffe_id,
        state.display(),
    )?;
    Ok(())
}

async fn run_until_told(foundation: Foundation) -> Result<()> {
    let (stop, listening) = stop_on_signal()?;
    let ran = run(foundation, stop.clone(), ready).await;
    stop.cancel();
    listening.await?;
    ran?;
    tracing::info!("stopped");
    Ok(())
}

/// Tells the service manager, if there is one.
fn ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "no service manager was told");
    }
}

/// A token that is cancelled by SIGTERM or SIGINT, and the task that waits for them.
fn stop_on_signal() -> Result<(CancellationToken, tokio::task::JoinHandle<()>)> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    let listening = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = told.cancelled() => return,
        }
        tracing::info!("stopping");
        told.cancel();
    });
    Ok((stop, listening))
}

fn walk() -> Result<()> {
    let (mut rows, mut table, mut namespaces) = (Vec::new(), Table::default(), Namespaces::open()?);
    let began = Timestamp::now();
    namespaces.refresh(Pass::All)?;
    let extent = Extent { states: States::All, ..Extent::of(Occasion::Referee, Connections::FromWalks) };
    let mut surveyor = Surveyor::open()?;
    let survey = match privileges::can_travel() {
        true => surveyor.survey(&namespaces, extent, &mut rows),
        false => surveyor.survey_home(extent.home, extent.states, &mut rows),
    };
    for (netns, error) in &survey.failed {
        if *netns == surveyor.netns() {
            bail!("{error}");
        }
    }
    let wanted = table.wanted(&rows, Search::Referee);
    let mut processes = Processes::open()?.asking(Holdings::open());
    let scan = processes.scan(&wanted);
    let vanished = BTreeSet::new();
    let walk = Walk { rows: &rows, began, at: Timestamp::now(), survey: &survey, vanished: &vanished };
    let mut sockets: Vec<_> =
        table.apply(walk, &wanted, &scan, &()).changes.into_iter().map(|change| change.socket).collect();
    sockets.sort_by_key(|socket| {
        let elsewhere = (socket.key.netns != surveyor.netns(), socket.key.netns);
        (elsewhere, socket.role != Role::Listener, socket.protocol, socket.local.port(), socket.key)
    });
    let mut out = io::stdout().lock();
    for socket in sockets {
        let (direction, peer) = match socket.role {
            Role::Listener => ("listener", "-".to_owned()),
            Role::Session { direction, peer } => (direction.as_str(), peer.to_string()),
        };
        let owners: Vec<String> =
            socket.owners.iter().map(|owner| format!("{}({})", owner.process.escape_debug(), owner.pid)).collect();
        let owners = if owners.is_empty() { format!("owner {}", socket.owner_known) } else { owners.join(" ") };
        let (protocol, state, local) = (socket.protocol, socket.state, socket.local);
        write!(out, "{protocol:<5}{direction:<9} {state:<12} {local:<28} {peer:<28} {owners}")?;
        let netns = socket.key.netns;
        if netns != surveyor.netns() {
            let name = namespaces.get(netns).map(|namespace| namespace.name().escape_debug().to_string());
            write!(out, " in netns {netns} {}", name.unwrap_or_default())?;
        }
        writeln!(out)?;
    }
    let (report, walked) = (survey.total(), survey.walked.len());
    let unseen = namespaces.unseen().map(|unseen| format!(", {unseen}")).unwrap_or_default();
    writeln!(
        out,
        "{} sockets of {walked} network namespaces, {} processes could not be looked into{unseen}, {report:?}",
        table.len(),
        scan.denied
    )?;
    if let Some(remark) = processes.remark() {
        writeln!(out, "{remark}")?;
    }
    if let Some(TcpCounts { time_wait, syn_received, bound }) = survey.counts {
        let bound = bound.map_or_else(|| "not told".to_owned(), |bound| bound.to_string());
        writeln!(out, "other TCP sockets: time-wait {time_wait}, syn-received {syn_received}, bound {bound}")?;
    }
    Ok(())
}

/// For people on a terminal, as JSON lines elsewhere; FLEETSOCK_LOG chooses what.
fn log_to_stderr() -> Result<()> {
    let filter = match std::env::var("FLEETSOCK_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("FLEETSOCK_LOG: `{text}`"))?,
        Err(_) => EnvFilter::new("info"),
    };
    let logs = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
    let started = if io::stderr().is_terminal() { logs.try_init() } else { logs.json().try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}
