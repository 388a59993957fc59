//! The history in numbers: hosts by state, files, room on the disk. For those who watch the server.

use std::{fs, path::Path, sync::Arc};

use fleetsock_proto::{
    host::{HostSelector, HostState},
    time::Timestamp,
};
use rusqlite::OptionalExtension;

use super::{SqliteHistory, database, parts, questions::Reader, roster::HostEntry};
use crate::history::{AgentSums, HistoryError, SKEW_TOLERANCE_US, Vitals};

/// Bytes of a file with what SQLite keeps beside it. One that is gone meanwhile has none.
fn bytes(path: &Path) -> u64 {
    let beside = parts::COMPANIONS.iter().map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    });
    let of = |path: std::path::PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    of(path.to_owned()) + beside.map(of).sum::<u64>()
}

/// Free and all bytes of the file system of a folder.
fn disk(folder: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
}

fn hosts(all: &[(Arc<HostEntry>, HostState)]) -> (Vec<(HostState, u64)>, AgentSums) {
    let count = |state: HostState| {
        let hosts = all.iter().filter(|(_, found)| *found == state).count();
        (state, u64::try_from(hosts).unwrap_or(u64::MAX))
    };
    let mut sums = AgentSums::default();
    for (entry, state) in all {
        sums.losses = sums.losses.saturating_add(entry.cost.losses);
        if *state == HostState::Online {
            sums.rss_bytes = sums.rss_bytes.saturating_add(entry.cost.rss_bytes);
            sums.cpu_millipercent += u64::from(entry.cost.cpu_millipercent);
            sums.clocks_off += u64::from(entry.skew.offset_us.abs() >= SKEW_TOLERANCE_US);
        }
    }
    (HostState::ALL.iter().copied().map(count).collect(), sums)
}

fn kept(reader: &Reader, folder: &Path) -> Result<Vitals, HistoryError> {
    let catalogue = &reader.catalogue;
    let complete = catalogue.complete.iter().map(|part| bytes(&part.path)).sum();
    let began = "SELECT min(started_at_us) FROM parts WHERE state <> ?1";
    let oldest: Option<Option<i64>> = reader.main.query_row(began, [parts::DROPPING], |row| row.get(0)).optional()?;
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Ok(Vitals {
        files: vec![
            ("main", 1, bytes(&database::main_file(folder).1)),
            ("hot", 1, bytes(&catalogue.hot.path)),
            ("complete", count(catalogue.complete.len()), complete),
            ("sums", count(catalogue.sums.len()), catalogue.sums.iter().map(|sums| bytes(&sums.path)).sum()),
        ],
        disk: disk(folder),
        oldest: oldest.flatten().map(Timestamp::from_micros),
        newest: Some(catalogue.hot.started_at),
        ..Vitals::default()
    })
}

impl SqliteHistory {
    pub(super) async fn read_vitals(&self, now: Timestamp) -> Result<Vitals, HistoryError> {
        let (hosts, agents) = hosts(&self.roster.entries(&self.roster.select(&HostSelector::default(), now)?));
        let folder = self.files.folder().to_owned();
        let sender = self.sender()?;
        let queue = (sender.max_capacity() - sender.capacity(), sender.max_capacity());
        let kept = self.standings.ask(self.options.bounds.time, move |reader| kept(reader, &folder)).await?;
        Ok(Vitals { hosts, agents, queue, ..kept })
    }
}
