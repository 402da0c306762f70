//! Why the store did not do what it was asked.

use std::path::PathBuf;

use keelson_pki::SealError;

/// Why the store did not do what it was asked. Each message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file was written by a newer coordinator. It was not touched.
    #[error(
        "{path} has schema version {found}, this program knows {known}: it was written by a newer coordinator; use that one, or restore a backup"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// The file is no sound SQLite database.
    #[error(
        "{path} is damaged ({what}); move it away and restore a backup, or start with an empty state directory"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A row cannot be read.
    #[error("row {key} of table {table} cannot be read; restore a backup")]
    Row {
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A secret cannot be opened or sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The disk is full.
    #[error("the disk that holds {path} is full; free some space, nothing was lost")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// SQLite refused for another reason.
    #[error("could not {what} {path}")]
    Sql {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}
