//! The ledger on disk, or in memory while the disk takes no writes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_agent_core::{Ledger, LedgerFound};
use keelson_host::{Durability, HostError, write_atomically};
use keelson_protocol::SecretBytes;
use tracing::warn;

use crate::paths::Paths;

/// How often a file that cannot be read is tried, and the pause between.
const READ_TRIES: u32 = 5;
const READ_PAUSE: Duration = Duration::from_secs(1);
/// Of the file, in either folder.
const NAME: &str = "ledger";
/// Only root may read it: configs hold secrets.
const MODE: u32 = 0o600;

/// Where the ledger lies: on the disk, and in memory while the disk takes no writes. An agent that is started anew in the
/// same boot must know what it has started.
#[derive(Debug, Clone)]
pub(crate) struct LedgerFile {
    disk: PathBuf,
    /// When there is one, it is newer than that on the disk.
    memory: PathBuf,
}

impl LedgerFile {
    pub(crate) fn of(paths: &Paths) -> Self {
        Self { disk: paths.state.join(NAME), memory: paths.run.join(NAME) }
    }

    /// Reads the ledger. One that cannot be used is kept aside, so that the agent starts in any case and a person can look.
    pub(crate) fn read(&self) -> LedgerFound {
        match read(&self.memory) {
            LedgerFound::Intact(ledger) => LedgerFound::InMemory(ledger),
            LedgerFound::Absent => read(&self.disk),
            unusable => unusable,
        }
    }

    /// Writes the ledger; it is on the disk when this returns. What became of it is to be told by [`Self::settle`].
    pub(crate) fn write(&self, bytes: &SecretBytes) -> Result<(), HostError> {
        write_atomically(&self.disk, MODE, bytes.expose_secret(), Durability::OnDisk)
    }

    /// What is to be believed of a write: after one that failed, or was given up and may still go on, the ledger is in
    /// memory; after a good one it is there no more.
    pub(crate) fn settle(&self, written: Result<(), String>, bytes: &SecretBytes) -> Result<(), String> {
        match written {
            Ok(()) => match fs::remove_file(&self.memory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(format!("{} cannot be removed: {error}", self.memory.display()))
                }
                _ => Ok(()),
            },
            Err(why) => {
                let kept = write_atomically(&self.memory, MODE, bytes.expose_secret(), Durability::InMemory);
                if let Err(error) = kept {
                    warn!(error = error.chain(), "the ledger is neither on the disk nor in memory");
                }
                Err(why)
            }
        }
    }
}

fn read(path: &Path) -> LedgerFound {
    let bytes = match read_in_time(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return LedgerFound::Absent,
        Err(error) => {
            let why = format!("the ledger cannot be read: {error}; {}", set_aside(path));
            return LedgerFound::SetAside { why };
        }
    };
    match Ledger::decode(&bytes) {
        Ok(ledger) => LedgerFound::Intact(Box::new(ledger)),
        Err(error) => LedgerFound::SetAside { why: format!("{error}; {}", set_aside(path)) },
    }
}

/// Reads the file; a disk that fails for a moment is given some.
fn read_in_time(path: &Path) -> io::Result<Vec<u8>> {
    let mut last = fs::read(path);
    for _ in 1..READ_TRIES {
        match &last {
            Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(READ_PAUSE),
            _ => break,
        }
        last = fs::read(path);
    }
    last
}

fn set_aside(path: &Path) -> String {
    let aside = aside(path);
    match fs::rename(path, &aside) {
        Ok(()) => format!("it is kept as {}", aside.display()),
        Err(error) => format!("it could not be moved to {}: {error}", aside.display()),
    }
}

/// One name, so that a ledger which is damaged again and again does not fill the disk.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("unusable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_protocol::{Incarnation, MachineId};

    fn file_in(root: &Path) -> LedgerFile {
        LedgerFile { disk: root.join("state/ledger"), memory: root.join("run/ledger") }
    }

    fn ledger(event_next: u64) -> Ledger {
        Ledger { event_next, ..Ledger::empty(MachineId::new("m").unwrap(), Incarnation(1)) }
    }

    fn intact(found: LedgerFound) -> Ledger {
        let LedgerFound::Intact(found) = found else { panic!("{found:?}") };
        *found
    }

    #[test]
    fn a_ledger_comes_back_and_a_damaged_one_is_kept_aside() {
        let root = tempfile::tempdir().unwrap();
        let file = file_in(root.path());
        assert!(matches!(file.read(), LedgerFound::Absent));
        let ledger = ledger(1);
        file.write(&ledger.encode()).unwrap();
        assert_eq!(intact(file.read()), ledger);
        fs::write(&file.disk, b"KEELSONL and then something else that is long enough to look like a head")
            .unwrap();
        assert!(matches!(file.read(), LedgerFound::SetAside { why } if why.contains("ledger.unusable")));
        assert!(matches!(file.read(), LedgerFound::Absent));
        assert!(file.disk.with_extension("unusable").exists());
    }

    /// A file where the folder should be takes no ledger, also from root.
    #[test]
    fn a_disk_that_takes_no_ledger_leaves_it_in_memory_until_it_does() {
        let root = tempfile::tempdir().unwrap();
        let file = file_in(root.path());
        let (first, second, third) = (ledger(1), ledger(2), ledger(3));
        let state = root.path().join("state");
        file.write(&first.encode()).unwrap();
        fs::rename(&state, root.path().join("aside")).unwrap();
        fs::write(&state, "").unwrap();
        let bytes = second.encode();
        let written = file.write(&bytes).map_err(|error| error.chain());
        assert!(written.is_err());
        assert_eq!(file.settle(written.clone(), &bytes), written);
        // The older one on the disk counts for nothing.
        fs::remove_file(&state).unwrap();
        fs::rename(root.path().join("aside"), &state).unwrap();
        let LedgerFound::InMemory(found) = file.read() else { panic!("it is lost") };
        assert_eq!(*found, second);
        let bytes = third.encode();
        let written = file.write(&bytes).map_err(|error| error.chain());
        assert_eq!(file.settle(written, &bytes), Ok(()));
        assert_eq!(intact(file.read()), third);
    }

    #[test]
    fn a_ledger_of_an_older_agent_is_kept_aside_and_the_reason_says_what_comes() {
        let root = tempfile::tempdir().unwrap();
        let file = file_in(root.path());
        let fresh = ledger(1).encode();
        let mut old = fresh.expose_secret().to_vec();
        // The version, after eight bytes of magic.
        let known = u16::from_be_bytes([old[8], old[9]]);
        old[8..10].copy_from_slice(&1_u16.to_be_bytes());
        let bytes = SecretBytes::new(old);
        file.write(&bytes).unwrap();
        let LedgerFound::SetAside { why } = file.read() else { panic!("it was taken") };
        let reason = format!(
            "the ledger has version 1, this agent reads only {known}: \
             it waits for the coordinator to send the config again"
        );
        let kept = file.disk.with_extension("unusable");
        assert_eq!(why, format!("{reason}; it is kept as {}", kept.display()));
        assert_eq!(fs::read(kept).unwrap(), bytes.expose_secret());
        assert!(matches!(file.read(), LedgerFound::Absent));
    }
}
