//! Reading and writing rows.

use std::path::{Path, PathBuf};

use keelson_coordinator_core::{Counter, PauseNote, Row, Saved};
use keelson_model::{ClusterMaterial, FleetEvent, Severity};
use keelson_pki::SealingKey;
use keelson_protocol::errors::chain;
use keelson_protocol::{ClusterName, MachineId};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::migrations::{SCHEMA_VERSION, migrate, version};

/// Events kept; about 50 MB. Older ones are dropped as new ones come.
const EVENTS_KEPT_MAX: u64 = 100_000;

/// Which part of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventRange {
    /// The oldest ones after this number.
    After(u64),
    /// The newest ones.
    Newest,
}

/// Events of which incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfIncident {
    /// Of any, and of none.
    Whatever,
    /// Of any.
    Any,
    /// Of this one.
    Number(u64),
}

/// Which events are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// Which part of them.
    pub range: EventRange,
    /// Only this severe or more.
    pub severity_min: Severity,
    /// Only of this cluster.
    pub cluster: Option<ClusterName>,
    /// Only of this machine.
    pub machine: Option<MachineId>,
    /// Only of an incident.
    pub incident: OfIncident,
    /// At most so many.
    pub count_max: u32,
}

/// The coordinator's file. One writer: whoever holds this value.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    key: SealingKey,
}

