//! What goes wrong around a server: other servers, other versions, disks that are full or read-only, kill -9.

mod backups;
mod crashes;
mod disk;
mod files;
mod kill;
mod process;
