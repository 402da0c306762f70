//! What the agent decides.
//!
//! Purpose: [`AgentCore`] holds the desired state of one machine and what was last seen of it, and answers every event
//! with the actions that bring the one towards the other: files, certificates, routes, units, repairs, reports.
//!
//! Place in the data flow: the shell (`keelson-agent`) feeds it events (a config came, a look at the machine came back,
//! a step is done, time has passed) and carries out the actions in order, with the hands of `keelson-host`.
//!
//! Deliberately does not know: clocks, entropy, tokio, D-Bus, sockets, Kubernetes. Time and a seed come in as
//! arguments, so that a test plays a day in a millisecond.
//!
//! The rules that hold everywhere here:
//! - level-triggered: what was seen is compared with what is wanted, whatever happened in between;
//! - what could not be seen is unknown, and nothing is done about it;
//! - one step in flight for each thing ([`StepKey`]); a failed step is tried again with backoff;
//! - what must not be forgotten is on disk before the step that relies on it ([`Action::Persist`]);
//! - every repair has a budget and leaves an event.

mod action;
mod certificates;
mod clock;
mod core;
mod desired;
mod digest;
mod dismissal;
mod event;
mod fence;
mod files;
mod journal;
mod ledger;
mod looks;
mod network;
mod peers;
mod probes;
mod remedies;
mod report;
mod rest;
mod retry;
mod status;
mod unit_text;
mod units;

pub use crate::core::{AgentCore, LedgerFound, Me, Start};
pub use action::{Action, CertificateFiles, FileWrite, Look, PeerChannel, Query, Step, StepKey};
pub use digest::Digest;
pub use event::{
    Active, CertificateSeen, Event, FileSeen, Invocation, LinkNews, Observation, StepOutput, UnitSeen,
    Validity,
};
pub use ledger::{FenceRecord, Ledger, LedgerError, Progress, RemedyRecord, UnitRecord};
pub use peers::Isolation;
pub use retry::{Backoff, Seed, enrol_retry_delay};
pub use status::{AgentStatus, CertificateStatus, EventStatus, IsolationStatus, LinkStatus, UnitStatus};
pub use unit_text::{UNIT_DIRECTORY, render as render_unit};
