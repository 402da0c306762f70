//! What `keelson-agent status` tells a person on the machine. Plain data, with stable names.

use std::time::Duration;

use keelson_protocol::health::{AgentEvent, EventKind, NodeState, Pressure, UnitState};
use keelson_protocol::{MonoTime, WallTime};
use serde::{Deserialize, Serialize};

use crate::core::AgentCore;
use crate::event::LinkNews;
use crate::peers::Isolation;

/// Everything that the agent knows about its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The machine.
    pub machine: String,
    /// Which machine of that id.
    pub incarnation: u32,
    /// This boot.
    pub boot: String,
    /// Its cluster, once it has a config.
    pub cluster: Option<String>,
    /// Its release, once it has a config.
    pub release: Option<String>,
    /// Generation of its config.
    pub generation: Option<u64>,
    /// State in one word.
    pub state: NodeState,
    /// What is not as it should be, when the state is not `ready`.
    pub why: Option<String>,
    /// The link to the coordinator.
    pub link: LinkStatus,
    /// Whether the machine is cut off.
    pub isolation: IsolationStatus,
    /// Since when the machine has given up its work because it is cut off, in milliseconds since 1970.
    pub fenced_since_ms: Option<i64>,
    /// The remedy under way and how far it is, or else the one that comes next.
    pub remedy: Option<String>,
    /// Units, in the config's order.
    pub units: Vec<UnitStatus>,
    /// Certificates, the link's first.
    pub certificates: Vec<CertificateStatus>,
    /// Room left, in percent.
    pub pressure: Option<PressureStatus>,
    /// The machine's clock minus the coordinator's, in milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// Events that the coordinator has not stored yet.
    pub events_waiting: usize,
    /// The last events, oldest first.
    pub events: Vec<EventStatus>,
}

/// The link to the coordinator. Times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum LinkStatus {
    /// A session stands.
    #[serde(rename_all = "camelCase")]
    Connected {
        /// With whom.
        coordinator: String,
        /// Since when.
        since_ms: i64,
    },
    /// None stands.
    #[serde(rename_all = "camelCase")]
    Disconnected {
        /// Since when.
        since_ms: i64,
        /// Why.
        why: String,
        /// When the next try comes, when that is known.
        retry_at_ms: Option<i64>,
    },
}

/// Whether the machine is cut off, as far as it can know. Times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum IsolationStatus {
    /// A session with the coordinator stands.
    Connected,
    /// None stands, and the neighbours have not said enough, or there are none to ask.
    #[serde(rename_all = "camelCase")]
    Unknown {
        /// Since when.
        since_ms: i64,
    },
    /// None stands, but neighbours can be reached.
    #[serde(rename_all = "camelCase")]
    LinkOnly {
        /// Since when.
        since_ms: i64,
    },
    /// None stands, and no neighbour can be reached.
    #[serde(rename_all = "camelCase")]
    Alone {
        /// Since when.
        since_ms: i64,
    },
}

/// One unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// Its state, with what a person asks next.
    pub state: UnitState,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// How often it was started again during this boot.
    pub restarts: u32,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Its name in the config, or `link`.
    pub name: String,
    /// When it ends, in milliseconds since 1970; none when it is not held yet.
    pub not_after_ms: Option<i64>,
    /// When it is renewed.
    pub renew_at_ms: Option<i64>,
    /// Why the coordinator refused it, when it did.
    pub refused: Option<String>,
}

/// Room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PressureStatus {
    /// Used part of the state disk.
    pub disk_used_percent: u8,
    /// Used part of its inodes.
    pub inodes_used_percent: u8,
    /// Available part of the memory.
    pub memory_available_percent: u8,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventStatus {
    /// Its number.
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What kind.
    pub kind: EventKind,
    /// Of what.
    pub subject: String,
    /// What was seen.
    pub cause: String,
    /// What was done, and what came of it.
    pub outcome: String,
}

/// The link as the core sees it.
#[derive(Debug)]
pub(crate) struct LinkView {
    status: LinkStatus,
}

impl LinkView {
    pub(crate) fn new(wall: WallTime) -> Self {
        let why = "the agent has just started".to_owned();
        Self { status: LinkStatus::Disconnected { since_ms: wall.0, why, retry_at_ms: None } }
    }

    pub(crate) fn connected(&self) -> bool {
        matches!(self.status, LinkStatus::Connected { .. })
    }

