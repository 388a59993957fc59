//! `fleetctl backup`: a checked copy of the history, made by the server while it goes on.

use std::io::Write;

use clap::Args;
use fleetsock_proto::backup::{BackupContent, BackupMade, BackupName, BackupProgress, BackupStep};

use crate::{
    Invocation, clock,
    failure::{Ended, Exit, Failure},
    record::audit::hex,
    render::Format,
    sanitise::sanitise,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl backup                        of the history, into the server's folder of backups
  fleetctl backup before-upgrade         the same under a name of yours
  fleetctl backup --fleet                and of the CA with its keys, and the settings
  fleetctl backup -o json                for a script: where it is, and the SHA-256 of each file

Put one in place, on the server while it is stopped: fleetsock-server restore --from FOLDER

";

/// What to copy.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Its name [default: the moment, as in 20261128T170000Z]; one that is there is not overwritten.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Copy the CA with its private keys and the settings too. Whoever has that backup is the fleet.
    #[arg(long)]
    fleet: bool,
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let name = arguments.name.unwrap_or_else(|| clock::compact(invocation.clock.now()));
    let name: BackupName = name.parse().map_err(|error| Failure::usage(format!("{error}")).hint("fleetctl backup"))?;
    let content = if arguments.fleet { BackupContent::Fleet } else { BackupContent::History };
    let mut client = server::connect(invocation).await?;
    let mut backup = client.backup(&name, content).await?;
    let made = loop {
        match backup.next().await {
            Ok(BackupStep::Progress(progress)) => invocation.console.progress(&told(&progress)),
            Ok(BackupStep::Made(made)) => break made,
            Err(error) => {
                invocation.console.progress("");
                return Err(Failure::from(error).into());
            }
        }
    };
    invocation.console.progress("");
    tell(invocation, &made, content)
}

fn told(progress: &BackupProgress) -> String {
    let BackupProgress { doing, bytes, bytes_total } = progress;
    match bytes_total {
        0 => doing.clone(),
        total => format!("{doing}: {} % of {}", bytes.saturating_mul(100) / total, size(*total)),
    }
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1} MiB")
}

fn tell(invocation: &mut Invocation, made: &BackupMade, content: BackupContent) -> Result<Exit, Ended> {
    let bytes: u64 = made.files.iter().map(|file| file.bytes).sum();
    let out = &mut invocation.console.out;
    if matches!(invocation.options.output, Format::Json | Format::Jsonl) {
        let file = |file: &fleetsock_proto::backup::BackupFile| serde_json::json!({ "path": file.path, "bytes": file.bytes, "sha256": hex(&file.sha256) });
        let object = serde_json::json!({
            "folder": made.folder,
            "taken_at": clock::rfc3339(made.taken_at),
            "bytes": bytes,
            "files": made.files.iter().map(file).collect::<Vec<_>>(),
        });
        writeln!(out, "{object}")?;
    } else {
        let (folder, files) = (sanitise(&made.folder), made.files.len());
        writeln!(out, "{folder}: {files} files, {}, each checked", size(bytes))?;
    }
    out.flush()?;
    if content == BackupContent::Fleet {
        invocation.console.note("it holds the private keys of the CA: keep it as you keep those");
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::time::Timestamp;

    use super::*;

    #[test]
    fn a_backup_without_a_name_is_called_by_its_moment_in_utc() {
        let name = clock::compact(Timestamp::from_micros(1_795_885_200_000_000));
        assert_eq!(name, "20261128T170000Z");
        name.parse::<BackupName>().unwrap();
    }

    #[test]
    fn progress_is_told_in_percent_where_the_whole_is_known() {
        let progress = |bytes, bytes_total| BackupProgress { doing: "copy main.db".to_owned(), bytes, bytes_total };
        assert_eq!(told(&progress(1 << 20, 4 << 20)), "copy main.db: 25 % of 4.0 MiB");
        assert_eq!(told(&progress(0, 0)), "copy main.db");
    }
}
