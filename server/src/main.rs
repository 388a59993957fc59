//! `fleetsock-server`: makes a fleet, and serves it.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use fleetsock_proto::{cause, join::ServerAddress, private, spiffe::TrustDomain, time::Timestamp, tls};
use fleetsock_server::{
    authority::Authority,
    config::{Config, DEFAULT_STATE, DEFAULT_TRUST_DOMAIN, HealthAddress, LogFormat, NewFleet},
    confinement,
    history::sqlite::{Options, SqliteHistory},
    serve::{Foundation, serve},
    setup,
};
use tikv_jemallocator::Jemalloc;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

mod restore;

/// Each of ten thousand connections has 16 KiB to write into and needs the first of them. This allocator puts blocks of one
/// size together, so that what nobody touches takes no memory, and gives back what was needed for a while only; glibc makes
/// such blocks of pieces that others have touched, and keeps them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const EXAMPLES: &str = "\
Examples:
  fleetsock-server init --address fleet.example.org    make a fleet that is reached by this name
  fleetsock-server serve                               serve it, until SIGTERM or Ctrl-C
  fleetsock-server restore --from /mnt/20261128T170000Z
                                                       put a backup in place while no server runs
  fleetctl login --local /var/lib/fleetsock/server/admin.sock
                                                       become its first admin";

/// Keeps the history of a fleet's sockets and answers fleetctl.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a fleet: its CA, its database, its settings.
    Init {
        /// Folder for all that the server keeps.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Address and port to listen on [default: all addresses, port 5290].
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,
        /// How agents and operators reach this server; goes into join strings and can be changed later
        /// [default: this machine's name].
        #[arg(long, value_name = "HOST[:PORT]")]
        address: Option<ServerAddress>,
        /// Name of the fleet in its certificates; cannot be changed later.
        #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
        trust_domain: TrustDomain,
    },
    /// Put a backup in place that `fleetctl backup` made: a server that was stopped goes on from it.
    Restore {
        /// The folder of the backup.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Folder for all that the server keeps; the history that is there is kept beside the new one.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
    /// Serve the fleet, until SIGTERM or Ctrl-C.
    Serve {
        /// Folder that `init` made.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Settings [default: server.toml in the state folder].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    tls::install_provider();
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the last place there is; when it is closed too, the exit code remains.
            drop(writeln!(io::stderr(), "error: {}", cause::told(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { state, listen, address, trust_domain } => init(&state, listen, address, trust_domain),
        Command::Restore { from, state } => restore::run(&from, &state),
        Command::Serve { state, config } => {
            let config = Config::load(&state, config.as_deref())?;
            private::check_folder(&state)?;
            log_to_stderr(config.log_format)?;
            // While there is one thread: those that come are confined as it is.
            let confinement = confinement::confine(&config).context("cannot give up what the server does not need")?;
            tracing::info!(%confinement, "confined");
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve_until_told(config))
        }
    }
}

fn init(
    state: &std::path::Path,
    listen: Option<SocketAddr>,
    address: Option<ServerAddress>,
    trust_domain: TrustDomain,
) -> Result<()> {
    let listen = listen.unwrap_or_else(NewFleet::default_listen);
    let machine = setup::machine_name();
    let Some(address) = address.or_else(|| NewFleet::address_for(listen, &machine)) else {
        bail!("this machine's name, `{machine}`, is no address for others: name one with --address HOST");
    };
    let fleet = NewFleet { trust_domain, listen, address };
    let pin = setup::init(state, &fleet, Timestamp::now())?;
    let state = state.display();
    writeln!(
        io::stdout(),
        "made the fleet {} in {state}\n\
         its CA has the pin {pin}\n\
         agents and operators will reach it as {}\n\
         next: fleetsock-server serve --state {state}",
        fleet.trust_domain,
        fleet.address,
    )?;
    Ok(())
}

async fn serve_until_told(config: Config) -> Result<()> {
    let stop = stop_on_signal()?;
    let authority = Arc::new(Authority::load(&config.ca, &config.trust_domain, Timestamp::now())?);
    let options = Options { failure: stop.clone(), ..setup::history_options(&config) };
    let store = Arc::new(SqliteHistory::open(&config.history, options)?);
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, reached_as = %config.address, trust_domain = %config.trust_domain, "serving");
    let health = health_listener(&config).await?;
    let foundation = Foundation { config, authority, store: Arc::clone(&store), health, clock: Timestamp::now };
    let served = serve(foundation, listener, stop).await;
    store.close().await?;
    tracing::info!("stopped");
    Ok(served?)
}

/// Where health is told. An address that nobody chose may be somebody else's: then the server goes on without.
async fn health_listener(config: &Config) -> Result<Option<TcpListener>> {
    let Some(health) = config.health else { return Ok(None) };
    let address = health.address();
    match (TcpListener::bind(address).await, health) {
        (Ok(listener), _) => {
            let address = listener.local_addr()?;
            tracing::info!(%address, "health is told over plain HTTP: /metrics, /livez, /readyz");
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "everyone who can reach this address can read the metrics");
            }
            Ok(Some(listener))
        }
        (Err(error), HealthAddress::Default) => {
            tracing::warn!(%address, %error, "no /metrics, /livez and /readyz: choose another address, health = \"...\"");
            Ok(None)
        }
        (Err(error), HealthAddress::Chosen(_)) => {
            Err(error).with_context(|| format!("cannot tell of health on {address} (health in the settings)"))
        }
    }
}

/// A token that is cancelled by SIGTERM or SIGINT. A second signal ends the process as always.
fn stop_on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = told.cancelled() => return,
        }
        tracing::info!("stopping");
        told.cancel();
    });
    Ok(stop)
}

/// Begins to log to standard error; FLEETSOCK_LOG chooses what.
fn log_to_stderr(format: LogFormat) -> Result<()> {
    let filter = match std::env::var("FLEETSOCK_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("FLEETSOCK_LOG: `{text}`"))?,
        // Whoever can connect could fill the log with what rustls thinks of his bytes; the acceptor counts them.
        Err(_) => EnvFilter::new("info,refinery_core=warn,rustls=error"),
    };
    let logs = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
    let for_people = match format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Text => true,
    };
    let started = if for_people { logs.try_init() } else { logs.json().try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}