    pub(crate) fn take(&mut self, news: &LinkNews, wall: WallTime) {
        let since_ms = match self.status {
            LinkStatus::Disconnected { since_ms, .. } => since_ms,
            LinkStatus::Connected { .. } => wall.0,
        };
        let retry_at = |wait: &Duration| Some(wall.plus(*wait).0);
        self.status = match news {
            LinkNews::Identity(_) => return,
            LinkNews::Connected { coordinator } => {
                LinkStatus::Connected { coordinator: coordinator.clone(), since_ms: wall.0 }
            }
            LinkNews::Enrolling { why, retry_in } => LinkStatus::Disconnected {
                since_ms,
                why: format!("no link certificate yet: {why}"),
                retry_at_ms: retry_at(retry_in),
            },
            LinkNews::Disconnected { why, retry_in } => {
                LinkStatus::Disconnected { since_ms, why: why.clone(), retry_at_ms: retry_at(retry_in) }
            }
            LinkNews::Refused(refusal) => {
                LinkStatus::Disconnected { since_ms, why: format!("refused: {refusal}"), retry_at_ms: None }
            }
        };
    }
}

impl AgentCore {
    /// Everything, as of the last call of [`Self::handle`].
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        let config = self.ledger.config.as_ref();
        let state = self.state();
        AgentStatus {
            machine: self.me.machine.to_string(),
            incarnation: self.me.incarnation.0,
            boot: self.me.boot.to_string(),
            cluster: config.map(|config| config.cluster.to_string()),
            release: config.map(|config| config.release.to_string()),
            generation: config.map(|config| config.generation.0),
            state,
            why: self.unsettled().filter(|_| state != NodeState::Ready),
            link: self.link_view.status.clone(),
            isolation: self.isolation_status(),
            fenced_since_ms: self.fenced_since().map(|since| since.0),
            remedy: self.remedy_status(),
            units: self.unit_statuses(),
            certificates: self.certificate_statuses(),
            pressure: self.reporter.pressure.map(pressure_status),
            clock_offset_ms: self.reporter.clock_offset_ms,
            events_waiting: self.ledger.events.len(),
            events: self.journal.recent.iter().map(event_status).collect(),
        }
    }

    fn isolation_status(&self) -> IsolationStatus {
        let ago = |at: MonoTime| i64::try_from(self.now.mono.since(at).as_millis()).unwrap_or(i64::MAX);
        let since_ms = |at| self.now.wall.0.saturating_sub(ago(at));
        match self.isolation() {
            Isolation::Connected => IsolationStatus::Connected,
            Isolation::Unknown { since } => IsolationStatus::Unknown { since_ms: since_ms(since) },
            Isolation::LinkOnly { since } => IsolationStatus::LinkOnly { since_ms: since_ms(since) },
            Isolation::Alone { since } => IsolationStatus::Alone { since_ms: since_ms(since) },
        }
    }

    fn unit_statuses(&self) -> Vec<UnitStatus> {
        let status = |unit: keelson_protocol::health::UnitHealth| UnitStatus {
            name: unit.name,
            state: unit.state,
            since_ms: unit.since.0,
            restarts: unit.restarts,
        };
        self.unit_healths().into_iter().map(status).collect()
    }

    fn certificate_statuses(&self) -> Vec<CertificateStatus> {
        let link = self.link.identity.map(|validity| CertificateStatus {
            name: "link".to_owned(),
            not_after_ms: Some(validity.not_after.0),
            renew_at_ms: Some(validity.renew_at().0),
            refused: None,
        });
        let others = self.certificates.iter().map(|(name, run)| CertificateStatus {
            name: name.clone(),
            not_after_ms: run.validity().map(|validity| validity.not_after.0),
            renew_at_ms: run.validity().map(|validity| validity.renew_at().0),
            refused: run.refused.clone(),
        });
        link.into_iter().chain(others).collect()
    }
}

fn pressure_status(pressure: Pressure) -> PressureStatus {
    PressureStatus {
        disk_used_percent: pressure.disk_used_percent,
        inodes_used_percent: pressure.inodes_used_percent,
        memory_available_percent: pressure.memory_available_percent,
    }
}

fn event_status(event: &AgentEvent) -> EventStatus {
    EventStatus {
        sequence: event.sequence,
        at_ms: event.at.0,
        kind: event.kind,
        subject: event.subject.clone(),
        cause: event.cause.clone(),
        outcome: event.outcome.clone(),
    }
}
