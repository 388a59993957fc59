//! The server of a play: the real one, on a simulated network.

use std::{
    cell::RefCell,
    fs, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fleetsock_server::{
    acceptor::Listener,
    authority::Authority,
    config::Config,
    history::sqlite::{Keeping, Options, Sealing, SqliteHistory},
    serve::{Foundation, serve},
};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use super::{
    chance::now,
    still::{Record, Still},
};

/// Where it is reached.
pub(super) const ADDRESS: &str = "server:5290";
/// How often agents give a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Sessions of a file: a play has a few files.
const PART_ROWS: i64 = 100;

/// What outlives a server.
pub(super) struct Station {
    config: Config,
    authority: Arc<Authority>,
    /// The folder of the history, another one after each kill.
    pub(super) folder: RefCell<PathBuf>,
    /// The history that is open.
    pub(super) store: RefCell<Option<Arc<SqliteHistory>>>,
    pub(super) stop: RefCell<CancellationToken>,
    pub(super) record: Arc<Record>,
}

impl Station {
    pub(super) fn new(mut config: Config, authority: Arc<Authority>, folder: PathBuf) -> Station {
        config.heartbeat = HEARTBEAT;
        Station {
            config,
            authority,
            folder: folder.into(),
            store: RefCell::default(),
            stop: RefCell::default(),
            record: Arc::default(),
        }
    }

    fn open(&self) -> Arc<SqliteHistory> {
        let options = Options {
            keeping: Keeping { part_rows: PART_ROWS, ..Keeping::default() },
            // A copy that is made while files are exchanged is not what a kill leaves.
            sealing: Sealing { pause: Duration::from_secs(24 * 3600), ..Sealing::default() },
            clock: now,
            ..Options::default()
        };
        Arc::new(SqliteHistory::open(&self.folder.borrow(), options).unwrap())
    }
}

/// The port on the simulated network.
struct Port(TcpListener);

impl Listener for Port {
    type Wire = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn reserve(&self) -> Option<OwnedFd> {
        None
    }
}

/// Runs the server until it is told to stop.
pub(super) async fn run(station: Rc<Station>) -> turmoil::Result {
    let store = station.open();
    station.store.replace(Some(Arc::clone(&store)));
    let stop = CancellationToken::new();
    station.stop.replace(stop.clone());
    let foundation = Foundation {
        config: station.config.clone(),
        authority: Arc::clone(&station.authority),
        store: Arc::new(Still { store: Arc::clone(&store), record: Arc::clone(&station.record) }),
        health: None,
        clock: now,
    };
    let port = Port(TcpListener::bind("0.0.0.0:5290").await?);
    serve(foundation, port, stop).await?;
    station.store.take();
    store.close().await?;
    Ok(())
}

/// What a kill leaves of a folder: every file as it is now. Nobody may write meanwhile.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
