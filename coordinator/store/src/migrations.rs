//! The schema, as a list of steps. A step is never changed once released; a change is a new step.

use rusqlite::Connection;

/// The newest schema version, kept in SQLite's `user_version`.
pub const SCHEMA_VERSION: u32 = 3;

/// Step `i` leads from version `i` to `i + 1`.
pub(crate) const STEPS: [&str; SCHEMA_VERSION as usize] = [
    "
    CREATE TABLE clusters (name TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE material (cluster TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
    CREATE TABLE machines (id TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE operations (id TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    CREATE TABLE idempotency (key TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE events
        (id INTEGER PRIMARY KEY, severity INTEGER NOT NULL, cluster TEXT, machine TEXT, row TEXT NOT NULL) STRICT;
    CREATE INDEX events_by_cluster ON events (cluster, id);
    CREATE INDEX events_by_machine ON events (machine, id);
",
    // Plans of users.
    "CREATE TABLE plans (name TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;",
    // Events by the incident they belong to, and who has paused repair of which cluster; of everything where it is ''.
    "
    ALTER TABLE events ADD COLUMN incident INTEGER;
    UPDATE events SET incident = json_extract(row, '$.incident');
    CREATE INDEX events_by_incident ON events (incident, id) WHERE incident IS NOT NULL;
    CREATE TABLE pauses (cluster TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
",
];

/// The version of an open database.
pub(crate) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings a database from `found` to [`SCHEMA_VERSION`], in one transaction.
pub(crate) fn migrate(connection: &mut Connection, found: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for step in STEPS.iter().skip(found as usize) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}
