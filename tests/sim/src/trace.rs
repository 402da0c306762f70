//! What was decided in a run: kept as types, printed as lines, and summed up in one number, so that two runs can be
//! compared.

use std::collections::VecDeque;
use std::fmt;

use keelson_model::FleetEvent;

/// Decisions that are kept; those before are forgotten, and still count in the sum.
const KEPT_MAX: usize = 20_000;
/// Start and factor of the sum (FNV-1a, 64 bits).
const SUM_START: u64 = 0xcbf2_9ce4_8422_2325;
const SUM_FACTOR: u64 = 0x0100_0000_01b3;

/// Calls that are done to no machine. A call that is not among them counts as an act, also one that is new.
const HARMLESS: [&str; 2] = ["provider: expose ", "provider: unexpose "];

/// Something that was decided, by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The world: something goes wrong.
    Fault {
        /// With which machine.
        machine: Option<String>,
        /// What.
        what: String,
    },
    /// A user.
    User(String),
    /// The coordinator has told its events.
    Event(Box<FleetEvent>),
    /// The coordinator gave a machine a config.
    Config {
        /// The machine.
        machine: String,
        /// Its generation.
        generation: u64,
    },
    /// The coordinator has a new blueprint; what differs from the one before.
    Blueprint {
        /// The cluster.
        cluster: String,
        /// The change.
        diff: String,
    },
    /// A call to provider, etcd or Kubernetes that was carried out, and what came of it.
    Call {
        /// The call.
        call: String,
        /// The answer in a word or two.
        answer: String,
    },
    /// A machine: its power, its agent, its programs.
    Machine {
        /// The machine.
        machine: String,
        /// What happened.
        what: String,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { machine: Some(machine), what } => write!(f, "FAULT   {machine}: {what}"),
            Self::Fault { machine: None, what } => write!(f, "FAULT   {what}"),
            Self::User(what) => write!(f, "user    {what}"),
            Self::Event(event) => {
                let whom = event.machine.as_ref().map(ToString::to_string);
                let whom = whom.or(event.cluster.as_ref().map(ToString::to_string)).unwrap_or_default();
                write!(f, "event   {} {whom}: {}; {}", event.reason, event.cause, event.outcome)
            }
            Self::Config { machine, generation } => write!(f, "config  {machine}: generation {generation}"),
            Self::Blueprint { cluster, diff } => {
                write!(f, "plan    {cluster}:")?;
                diff.lines().try_for_each(|line| write!(f, "\n{:>20}{line}", ""))
            }
            Self::Call { call, answer } => write!(f, "call    {call}: {answer}"),
            Self::Machine { machine, what } => write!(f, "machine {machine}: {what}"),
        }
    }
}

/// The decisions of a run.
#[derive(Debug)]
pub struct Trace {
    kept: VecDeque<(u64, Decision)>,
    count: u64,
    sum: u64,
    /// Whether each is printed as it comes.
    pub(crate) aloud: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self { kept: VecDeque::new(), count: 0, sum: SUM_START, aloud: false }
    }
}

impl Trace {
    /// Takes down a decision.
    #[expect(clippy::print_stdout, reason = "who runs one seed aloud wants to see this")]
    pub(crate) fn note(&mut self, now: u64, decision: Decision) {
        if self.aloud {
            println!("{}", line(now, &decision));
        }
        self.add(now);
        decision.to_string().bytes().for_each(|byte| self.add(u64::from(byte)));
        self.count += 1;
        self.kept.push_back((now, decision));
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Takes a number into the sum.
    pub(crate) fn add(&mut self, number: u64) {
        self.sum = (self.sum ^ number).wrapping_mul(SUM_FACTOR);
    }

    /// One number for everything that happened.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The decisions that are kept, oldest first, with their times in milliseconds.
    pub fn decisions(&self) -> impl DoubleEndedIterator<Item = &(u64, Decision)> {
        self.kept.iter()
    }

    /// How many were taken down.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Those after the first so many, as far as they are kept.
    pub fn since(&self, count: u64) -> impl Iterator<Item = &(u64, Decision)> {
        let forgotten = self.count - self.kept.len() as u64;
        self.kept.iter().skip(usize::try_from(count.saturating_sub(forgotten)).unwrap_or(usize::MAX))
    }

    /// What the coordinator did to the fleet after the first so many decisions, as lines: each new plan, and each call that
    /// was carried out on machines, nodes or members of etcd. Who reaches a cluster from outside is left out, as it
    /// disturbs nobody within. `None` when some of those decisions are forgotten.
    #[must_use]
    pub fn acts_since(&self, count: u64) -> Option<Vec<String>> {
        let forgotten = self.count - self.kept.len() as u64;
        let act = |decision: &Decision| match decision {
            Decision::Blueprint { .. } => true,
            Decision::Call { call, .. } => HARMLESS.iter().all(|harmless| !call.starts_with(harmless)),
            _ => false,
        };
        let acts = self.since(count).filter(|(_, decision)| act(decision));
        (forgotten <= count).then(|| acts.map(|(now, decision)| line(*now, decision)).collect())
    }

    /// The last so many, as lines.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<String> {
        let skipped = self.kept.len().saturating_sub(count);
        self.kept.iter().skip(skipped).map(|(now, decision)| line(*now, decision)).collect()
    }
}

/// A decision with its time, as it is printed.
#[must_use]
pub(crate) fn line(now: u64, decision: &Decision) -> String {
    format!("{} {decision}", time(now))
}

/// A moment: hours, minutes, seconds, milliseconds.
#[must_use]
pub(crate) fn time(ms: u64) -> String {
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
}
