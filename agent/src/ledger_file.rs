//! The ledger on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_agent_core::{Ledger, LedgerFound};
use keelson_host::{Durability, HostError, write_atomically};
use keelson_protocol::SecretBytes;

/// How often a file that cannot be read is tried, and the pause between.
const READ_TRIES: u32 = 5;
const READ_PAUSE: Duration = Duration::from_secs(1);
/// Only root may read it: configs hold secrets.
const MODE: u32 = 0o600;

/// Reads the ledger. One that cannot be used is kept aside, so that the agent starts in any case and a person can look.
pub(crate) fn read(path: &Path) -> LedgerFound {
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

/// Writes the ledger; it is on the disk when this returns.
pub(crate) fn write(path: &Path, bytes: &SecretBytes) -> Result<(), HostError> {
    write_atomically(path, MODE, bytes.expose_secret(), Durability::OnDisk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_protocol::{Incarnation, MachineId};

    #[test]
    fn a_ledger_comes_back_and_a_damaged_one_is_kept_aside() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ledger");
        assert!(matches!(read(&path), LedgerFound::Absent));
        let ledger = Ledger::empty(MachineId::new("m").unwrap(), Incarnation(1));
        write(&path, &ledger.encode()).unwrap();
        assert!(matches!(read(&path), LedgerFound::Intact(found) if *found == ledger));
        fs::write(&path, b"KEELSONL and then something else that is long enough to look like a head")
            .unwrap();
        assert!(matches!(read(&path), LedgerFound::SetAside { why } if why.contains("ledger.unusable")));
        assert!(matches!(read(&path), LedgerFound::Absent));
        assert!(root.path().join("ledger.unusable").exists());
    }

    #[test]
    fn a_ledger_of_an_older_agent_is_kept_aside_and_the_reason_says_what_comes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ledger");
        let fresh = Ledger::empty(MachineId::new("m").unwrap(), Incarnation(1)).encode();
        let mut old = fresh.expose_secret().to_vec();
        // The version, after eight bytes of magic.
        let known = u16::from_be_bytes([old[8], old[9]]);
        old[8..10].copy_from_slice(&1_u16.to_be_bytes());
        let bytes = SecretBytes::new(old);
        write(&path, &bytes).unwrap();
        let LedgerFound::SetAside { why } = read(&path) else { panic!("it was taken") };
        let reason = format!(
            "the ledger has version 1, this agent reads only {known}: \
             it waits for the coordinator to send the config again"
        );
        let kept = root.path().join("ledger.unusable");
        assert_eq!(why, format!("{reason}; it is kept as {}", kept.display()));
        assert_eq!(fs::read(kept).unwrap(), bytes.expose_secret());
        assert!(matches!(read(&path), LedgerFound::Absent));
    }
}
