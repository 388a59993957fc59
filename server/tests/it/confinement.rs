//! What a confined server can still do, tried out on the kernel that runs the test.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use fleetsock_server::{
    config::{Config, NewFleet},
    confinement::{Confinement, confine},
    setup,
};

fn denied<T: std::fmt::Debug>(outcome: io::Result<T>) {
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

fn config(folder: &Path, listen: SocketAddr) -> Config {
    let fleet = NewFleet {
        trust_domain: "fleetsock.internal".parse().unwrap(),
        listen,
        address: listen.to_string().parse().unwrap(),
    };
    let state = folder.join("server");
    setup::init(&state, &fleet, crate::now()).unwrap();
    Config::load(&state, None).unwrap()
}

#[test]
fn a_confined_server_reaches_its_folders_and_its_port_and_nothing_else() {
    // Not where SQLite may write.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let is_shared = ["/tmp", "/var/tmp", "/usr/tmp"].iter().any(|shared| built.starts_with(shared));
    let Ok(folder) = tempfile::tempdir_in(if is_shared { Path::new("/run") } else { built }) else {
        return crate::tell("skipped: there is no folder of its own outside of /tmp");
    };
    let (elsewhere, other) = (folder.path().join("elsewhere"), TcpListener::bind("127.0.0.1:0").unwrap());
    fs::write(&elsewhere, "a secret").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config(folder.path(), port);
    // A thread is confined for itself, so the rest of the tests is not.
    let confined = std::thread::spawn(move || {
        let confinement = confine(&config).unwrap();
        if confinement != Confinement::Whole {
            crate::tell(&format!("skipped: this kernel offers {confinement}"));
            return;
        }
        fs::write(config.history.join("main.db-journal"), "x").unwrap();
        fs::read(config.ca.join("root.pem")).unwrap();
        denied(fs::read(&elsewhere));
        denied(fs::write(&elsewhere, "x"));
        denied(fs::remove_file(&elsewhere));
        denied(fs::read("/etc/passwd"));
        denied(fs::read_dir("/"));
        denied(Command::new("/bin/true").spawn());
        let program = config.history.join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        denied(Command::new(&program).spawn());
        denied(TcpStream::connect(other.local_addr().unwrap()));
        denied(TcpListener::bind("127.0.0.1:0"));
        TcpListener::bind(port).unwrap();
        let status = fs::read_to_string("/proc/thread-self/status");
        denied(status);
    });
    confined.join().unwrap();
}

#[test]
fn a_serving_server_has_no_capabilities_and_can_get_none() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config(folder.path(), port);
    let mut server = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
        .args(["serve", "--state"])
        .arg(folder.path().join("server"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::os::unix::net::UnixStream::connect(&config.admin_socket).is_err() {
        assert_eq!(server.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let mut threads = 0;
    for task in tasks {
        // A thread that ended meanwhile has no capabilities either.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        threads += 1;
        for line in
            ["CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
        {
            assert!(status.contains(line), "{line} in {status}");
        }
    }
    assert!(threads > 2, "the writer and the workers are there");
    server.kill().unwrap();
    server.wait().unwrap();
}
