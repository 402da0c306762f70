//! When to look at what, and which answers are stale.

use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::NodeConfig;

use crate::action::{Action, CertificateFiles, Look, Query};
use crate::core::AgentCore;

/// Units are looked at this often: a crash is noticed within a second.
const UNITS_EVERY: Duration = Duration::from_secs(1);
/// While units start, because the next one waits for them and boot time counts.
const UNITS_STARTING_EVERY: Duration = Duration::from_millis(100);
/// Files: a person who edits one sees it undone within half a minute, and hashing costs next to nothing.
const FILES_EVERY: Duration = Duration::from_secs(30);
/// Certificates: they are renewed hours before they end.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(60);
/// Routes: reading them may cost a process.
const ROUTES_EVERY: Duration = Duration::from_secs(30);
/// Disk and memory: fast enough to warn, slow enough to cost nothing.
const PRESSURE_EVERY: Duration = Duration::from_secs(10);

/// A class of things that are looked at together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Units,
    Files,
    Certificates,
    Routes,
    Pressure,
}

impl Class {
    const ALL: [Self; 5] = [Self::Units, Self::Files, Self::Certificates, Self::Routes, Self::Pressure];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Units => "units",
            Self::Files => "files",
            Self::Certificates => "certificates",
            Self::Routes => "routes",
            Self::Pressure => "pressure",
        }
    }

    fn every(self) -> Duration {
        match self {
            Self::Units => UNITS_EVERY,
            Self::Files => FILES_EVERY,
            Self::Certificates => CERTIFICATES_EVERY,
            Self::Routes => ROUTES_EVERY,
            Self::Pressure => PRESSURE_EVERY,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Looks {
    slots: [Slot; Class::ALL.len()],
    id_last: u64,
}

#[derive(Debug, Default)]
struct Slot {
    due: MonoTime,
    began: MonoTime,
    in_flight: Option<u64>,
    stale: bool,
    error: Option<String>,
}

impl Looks {
    /// The class that was answered, unless the answer is stale or nobody asked.
    pub(crate) fn answered(&mut self, id: u64, now: MonoTime) -> Option<Class> {
        let class = Class::ALL.into_iter().find(|class| self.slot(*class).in_flight == Some(id))?;
        let slot = self.slot(class);
        slot.in_flight = None;
        if std::mem::take(&mut slot.stale) {
            slot.due = now;
            return None;
        }
        Some(class)
    }

    fn slot(&mut self, class: Class) -> &mut Slot {
        &mut self.slots[class as usize]
    }

    /// Notes that a look failed; true when that is news.
    pub(crate) fn failed(&mut self, class: Class, why: &str) -> bool {
        let slot = self.slot(class);
        let fresh = slot.error.is_none();
        slot.error = Some(why.to_owned());
        fresh
    }

    pub(crate) fn succeeded(&mut self, class: Class) {
        self.slot(class).error = None;
    }

    /// Something of this class was changed: look at once, and do not believe what is on its way.
    pub(crate) fn changed(&mut self, class: Class, now: MonoTime) {
        let slot = self.slot(class);
        slot.stale = slot.in_flight.is_some();
        slot.due = now;
    }

    pub(crate) fn all_now(&mut self, now: MonoTime) {
        Class::ALL.into_iter().for_each(|class| self.changed(class, now));
    }

    /// Begins a look when it is due before `by`; else says when it will be.
    fn begin(
        &mut self,
        class: Class,
        every: Duration,
        (now, by): (MonoTime, MonoTime),
    ) -> Result<u64, Option<MonoTime>> {
        let next = self.id_last + 1;
        let slot = self.slot(class);
        if slot.in_flight.is_some() {
            return Err(None);
        }
        let due = slot.due.min(slot.began.plus(every));
        if due > by {
            return Err(Some(due));
        }
        slot.in_flight = Some(next);
        slot.began = now;
        slot.due = now.plus(class.every());
        self.id_last = next;
        Ok(next)
    }
}

impl AgentCore {
    pub(crate) fn look_at_what_is_due(&mut self) {
        let Some(config) = &self.ledger.config else { return };
        let certificates = !config.certificates.is_empty();
        let units_every =
            if !self.is_resting() && self.units_starting() { UNITS_STARTING_EVERY } else { UNITS_EVERY };
        self.look(Class::Units, units_every, |core| {
            Query::Units(core.units_seen.ask(core.ledger.units.keys().cloned()))
        });
        self.look(Class::Files, FILES_EVERY, |core| {
            Query::Files(
                core.desired.as_ref().map_or_else(Arc::default, |desired| Arc::clone(&desired.paths)),
            )
        });
        if certificates {
            self.look(Class::Certificates, CERTIFICATES_EVERY, |core| {
                Query::Certificates(core.ledger.config.as_ref().map(pairs).unwrap_or_default())
            });
        }
        self.look(Class::Routes, ROUTES_EVERY, |_| Query::Routes);
    }

    pub(crate) fn look_at_pressure(&mut self) {
        self.look(Class::Pressure, PRESSURE_EVERY, |_| Query::Pressure);
    }

    fn look(&mut self, class: Class, every: Duration, query: impl FnOnce(&mut Self) -> Query) {
        match self.looks.begin(class, every, (self.now.mono, self.due_by())) {
            Ok(id) => {
                let query = query(self);
                self.push(Action::Look(Look { id, query }));
            }
            Err(Some(due)) => self.wake_at(due),
            Err(None) => {}
        }
    }
}

fn pairs(config: &NodeConfig) -> Vec<CertificateFiles> {
    config
        .certificates
        .iter()
        .map(|spec| CertificateFiles {
            name: spec.name.clone(),
            certificate_path: spec.certificate_path.clone(),
            key_path: spec.key_path.clone(),
        })
        .collect()
}
