//! Taking named programs out of a `.tar.gz`. Nothing else of the archive is written anywhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;

use crate::files::{At, FileError, is_disk_full};

/// Unpacked bytes of the largest archive that is accepted. The official ones unpack to 0.2 GB at most; this stops a
/// file that unpacks without end.
const UNPACKED_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// An archive is not as expected.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is not a `.tar.gz`, or damaged, or larger than the limit.
    #[error("it is not a sound .tar.gz of at most {UNPACKED_BYTES_MAX} bytes")]
    Malformed(#[source] io::Error),
    /// An expected program is not in it.
    #[error("it has no file {member:?}")]
    MemberMissing {
        /// Path in the archive.
        member: String,
    },
    /// A program cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ArchiveError {
    /// Whether the file system had no room left.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            ArchiveError::File(error) => error.is_disk_full(),
            ArchiveError::Malformed(error) => is_disk_full(error),
            ArchiveError::MemberMissing { .. } => false,
        }
    }
}

/// Writes each (member, program) to `bin/program`.
pub(crate) fn unpack(archive: &Path, members: &[(&str, &str)], bin: &Path) -> Result<(), ArchiveError> {
    let file = File::open(archive).at("open", archive)?;
    let mut tar = tar::Archive::new(MultiGzDecoder::new(file).take(UNPACKED_BYTES_MAX));
    let mut missing: BTreeSet<&str> = members.iter().map(|(member, _)| *member).collect();
    for entry in tar.entries().map_err(ArchiveError::Malformed)? {
        let mut entry = entry.map_err(ArchiveError::Malformed)?;
        let path = entry.path().map_err(ArchiveError::Malformed)?;
        let Some(name) = plain_name(&path) else { continue };
        let Some((member, program)) = members.iter().find(|(member, _)| *member == name) else { continue };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        missing.remove(member);
        let to = bin.join(program);
        let mut out = File::create(&to).at("create", &to)?;
        io::copy(&mut entry, &mut out).map_err(ArchiveError::Malformed)?;
    }
    match missing.first() {
        Some(member) => Err(ArchiveError::MemberMissing { member: (*member).to_owned() }),
        None => Ok(()),
    }
}

/// The path without `./`; none when it is absolute or climbs.
fn plain_name(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let gzip = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            // Set as bytes, as the library refuses to write a path that climbs.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        file
    }

    #[test]
    fn only_named_members_are_written() {
        let entries: [(&str, &[u8]); 4] =
            [("./bin/ctr", b"ctr"), ("bin/other", b"x"), ("../bin/ctr", b"evil"), ("/bin/ctr", b"evil")];
        let (file, out) = (archive(&entries), tempfile::tempdir().unwrap());
        unpack(file.path(), &[("bin/ctr", "ctr")], out.path()).unwrap();
        assert_eq!(std::fs::read(out.path().join("ctr")).unwrap(), b"ctr");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_member_and_a_damaged_archive_are_errors() {
        let (file, out) = (archive(&[("a", b"a")]), tempfile::tempdir().unwrap());
        let error = unpack(file.path(), &[("bin/ctr", "ctr")], out.path()).unwrap_err();
        assert_eq!(error.to_string(), "it has no file \"bin/ctr\"");
        std::fs::write(file.path(), "not gzip").unwrap();
        let error = unpack(file.path(), &[("a", "a")], out.path()).unwrap_err();
        assert!(matches!(error, ArchiveError::Malformed(_)), "{error}");
    }
}