impl Store {
    /// Opens or makes the file at `path`. A file of a newer version is refused and stays untouched.
    ///
    /// # Errors
    /// [`StoreError::Newer`], [`StoreError::Damaged`] or [`StoreError::Sql`].
    pub fn open(path: &Path, key: SealingKey) -> Result<Self, StoreError> {
        let failed = |what| move |source| sql_error(path, what, source);
        let mut connection = Connection::open(path).map_err(failed("open"))?;
        let found = version(&connection).map_err(failed("read"))?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION });
        }
        check(&connection, path)?;
        // Write-ahead log, and a commit is on the disk when it returns: what was answered to a user is never lost.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed("open"))?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed("open"))?;
        if found < SCHEMA_VERSION {
            migrate(&mut connection, found).map_err(failed("migrate"))?;
        }
        Ok(Self { connection, path: path.to_owned(), key })
    }

    /// Writes `rows` in one transaction; they are on the disk when it returns.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`] or [`StoreError::Sql`]; then none of them was written.
    pub fn apply(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |source| sql_error(&path, "write", source);
        let transaction = self.connection.transaction().map_err(failed)?;
        for row in rows {
            write(&transaction, &self.key, row, &path)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Everything but the events.
    ///
    /// # Errors
    /// [`StoreError::Row`], [`StoreError::Seal`] or [`StoreError::Sql`].
    pub fn load(&self) -> Result<Saved, StoreError> {
        let counters = Counter::ALL.into_iter().filter_map(|counter| self.counter(counter).transpose());
        Ok(Saved {
            clusters: self.all("clusters", "SELECT name, row FROM clusters ORDER BY name")?,
            material: self.material()?,
            machines: self.all("machines", "SELECT id, row FROM machines ORDER BY id")?,
            operations: self.all("operations", "SELECT id, row FROM operations ORDER BY id")?,
            plans: self.all("plans", "SELECT name, row FROM plans ORDER BY name")?,
            pauses: self.pauses()?,
            idempotency: self.all("idempotency", "SELECT key, row FROM idempotency ORDER BY key")?,
            counters: counters.collect::<Result<_, _>>()?,
        })
    }

    /// Events that match, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Row`] or [`StoreError::Sql`].
    pub fn events(&self, filter: &EventFilter) -> Result<Vec<FleetEvent>, StoreError> {
        let failed = |source| self.error("read", source);
        let (after, order) = match filter.range {
            EventRange::After(after) => (after, "ASC"),
            EventRange::Newest => (0, "DESC"),
        };
        // Written into the query, so that the index of incidents serves it; the last parameter is always used.
        let (incident, of_incident) = match filter.incident {
            OfIncident::Whatever => (0, ""),
            OfIncident::Any => (0, "AND incident IS NOT NULL"),
            OfIncident::Number(number) => (number, "AND incident = ?5"),
        };
        let query = format!(
            "SELECT id, row FROM events WHERE id > ?1 AND severity >= ?2 AND (?3 IS NULL OR cluster = ?3)
             AND (?4 IS NULL OR machine = ?4) {of_incident} AND ?5 IS NOT NULL ORDER BY id {order}"
        );
        let mut statement = self.connection.prepare_cached(&query).map_err(failed)?;
        let cluster = filter.cluster.as_ref().map(ClusterName::as_str);
        let machine = filter.machine.as_ref().map(MachineId::as_str);
        let severity = rank(filter.severity_min);
        let rows = statement
            .query_map(params![after as i64, severity, cluster, machine, incident as i64], |row| {
                Ok((row.get::<_, i64>(0)?.to_string(), row.get::<_, String>(1)?))
            })
            .map_err(failed)?;
        let mut events: Vec<FleetEvent> = Vec::new();
        for row in rows {
            if events.len() >= filter.count_max as usize {
                break;
            }
            match parse::<FleetEvent>("events", row.map_err(failed)?) {
                Ok(event) => events.push(event),
                // Of a damaged record, or one of a newer version, the others are still worth reading.
                Err(error) => tracing::warn!(error = chain(&error), "an event is left out"),
            }
        }
        events.sort_by_key(|event| event.id);
        Ok(events)
    }

    /// Number of the oldest event that is kept; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn oldest_event(&self) -> Result<Option<u64>, StoreError> {
        let query =
            self.connection.query_row("SELECT min(id) FROM events", [], |row| row.get::<_, Option<i64>>(0));
        let id = query.map_err(|source| self.error("read", source))?;
        Ok(id.and_then(|id| u64::try_from(id).ok()))
    }

    fn all<T: DeserializeOwned>(&self, table: &'static str, query: &str) -> Result<Vec<T>, StoreError> {
        Ok(self.keyed(table, query)?.into_iter().map(|(_, row)| row).collect())
    }

    fn keyed<T: DeserializeOwned>(
        &self,
        table: &'static str,
        query: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let failed = |source| self.error("read", source);
        let mut statement = self.connection.prepare(query).map_err(failed)?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(failed)?;
        let parsed = rows.map(|row| {
            let (key, text) = row.map_err(failed)?;
            Ok((key.clone(), parse(table, (key, text))?))
        });
        parsed.collect()
    }

    fn pauses(&self) -> Result<Vec<(Option<ClusterName>, PauseNote)>, StoreError> {
        let rows: Vec<(String, PauseNote)> =
            self.keyed("pauses", "SELECT cluster, row FROM pauses ORDER BY cluster")?;
        let scope = |(cluster, note): (String, PauseNote)| {
            let name =
                (!cluster.is_empty()).then(|| serde_json::from_value(cluster.clone().into())).transpose();
            let name = name.map_err(|source| StoreError::Row { table: "pauses", key: cluster, source })?;
            Ok((name, note))
        };
        rows.into_iter().map(scope).collect()
    }

    fn material(&self) -> Result<Vec<(ClusterName, ClusterMaterial)>, StoreError> {
        let failed = |source| self.error("read", source);
        let query = "SELECT cluster, sealed FROM material ORDER BY cluster";
        let mut statement = self.connection.prepare(query).map_err(failed)?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))
            .map_err(failed)?;
        let mut material = Vec::new();
        for row in rows {
            let (cluster, sealed) = row.map_err(failed)?;
            let opened = self.key.open(&material_name(&cluster), &sealed)?;
            let bad = |source| StoreError::Row { table: "material", key: cluster.clone(), source };
            let content: ClusterMaterial = serde_json::from_slice(&opened).map_err(bad)?;
            let name: ClusterName = serde_json::from_value(cluster.clone().into()).map_err(bad)?;
            material.push((name, content));
        }
        Ok(material)
    }

    fn counter(&self, counter: Counter) -> Result<Option<(Counter, u64)>, StoreError> {
        let query = "SELECT value FROM counters WHERE name = ?1";
        let value = self.connection.query_row(query, [counter.name()], |row| row.get::<_, i64>(0)).optional();
        let value = value.map_err(|source| self.error("read", source))?;
        Ok(value.and_then(|value| Some((counter, u64::try_from(value).ok()?))))
    }

    fn error(&self, what: &'static str, source: rusqlite::Error) -> StoreError {
        sql_error(&self.path, what, source)
    }
}

fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let answer = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match answer {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(what) => Err(StoreError::Damaged { path: path.to_owned(), what }),
        Err(source) => Err(sql_error(path, "check", source)),
    }
}

fn write(transaction: &Transaction, key: &SealingKey, row: &Row, path: &Path) -> Result<(), StoreError> {
    let put = |query: &str, id: &str, text: String| transaction.execute(query, params![id, text]);
    let remove = |query: &str, id: &str| transaction.execute(query, [id]);
    let done = match row {
        Row::Cluster(row) => {
            put("INSERT OR REPLACE INTO clusters VALUES (?1, ?2)", row.spec.name.as_str(), text(row))
        }
        Row::Material(cluster, material) => {
            let sealed = key.seal(&material_name(cluster.as_str()), text(material).as_bytes())?;
            transaction
                .execute("INSERT OR REPLACE INTO material VALUES (?1, ?2)", params![cluster.as_str(), sealed])
        }
        Row::RemoveCluster(name) => remove("DELETE FROM material WHERE cluster = ?1", name.as_str())
            .and_then(|_| remove("DELETE FROM clusters WHERE name = ?1", name.as_str())),
        Row::Machine(row) => {
            put("INSERT OR REPLACE INTO machines VALUES (?1, ?2)", row.id.as_str(), text(row))
        }
        Row::RemoveMachine(id) => remove("DELETE FROM machines WHERE id = ?1", id.as_str()),
        Row::Operation(row) => put("INSERT OR REPLACE INTO operations VALUES (?1, ?2)", &row.id.0, text(row)),
        Row::RemoveOperation(id) => remove("DELETE FROM operations WHERE id = ?1", &id.0),
        Row::Event(event) => write_event(transaction, event),
        Row::Counter(counter, value) => transaction.execute(
            "INSERT OR REPLACE INTO counters VALUES (?1, ?2)",
            params![counter.name(), *value as i64],
        ),
        Row::Plan(row) => put("INSERT OR REPLACE INTO plans VALUES (?1, ?2)", &row.name.0, text(row)),
        Row::RemovePlan(name) => remove("DELETE FROM plans WHERE name = ?1", &name.0),
        Row::Pause(scope, Some(note)) => {
            put("INSERT OR REPLACE INTO pauses VALUES (?1, ?2)", scope_key(scope.as_ref()), text(note))
        }
        Row::Pause(scope, None) => remove("DELETE FROM pauses WHERE cluster = ?1", scope_key(scope.as_ref())),
        Row::Idempotency(row) => {
            put("INSERT OR REPLACE INTO idempotency VALUES (?1, ?2)", &row.key, text(row))
        }
        Row::RemoveIdempotency(key) => remove("DELETE FROM idempotency WHERE key = ?1", key),
    };
    done.map(|_| ()).map_err(|source| sql_error(path, "write", source))
}

fn write_event(transaction: &Transaction, event: &FleetEvent) -> rusqlite::Result<usize> {
    let cluster = event.cluster.as_ref().map(ClusterName::as_str);
    let machine = event.machine.as_ref().map(MachineId::as_str);
    let incident = event.incident.map(|number| number as i64);
    let oldest = event.id.saturating_sub(EVENTS_KEPT_MAX);
    transaction.execute("DELETE FROM events WHERE id <= ?1", [oldest as i64])?;
    transaction.execute(
        "INSERT OR REPLACE INTO events (id, severity, cluster, machine, row, incident)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![event.id as i64, rank(event.severity), cluster, machine, text(event), incident],
    )
}

/// Key of a pause: the cluster's name; of everything it is empty, which no name is.
fn scope_key(cluster: Option<&ClusterName>) -> &str {
    cluster.map_or("", ClusterName::as_str)
}

/// Severities as SQL compares them.
fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::Info => 0,
        Severity::Warning => 1,
        Severity::Alarm => 2,
    }
}

fn text(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows have text keys only, so they always serialize")
}

fn parse<T: DeserializeOwned>(table: &'static str, (key, text): (String, String)) -> Result<T, StoreError> {
    serde_json::from_str(&text).map_err(|source| StoreError::Row { table, key, source })
}

fn material_name(cluster: &str) -> String {
    format!("cluster material 1: {cluster}")
}

fn sql_error(path: &Path, what: &'static str, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull { path },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged { path, what: source.to_string() }
        }
        _ => StoreError::Sql { what, path, source },
    }
}
