//! What the local provider writes down about an installation and about each machine, before it makes them.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use keelson_protocol::{InstallId, MachineId};
use serde::{Deserialize, Serialize};

use super::error::LocalError;
use super::files;
use super::paths::{Paths, RECORD};
use crate::{ObjectKey, ProviderError};

/// Version of the state files; a file of another version is refused.
pub(crate) const STATE_VERSION: u32 = 1;

/// Most machines whose records are read. One host carries a few dozen; beyond this something else fills the directory.
const MACHINES_MAX: usize = 4096;

/// The installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstallRecord {
    pub(crate) version: u32,
    pub(crate) install: InstallId,
    /// The LAN's network and the length of its prefix.
    pub(crate) network: (Ipv4Addr, u8),
    pub(crate) zones: Vec<String>,
    /// When set, machines' disks are tmpfs of this size.
    pub(crate) var_tmpfs_bytes: Option<u64>,
}

/// Whether a machine shall have power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Power {
    /// It shall run.
    On,
    /// It was switched off.
    Off,
    /// It was fenced: creating it again does not switch it on.
    Fenced,
}

/// A machine: its tag, and all that is needed to switch it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MachineRecord {
    pub(crate) version: u32,
    pub(crate) key: ObjectKey,
    pub(crate) zone: String,
    pub(crate) address: Ipv4Addr,
    /// Digest of the image, for people; `layers` is what counts.
    pub(crate) image: String,
    /// The image's layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) cpu_millis_max: Option<u32>,
    pub(crate) memory_bytes_max: Option<u64>,
    pub(crate) power: Power,
}

impl MachineRecord {
    pub(crate) fn id(&self) -> &MachineId {
        &self.key.machine
    }

    /// Name of the machine's port on the LAN's bridge: an interface name holds 15 bytes, a machine id does not fit.
    pub(crate) fn port(&self) -> String {
        format!("m{:08x}", self.address.to_bits())
    }
}

/// The record of a machine; `None` when there is no such machine.
pub(crate) fn machine(paths: &Paths, id: &MachineId) -> Result<Option<MachineRecord>, LocalError> {
    let path = paths.machine(id).record();
    let record: Option<MachineRecord> = files::read_json(&path)?;
    match record {
        Some(other) if other.version != STATE_VERSION => Err(ProviderError::Unavailable {
            detail: format!(
                "{} has version {}, this program knows {STATE_VERSION}; use the program that wrote it",
                path.display(),
                other.version
            ),
        }
        .into()),
        found => Ok(found),
    }
}

/// The record of a machine that must be the one that `key` names.
pub(crate) fn machine_of(paths: &Paths, key: &ObjectKey) -> Result<MachineRecord, LocalError> {
    match machine(paths, &key.machine)? {
        Some(record) if record.key == *key => Ok(record),
        _ => Err(ProviderError::NotFound { what: format!("machine {key}") }.into()),
    }
}

/// All machines, in order of their ids.
pub(crate) fn machines(paths: &Paths) -> Result<Vec<MachineRecord>, LocalError> {
    let dir = paths.machines();
    let names = match list(&dir) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(LocalError::file("list", dir)(e)),
    };
    let mut found = Vec::new();
    for name in names {
        let Ok(id) = MachineId::new(name) else { continue };
        // One that is gone meanwhile was deleted.
        found.extend(machine(paths, &id)?);
    }
    Ok(found)
}

/// Machines that have files and no record, because somebody moved it away.
pub(crate) fn unrecorded(paths: &Paths) -> Result<Vec<MachineId>, LocalError> {
    let dir = paths.machines();
    let names = match list(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(LocalError::file("list", dir))?,
    };
    let ids = names.into_iter().filter_map(|name| MachineId::new(name).ok());
    Ok(ids.filter(|id| !paths.machine(id).record().exists()).collect())
}

fn list(dir: &std::path::Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)?.take(MACHINES_MAX) {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Replaces a machine's record.
pub(crate) fn write(paths: &Paths, record: &MachineRecord) -> Result<(), LocalError> {
    files::write_json(&paths.machine(record.id()).record(), record)
}

/// Makes a machine visible: its directory appears together with its record, never without.
pub(crate) fn claim(paths: &Paths, record: &MachineRecord) -> Result<(), LocalError> {
    let draft = paths.drafts().join(record.id().as_str());
    files::remove_tree(&draft)?;
    files::make_dir(&draft)?;
    files::write_json(&draft.join(RECORD), record)?;
    let dir = paths.machine(record.id());
    fs::rename(&draft, dir.dir()).map_err(LocalError::file("create", dir.dir()))?;
    files::sync_parent(dir.dir()).map_err(LocalError::file("save", dir.dir()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_protocol::{ClusterName, Incarnation};

    #[test]
    fn ports_follow_the_address() {
        let record = MachineRecord {
            version: STATE_VERSION,
            key: ObjectKey {
                install: InstallId::new("i").unwrap(),
                cluster: ClusterName::new("c").unwrap(),
                machine: MachineId::new("m").unwrap(),
                incarnation: Incarnation(1),
            },
            zone: "z".to_owned(),
            address: Ipv4Addr::new(10, 210, 0, 17),
            image: String::new(),
            layers: Vec::new(),
            cpu_millis_max: None,
            memory_bytes_max: None,
            power: Power::On,
        };
        assert_eq!(record.port(), "m0ad20011");
    }
}
