//! A root and the CAs under it. Those of all generations lie side by side in the folder of the CA: the first has plain
//! names, the others have their number in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use fleetsock_proto::{
    identity::{self, pem, pin_of},
    join::Pin,
    private,
    spiffe::TrustDomain,
    time::Timestamp,
};
use rcgen::Issuer;
use rustls_pki_types::CertificateDer;

use super::{
    AuthorityError, Ca, ISSUING_LIFE, ROOT_LIFE, Role, ServerLeaf, ca_params, certificate, content, crypto, leaf,
    load_ca, new_key, rotation::Rotation, write_pair,
};

const ROOT: &str = "root";
const SERVER_LEAF: &str = "server-leaf";
/// The servers' CA once more, signed by the root before.
const SERVERS_CROSS: &str = "servers-cross";
const SUFFIX: &str = ".pem";

/// A root and the CAs under it.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) root: CertificateDer<'static>,
    /// End of the root's validity.
    pub(super) expires_at: Timestamp,
    pub(super) pin: Pin,
    pub(super) agents: Ca,
    pub(super) operators: Ca,
    /// The servers' CA as the root before vouches for it; the first generation has none.
    pub(super) servers_cross: Option<CertificateDer<'static>>,
    /// When its certificates of CAs are over, by whose they are.
    pub(super) ca_ends: [(&'static str, Timestamp); 3],
    folder: PathBuf,
    leaf: RwLock<Arc<ServerLeaf>>,
}

/// A file of a generation.
fn file_of(folder: &Path, what: &str, number: u64) -> PathBuf {
    let name = if number == Rotation::FIRST { format!("{what}{SUFFIX}") } else { format!("{what}-{number}{SUFFIX}") };
    folder.join(name)
}

/// What people read in the names of the CAs.
fn told(trust_domain: &TrustDomain, what: &str, number: u64) -> String {
    if number == Rotation::FIRST {
        format!("Fleetsock {trust_domain} {what}")
    } else {
        format!("Fleetsock {trust_domain} {what} {number}")
    }
}

/// Makes a root and its issuing CAs; the root of the generation `before` vouches for the new servers.
pub(super) fn make(
    folder: &Path,
    number: u64,
    before: Option<u64>,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<(), AuthorityError> {
    let root_key = new_key()?;
    let root_params = ca_params(&told(trust_domain, ROOT, number), now, ROOT_LIFE, 1)?;
    let root = root_params.self_signed(&root_key).map_err(crypto)?;
    let root_issuer = Issuer::from_params(&root_params, &root_key);
    for role in Role::ALL {
        let key = new_key()?;
        let name = told(trust_domain, role.name(), number);
        let certificate = ca_params(&name, now, ISSUING_LIFE, 0)?.signed_by(&key, &root_issuer).map_err(crypto)?;
        write_pair(&file_of(folder, role.file(), number), &[&certificate], &key)?;
        if let (Role::Servers, Some(before)) = (role, before) {
            let elder = load_ca(&file_of(folder, ROOT, before))?;
            let cross = ca_params(&name, now, ISSUING_LIFE, 0)?.signed_by(&key, &elder.issuer).map_err(crypto)?;
            private::write(&file_of(folder, SERVERS_CROSS, number), pem("CERTIFICATE", cross.der()).as_bytes())?;
        }
    }
    // Last, because its presence says that the generation is whole.
    write_pair(&file_of(folder, ROOT, number), &[&root], &root_key)
}

/// Refuses a folder that has a CA.
pub(super) fn refuse_existing(folder: &Path) -> Result<(), AuthorityError> {
    let path = file_of(folder, ROOT, Rotation::FIRST);
    if path.exists() { Err(AuthorityError::Exists(path)) } else { Ok(()) }
}

impl Generation {
    /// Reads one, and sees to it that the server has a certificate under it with time left.
    pub(super) fn load(
        folder: &Path,
        number: u64,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Generation, AuthorityError> {
        let root_path = file_of(folder, ROOT, number);
        let root = certificate(&root_path)?;
        let pin = pin_of(&root).map_err(content(&root_path))?;
        let expires_at = identity::expiry(&root).map_err(content(&root_path))?;
        let ca = |role: Role| load_ca(&file_of(folder, role.file(), number));
        let leaf_path = file_of(folder, SERVER_LEAF, number);
        let leaf = RwLock::new(Arc::new(leaf::load_or_make(&leaf_path, &ca(Role::Servers)?, trust_domain, now)?));
        let cross = |_| certificate(&file_of(folder, SERVERS_CROSS, number));
        let servers_cross = (number != Rotation::FIRST).then_some(()).map(cross).transpose()?;
        let (agents, operators) = (ca(Role::Agents)?, ca(Role::Operators)?);
        let end = |ca: &Ca, role: Role| {
            identity::expiry(&ca.certificate).map_err(content(&file_of(folder, role.file(), number)))
        };
        let ca_ends = [
            ("root", expires_at),
            ("agents-ca", end(&agents, Role::Agents)?),
            ("operators-ca", end(&operators, Role::Operators)?),
        ];
        let folder = folder.to_owned();
        Ok(Generation { number, root, expires_at, pin, agents, operators, servers_cross, ca_ends, folder, leaf })
    }

    /// The server's own certificate under it.
    pub(super) fn leaf(&self) -> Arc<ServerLeaf> {
        Arc::clone(&self.leaf.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the server's next certificate when it is time. The key of the CA is read from its file for that and is not
    /// kept.
    pub(super) fn renew_leaf(
        &self,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Option<Arc<ServerLeaf>>, AuthorityError> {
        if self.leaf().has_time_left(now) {
            return Ok(None);
        }
        let ca = load_ca(&file_of(&self.folder, Role::Servers.file(), self.number))?;
        let path = file_of(&self.folder, SERVER_LEAF, self.number);
        let leaf = Arc::new(leaf::load_or_make(&path, &ca, trust_domain, now)?);
        *self.leaf.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&leaf);
        Ok(Some(leaf))
    }
}

/// The number of the generation that a file belongs to, if it is one of a generation.
fn generation_of(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(SUFFIX)?;
    let kinds = Role::ALL.map(Role::file).into_iter().chain([ROOT, SERVER_LEAF, SERVERS_CROSS]);
    kinds.filter_map(|kind| stem.strip_prefix(kind)).find_map(|rest| match rest {
        "" => Some(Rotation::FIRST),
        numbered => numbered.strip_prefix('-')?.parse().ok(),
    })
}

/// Removes files that were not written to their end. Only while nobody writes any.
pub(super) fn tidy(folder: &Path) -> Result<(), AuthorityError> {
    remove_where(folder, |name| name.ends_with(private::UNFINISHED))
}

/// Removes the keys of every generation that has no part in the exchange any more, or was never whole.
pub(super) fn sweep(folder: &Path, rotation: Rotation) -> Result<(), AuthorityError> {
    remove_where(folder, |name| generation_of(name).is_some_and(|number| !rotation.uses(number)))
}

fn remove_where(folder: &Path, goes: impl Fn(&str) -> bool) -> Result<(), AuthorityError> {
    let failed = |path: &Path, source: io::Error| AuthorityError::Folder { path: path.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&goes) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path, error)),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_generation_it_is_of() {
        for (name, expected) in [
            ("root.pem", Some(1)),
            ("root-2.pem", Some(2)),
            ("server-leaf.pem", Some(1)),
            ("server-leaf-12.pem", Some(12)),
            ("servers-cross-3.pem", Some(3)),
            ("servers-3.pem", Some(3)),
            ("rotation.toml", None),
            ("root-2.pem.bak", None),
            ("roots.pem", None),
            ("notes.pem", None),
            ("root-x.pem", None),
        ] {
            assert_eq!(generation_of(name), expected, "{name}");
        }
    }
}
