//! Room left on the state disk and in memory.

use std::io;

use keelson_protocol::health::Pressure;
use nix::sys::statvfs::statvfs;

use crate::error::HostError;

/// Where machines keep their state.
pub(crate) const STATE_MOUNT: &str = "/var/lib";
const MEMINFO: &str = "/proc/meminfo";

pub(crate) fn pressure() -> Result<Pressure, HostError> {
    let disk = statvfs(STATE_MOUNT)
        .map_err(|error| HostError::Meter { what: "the room on /var/lib", source: error.into() })?;
    // As df(1) counts: blocks that only root may use are no room.
    let used_blocks = disk.blocks().saturating_sub(disk.blocks_free());
    let blocks = used_blocks + disk.blocks_available();
    let used_inodes = disk.files().saturating_sub(disk.files_free());
    let total = memory_bytes("MemTotal")?;
    let available = memory_bytes("MemAvailable")?;
    Ok(Pressure {
        disk_used_percent: percent(used_blocks, blocks),
        inodes_used_percent: percent(used_inodes, disk.files()),
        memory_available_percent: percent(available, total),
    })
}

/// A line of /proc/meminfo (proc(5)), in bytes.
pub(crate) fn memory_bytes(key: &str) -> Result<u64, HostError> {
    let failed = |source| HostError::Meter { what: MEMINFO, source };
    let text = std::fs::read_to_string(MEMINFO).map_err(failed)?;
    meminfo_bytes(&text, key).ok_or_else(|| failed(io::Error::other(format!("it has no line {key}"))))
}

fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Part of a whole, rounded up, so that a full disk is never 99 %; zero of nothing.
fn percent(part: u64, whole: u64) -> u8 {
    if whole == 0 {
        return 0;
    }
    let percent = (u128::from(part) * 100).div_ceil(u128::from(whole));
    u8::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_rounded_up_and_bounded() {
        let table = [((0, 0), 0), ((0, 5), 0), ((1, 1000), 1), ((999, 1000), 100), ((9, 5), 100)];
        for ((part, whole), expected) in table {
            assert_eq!(percent(part, whole), expected, "{part} of {whole}");
        }
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(21_504_000_000));
        assert_eq!(meminfo_bytes(text, "Mem"), None);
        assert!(pressure().is_ok());
    }
}
