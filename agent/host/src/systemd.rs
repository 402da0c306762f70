//! systemd, over D-Bus (org.freedesktop.systemd1(5)), on the system bus. systemd's private socket would do without the
//! bus daemon, but it names itself there in a way that zbus, rightly, refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_agent_core::{Active, Invocation, UnitSeen};
use tokio::sync::Mutex;
use zbus::{Connection, DynamicType, OwnedObjectPath, OwnedVariant, connection};

use crate::error::HostError;
use crate::journal;

const SERVICE_NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// systemd keeps the invocation of each unit as the target of a link here; reading one costs a hundredth of a call.
const INVOCATIONS: &str = "/run/systemd/units/invocation:";
/// A call that takes longer has lost its answer. A reload of a large machine takes seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// A connection to the bus that takes longer will not come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Error of systemd for a unit that it does not know.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A row of `ListUnitsByNames`: name, description, load, active, sub, followed, path, job, job type, job path.
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A connection to systemd, made when it is first needed and again after it broke.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    connection: Mutex<Option<Connection>>,
    /// Last words of units whose programs failed, with the moment of the end they belong to: asked for once, however
    /// often a unit that is down is looked at.
    last_words: Mutex<BTreeMap<String, (u64, String)>>,
}

impl Systemd {
    pub(crate) async fn units(&self, names: &[String]) -> Result<Vec<UnitSeen>, HostError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let reply = self.call("ListUnitsByNames", &(names,), "list units").await?;
        let rows: Vec<Row> = reply.body().deserialize().map_err(|error| lost("list units", error))?;
        let mut seen = BTreeMap::new();
        for row in rows {
            let name = row.0.clone();
            if names.contains(&name) {
                seen.insert(name, self.unit(row).await?);
            }
        }
        // systemd answers for every name, also for those that it does not know. If it does not, nothing was seen.
        let silent =
            |name: &String| lost("list units", zbus::Error::Failure(format!("it said nothing about {name}")));
        names.iter().map(|name| seen.remove(name).ok_or_else(|| silent(name))).collect()
    }

    async fn unit(&self, row: Row) -> Result<UnitSeen, HostError> {
        let (name, _, load, active, sub, _, path, job, ..) = row;
        let active = reading(&active, &sub, job);
        let (ended, killed) = match active {
            Active::Stopped if load == "not-found" => ("systemd does not know it".to_owned(), false),
            Active::Stopped | Active::AutoRestart => self.how_it_ended(&name, &path).await?,
            Active::Settling | Active::Running | Active::Exited => Default::default(),
        };
        let invocation = match active {
            Active::Running | Active::Exited => invocation(&name),
            Active::Stopped | Active::AutoRestart | Active::Settling => None,
        };
        Ok(UnitSeen { active, invocation, ended, killed })
    }

    /// How it ended, in words, and whether somebody else ended it.
    async fn how_it_ended(&self, unit: &str, path: &OwnedObjectPath) -> Result<(String, bool), HostError> {
        let result: String = self.property(path, "Result").await?;
        let code: i32 = self.property(path, "ExecMainCode").await?;
        let status: i32 = self.property(path, "ExecMainStatus").await?;
        let how = ending(&result, code, status);
        if code != EXITED || status == 0 {
            return Ok((how, was_killed(&result, code, status)));
        }
        let at: u64 = self.property(path, "ExecMainExitTimestampMonotonic").await?;
        let words = self.last_words(unit, at).await;
        // The kernel may have taken a part of it, upon which the rest ended by itself.
        let killed = result == "oom-kill";
        Ok((if words.is_empty() { how } else { format!("{how}: {words}") }, killed))
    }

    async fn last_words(&self, unit: &str, at: u64) -> String {
        if let Some((_, words)) = self.last_words.lock().await.get(unit).filter(|(known, _)| *known == at) {
            return words.clone();
        }
        let words = journal::last_words(unit).await;
        self.last_words.lock().await.insert(unit.to_owned(), (at, words.clone()));
        words
    }

    async fn property<T>(&self, path: &OwnedObjectPath, name: &str) -> Result<T, HostError>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let what = || format!("tell {name} of {path}");
        let connection = self.connection().await?;
        let reply = connection
            .call_method(
                Some(SERVICE_NAME),
                path,
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &(SERVICE, name),
            )
            .await;
        let reply = self.checked(reply, what).await?;
        let value: OwnedVariant = reply.body().deserialize().map_err(|error| lost(&what(), error))?;
        T::try_from(value).map_err(|error| lost(&what(), error.into()))
    }

    /// Lets systemd read all unit files.
    pub(crate) async fn reload(&self) -> Result<(), HostError> {
        self.call("Reload", &(), "read its unit files").await.map(drop)
    }

    /// Queues a start; whether it succeeds is seen by looking.
    pub(crate) async fn start(&self, unit: &str) -> Result<(), HostError> {
        self.call("StartUnit", &(unit, "replace"), &format!("start {unit}")).await.map(drop)
    }

    /// Queues a restart; whether it succeeds is seen by looking.
    pub(crate) async fn restart(&self, unit: &str) -> Result<(), HostError> {
        self.call("RestartUnit", &(unit, "replace"), &format!("restart {unit}")).await.map(drop)
    }

    /// Queues a stop, and forgets that the unit failed.
    pub(crate) async fn stop(&self, unit: &str) -> Result<(), HostError> {
        let stopped = self.call("StopUnit", &(unit, "replace"), &format!("stop {unit}")).await;
        known(stopped)?;
        known(self.call("ResetFailedUnit", &(unit,), &format!("reset {unit}")).await)
    }

    /// Asks for a reboot, or for the machine to be switched off. systemd ends all programs at once, with SIGTERM first, and
    /// unmounts what it can. Nobody else's call is waited for: there is another way when this one takes long.
    pub(crate) async fn end_machine(&self, method: &str, what: &str) -> Result<(), HostError> {
        let called = tokio::time::timeout(CALL_TIMEOUT, self.call(method, &(), what)).await;
        called.unwrap_or_else(|_| {
            if let Ok(mut held) = self.connection.try_lock() {
                *held = None;
            }
            Err(lost(what, late()))
        })?;
        Ok(())
    }

    async fn call<B>(&self, method: &str, body: &B, what: &str) -> Result<zbus::Message, HostError>
    where
        B: serde::Serialize + DynamicType,
    {
        let connection = self.connection().await?;
        let reply = connection.call_method(Some(SERVICE_NAME), PATH, Some(MANAGER), method, body).await;
        self.checked(reply, || what.to_owned()).await
    }

    /// After anything but a refusal the connection may be dead: the next call makes a new one.
    async fn checked(
        &self,
        reply: Result<zbus::Message, zbus::Error>,
        what: impl FnOnce() -> String,
    ) -> Result<zbus::Message, HostError> {
        match reply {
            Ok(reply) => Ok(reply),
            Err(source) => {
                if !matches!(source, zbus::Error::MethodError(..) | zbus::Error::FDO(_)) {
                    *self.connection.lock().await = None;
                }
                Err(HostError::Systemd { what: what(), source })
            }
        }
    }

    async fn connection(&self) -> Result<Connection, HostError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref() {
            return Ok(connection.clone());
        }
        // A bus that hangs takes connections, and says nothing.
        let made = connection::Builder::system().method_timeout(CALL_TIMEOUT).build();
        let made = tokio::time::timeout(CONNECT_TIMEOUT, made).await.unwrap_or_else(|_| Err(late()));
        let connection = made.map_err(|source| HostError::NoSystemd { source })?;
        *held = Some(connection.clone());
        Ok(connection)
    }
}

