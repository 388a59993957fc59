//! Room that is kept for the end: a file that is given up when the disk is almost full, so that what must be written still
//! can be (orders, questions in the audit log, deletions of what is too old, an ordered stop), while batches are refused.
//!
//! Without it a full disk could not even be helped by deleting: SQLite writes before it deletes.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Name of the file.
const FILE: &str = "ballast";
/// How often it is looked how much room there is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How much room is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes of the ballast at most; a small disk has less.
    pub ballast: u64,
    /// With fewer bytes free than this nothing is stored; a small disk has less.
    pub low: u64,
}

impl Default for Reserve {
    fn default() -> Reserve {
        Reserve { ballast: 32 << 20, low: 2 << 30 }
    }
}

/// The part of a disk, one in so many bytes, that counts as low at most: five percent.
const LOW_PART: u64 = 20;
/// The part of a disk that the ballast is at most.
const BALLAST_PART: u64 = 32;

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Batches are stored.
    Enough,
    /// They are not.
    Low,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    free: u64,
    size: u64,
}

impl Reserve {
    fn ballast_on(self, disk: Disk) -> u64 {
        self.ballast.min(disk.size / BALLAST_PART)
    }

    /// Decides. It takes more room to begin again than it took to stop, or both would follow each other for ever.
    fn judge(self, was: Room, disk: Disk) -> Room {
        let low = self.low.min(disk.size / LOW_PART);
        let enough = match was {
            Room::Enough => low,
            Room::Low => low + low / 4 + self.ballast_on(disk),
        };
        if disk.free < enough { Room::Low } else { Room::Enough }
    }
}

/// Watches the room, with the file.
#[derive(Debug)]
pub(super) struct Ballast {
    folder: PathBuf,
    /// None: nothing is kept and nothing watched.
    reserve: Option<Reserve>,
    room: Room,
    looked_at: Option<Instant>,
}

fn disk(folder: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Disk { free: bytes(found.f_bavail), size: bytes(found.f_blocks) })
}

impl Ballast {
    /// Before the files in the folder are opened: on a disk that is almost full the ballast goes at once.
    pub(super) fn of(folder: &Path, reserve: Option<Reserve>) -> Ballast {
        let mut ballast = Ballast { folder: folder.to_owned(), reserve, room: Room::Enough, looked_at: None };
        if folder.exists() {
            ballast.look();
        }
        ballast
    }

    /// After they were opened.
    pub(super) fn put(&mut self) {
        if self.reserve.is_some() && self.room == Room::Enough && self.make().is_err() {
            self.become_low();
        }
    }

    /// Whether it looks for room at all.
    pub(super) fn watches(&self) -> bool {
        self.reserve.is_some()
    }

    /// How much room there is, as it was a moment ago at the latest.
    pub(super) fn room(&mut self, now: Instant) -> Room {
        let is_due = self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY);
        if self.reserve.is_some() && is_due {
            self.looked_at = Some(now);
            self.look();
        }
        self.room
    }

    /// The disk took nothing.
    pub(super) fn found_full(&mut self) {
        if self.reserve.is_some() && self.room == Room::Enough {
            self.become_low();
        }
    }

    fn look(&mut self) {
        let (Some(reserve), Some(disk)) = (self.reserve, disk(&self.folder)) else { return };
        match (self.room, reserve.judge(self.room, disk)) {
            (Room::Enough, Room::Low) => self.become_low(),
            (Room::Low, Room::Enough) => match self.make() {
                Ok(()) => {
                    self.room = Room::Enough;
                    tracing::info!(free_bytes = disk.free, "there is room on the disk again: batches are stored");
                }
                Err(error) => tracing::warn!(%error, "the ballast cannot be made; nothing is stored"),
            },
            _ => {}
        }
    }

    fn become_low(&mut self) {
        self.room = Room::Low;
        let free_bytes = disk(&self.folder).map(|disk| disk.free);
        tracing::error!(
            free_bytes,
            "the disk of the history is almost full: batches are not stored and agents keep them; questions are answered"
        );
        match fs::remove_file(self.folder.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, "the ballast cannot be given up");
            }
            _ => {}
        }
    }

    /// Makes the file, with blocks of its own.
    fn make(&self) -> io::Result<()> {
        let (Some(reserve), Some(disk)) = (self.reserve, disk(&self.folder)) else { return Ok(()) };
        let file: File =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.folder.join(FILE))?;
        fallocate(&file, FallocateFlags::empty(), 0, reserve.ballast_on(disk).max(1))?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_more_room_to_begin_again_than_to_stop() {
        const MIB: u64 = 1 << 20;
        let reserve = Reserve::default();
        for (size, was, free, expected) in [
            // Of a large disk two GiB count.
            (1_000_000, Room::Enough, 2_048, Room::Enough),
            (1_000_000, Room::Enough, 2_047, Room::Low),
            (1_000_000, Room::Low, 2_500, Room::Low),
            (1_000_000, Room::Low, 2_592, Room::Enough),
            // Of a small one five percent, and its ballast is smaller.
            (320, Room::Enough, 16, Room::Enough),
            (320, Room::Enough, 15, Room::Low),
            (320, Room::Low, 29, Room::Low),
            (320, Room::Low, 30, Room::Enough),
        ] {
            let disk = Disk { free: free * MIB, size: size * MIB };
            assert_eq!(reserve.judge(was, disk), expected, "{free} of {size} MiB free, {was:?} before");
        }
    }

    #[test]
    fn the_ballast_has_blocks_and_goes_when_the_disk_took_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::of(folder.path(), Some(Reserve { ballast: 1 << 20, low: 1 }));
        ballast.put();
        let file = folder.path().join(FILE);
        let found = fs::metadata(&file).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&found) * 512 >= 1 << 20, "{found:?}");
        ballast.found_full();
        assert!(!file.exists());
        // There was room all the time: somebody else may have been full.
        assert_eq!(ballast.room(Instant::now()), Room::Enough);
        assert!(file.exists());
    }
}