fn late() -> zbus::Error {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

fn lost(what: &str, source: zbus::Error) -> HostError {
    HostError::Systemd { what: what.to_owned(), source }
}

/// A unit that systemd does not know is as stopped as can be.
fn known(result: Result<zbus::Message, HostError>) -> Result<(), HostError> {
    match result {
        Err(HostError::Systemd { source: zbus::Error::MethodError(name, ..), .. })
            if name.as_str() == NO_SUCH_UNIT =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn reading(active: &str, sub: &str, job: u32) -> Active {
    match (active, sub) {
        ("activating", "auto-restart" | "auto-restart-queued") => Active::AutoRestart,
        // A queued job changes the state at once; what is seen until then is the past.
        _ if job != 0 => Active::Settling,
        ("active", "exited") => Active::Exited,
        ("active" | "reloading" | "refreshing", _) => Active::Running,
        ("activating" | "deactivating", _) => Active::Settling,
        _ => Active::Stopped,
    }
}

fn invocation(unit: &str) -> Option<Invocation> {
    let target = std::fs::read_link(format!("{INVOCATIONS}{unit}")).ok()?;
    u128::from_str_radix(target.to_str()?, 16).ok().map(Invocation)
}

/// The code of waitid(2) for a program that ended by itself.
const EXITED: i32 = 1;

/// The code of waitid(2) for a program that a signal ended.
const KILLED: i32 = 2;

/// Whether somebody else ended a program. No program sends itself these signals, and systemd does only after a time-out, which
/// is a result of its own (systemd.exec(5), `$SERVICE_RESULT`). A service that ends well was asked to: by `systemctl stop`, as a
/// rule.
fn was_killed(result: &str, code: i32, status: i32) -> bool {
    use nix::libc::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
    let signalled = code == KILLED && [SIGHUP, SIGINT, SIGKILL, SIGTERM].contains(&status);
    matches!(result, "oom-kill" | "success") || result == "signal" && signalled
}

/// How a program ended, in words. `code` and `status` are those of waitid(2).
fn ending(result: &str, code: i32, status: i32) -> String {
    const DUMPED: i32 = 3;
    let how = match code {
        EXITED => format!("it ended with exit code {status}"),
        KILLED => format!("it was killed by signal {status}"),
        DUMPED => format!("it was killed by signal {status} and left a core dump"),
        _ => "it is not running".to_owned(),
    };
    match result {
        "success" | "exit-code" | "signal" | "core-dump" => how,
        other => format!("{how} ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_systemd_become_ours() {
        let table = [
            (("active", "running", 0), Active::Running),
            (("active", "running", 7), Active::Settling),
            (("active", "exited", 0), Active::Exited),
            (("activating", "auto-restart", 0), Active::AutoRestart),
            (("activating", "start", 3), Active::Settling),
            (("inactive", "dead", 0), Active::Stopped),
            (("inactive", "dead", 5), Active::Settling),
            (("failed", "failed", 0), Active::Stopped),
            (("deactivating", "stop-sigterm", 0), Active::Settling),
        ];
        for ((active, sub, job), expected) in table {
            assert_eq!(reading(active, sub, job), expected, "{active} {sub} {job}");
        }
    }

    #[test]
    fn who_was_killed_by_others_is_told_from_who_fell() {
        for (result, code, status, expected) in [
            ("signal", 2, 9, true),
            ("signal", 2, 15, true),
            ("oom-kill", 2, 9, true),
            ("oom-kill", 1, 137, true),
            ("signal", 2, 1, true),
            ("success", 1, 0, true),
            ("timeout", 2, 9, false),
            ("watchdog", 2, 6, false),
            ("signal", 2, 11, false),
            ("core-dump", 3, 6, false),
            ("exit-code", 1, 2, false),
        ] {
            assert_eq!(was_killed(result, code, status), expected, "{result} {code} {status}");
        }
    }

    #[test]
    fn endings_are_in_words() {
        assert_eq!(ending("exit-code", 1, 3), "it ended with exit code 3");
        assert_eq!(ending("signal", 2, 9), "it was killed by signal 9");
        assert_eq!(ending("timeout", 2, 15), "it was killed by signal 15 (timeout)");
        assert_eq!(ending("success", 0, 0), "it is not running");
    }
}
