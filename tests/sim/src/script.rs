//! Scripts: a fleet played by commands, one a line, with what it says as text. docs/simulation.md lists the commands.

use std::fmt::Write as _;

use keelson_model::Severity;
use keelson_protocol::{ClusterName, MachineId};

use crate::case::{Case, Fault, Side, Target, Way, Weather, Wish};
use crate::trace::{Decision, line, time};
use crate::world::World;

/// What agents tell all the time and what says nothing about decisions.
const USUAL: [&str; 5] =
    ["AgentStarted", "ConfigAccepted", "UnitStarted", "UnitHealthy", "CertificateIssued"];

/// Most clusters of one command: what the network of the simulated place has addresses for.
const CLUSTERS_MAX: u64 = 1_000;

/// Why a script cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// A line is no command.
    #[error("line {number}: `{text}` is no command: {why}")]
    Command {
        /// Its number.
        number: usize,
        /// Its text.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// A rule was broken.
    #[error("line {number}: {what}")]
    Broken {
        /// At which line.
        number: usize,
        /// The rule, and how.
        what: String,
    },
}

/// Plays a script; each command and what it says.
///
/// # Errors
/// [`ScriptError`] when a line is no command, or when a rule was broken.
pub fn play(script: &str) -> Result<String, ScriptError> {
    let mut player = Player { world: world(1), shown: 0, acts_shown: 0, out: String::new() };
    for (index, text) in script.lines().enumerate() {
        let number = index + 1;
        let command = text.split('#').next().unwrap_or_default().trim();
        if command.is_empty() {
            continue;
        }
        player.say(&format!("> {command}"));
        let words: Vec<&str> = command.split_whitespace().collect();
        player.command(&words).map_err(|why| ScriptError::Command {
            number,
            text: command.to_owned(),
            why,
        })?;
        if let Some(violation) = player.world.violation() {
            let what = format!("{violation}\n{}", player.world.trace().last(40).join("\n"));
            return Err(ScriptError::Broken { number, what });
        }
    }
    Ok(player.out)
}

fn world(seed: u64) -> World {
    let weather = Weather::default();
    World::new(&Case { seed, duration_ms: u64::MAX, weather, faults: Vec::new(), wishes: Vec::new() })
}

struct Player {
    world: World,
    /// Decisions that `history` has shown.
    shown: u64,
    /// Decisions that `acts` has looked through.
    acts_shown: u64,
    out: String,
}

impl Player {
    fn say(&mut self, text: &str) {
        writeln!(self.out, "{text}").expect("a String takes any text");
    }

    fn command(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["seed", seed] => {
                self.world = world(seed.parse().map_err(|_| "a seed is a number".to_owned())?);
                (self.shown, self.acts_shown) = (0, 0);
            }
            ["cluster", name, options @ ..] => self.cluster(name, options)?,
            ["clusters", prefix, count, options @ ..] => {
                for number in 1..=number(count)?.min(CLUSTERS_MAX) {
                    self.cluster(&format!("{prefix}{number}"), options)?;
                }
            }
            ["scale", name, pool, count] => {
                let count = count.parse().map_err(|_| "a count is a number".to_owned())?;
                let pool = (*pool).to_owned();
                self.world.wishes_for(&Wish::Scale { cluster: cluster(name)?, pool, count, drain: None });
            }
            ["delete", name] => self.world.wishes_for(&Wish::Delete { cluster: cluster(name)? }),
            ["run", "until", "converged", "within", limit] => self.converge(duration(limit)?),
            ["run", time] => {
                let end = self.world.now() + duration(time)?;
                self.world.run_until(end);
            }
            ["history"] => self.history(),
            ["acts"] => self.acts(),
            ["show"] => self.show(),
            _ => {
                let fault = fault(words)?;
                self.world.happens(&fault);
            }
        }
        Ok(())
    }

    fn cluster(&mut self, name: &str, options: &[&str]) -> Result<(), String> {
        let mut plan = "small".to_owned();
        let mut workers = None;
        for option in options {
            match option.split_once('=') {
                Some(("plan", value)) => value.clone_into(&mut plan),
                Some(("workers", value)) => {
                    workers = Some(value.parse().map_err(|_| "workers are a number".to_owned())?);
                }
                _ => return Err("a cluster has plan=NAME and workers=NUMBER".to_owned()),
            }
        }
        self.world.wishes_for(&Wish::Create { cluster: cluster(name)?, plan, workers });
        Ok(())
    }

    fn converge(&mut self, limit_ms: u64) {
        let begin = self.world.now();
        if self.world.run_until_converged(limit_ms) {
            let took = (self.world.now() - begin) / 1_000;
            self.say(&format!("converged after {took} s"));
        } else {
            let why = self.world.unsettled().unwrap_or_default();
            self.say(&format!("not converged: {why}"));
        }
    }

    /// Blueprints, events and faults since the last time.
    fn history(&mut self) {
        let lines: Vec<String> = self
            .world
            .trace()
            .since(self.shown)
            .filter(|(_, decision)| is_told(decision))
            .map(|(now, decision)| line(*now, decision))
            .collect();
        self.shown = self.world.trace().count();
        lines.iter().for_each(|line| self.say(line));
    }

    /// What was done to machines, nodes and members of etcd since the last time.
    fn acts(&mut self) {
        let acts = self.world.trace().acts_since(self.acts_shown);
        self.acts_shown = self.world.trace().count();
        let Some(acts) = acts else {
            return self.say("so much has happened since the last time that some of it is forgotten");
        };
        if acts.is_empty() {
            self.say("nothing was done to any machine");
        }
        acts.iter().for_each(|act| self.say(act));
    }

    /// Every cluster with its state, its machines, and what it waits for.
    fn show(&mut self) {
        let Some(core) = self.world.core() else { return self.say("the coordinator does not run") };
        let now = self.world.coordinator_now();
        let mut lines = vec![time(self.world.now())];
        for cluster in core.clusters() {
            let name = &cluster.row.spec.name;
            let generation = cluster.row.blueprint.generation;
            lines.push(format!(
                "cluster {name}: {:?}, generation {generation}",
                core.cluster_state(cluster, now)
            ));
            for (id, planned) in &cluster.row.blueprint.machines {
                let machine = core.machine(id).map(|machine| core.observed_machine(machine, now));
                let state = machine.as_ref().and_then(|machine| machine.applied);
                let state =
                    state.map_or_else(|| "unheard".to_owned(), |(has, state)| format!("{state} with {has}"));
                let silent = if machine.is_some_and(|machine| machine.silent) { ", silent" } else { "" };
                let leaving = if planned.leaving { ", leaving" } else { "" };
                lines.push(format!("  {id:<24} {} {state}{silent}{leaving}", planned.zone));
            }
            for wait in core.waiting(name, now) {
                let whom = wait.machine().map(|id| format!("{id}: ")).unwrap_or_default();
                lines.push(format!("  waits: {whom}{wait}"));
            }
        }
        lines.iter().for_each(|line| self.say(line));
    }
}

fn is_told(decision: &Decision) -> bool {
    match decision {
        Decision::Event(event) => event.severity != Severity::Info || !USUAL.contains(&event.reason.as_str()),
        Decision::Fault { .. } | Decision::User(_) | Decision::Blueprint { .. } => true,
        Decision::Config { .. } | Decision::Call { .. } | Decision::Machine { .. } => false,
    }
}

fn fault(words: &[&str]) -> Result<Fault, String> {
    let named = |id: &str| -> Result<Target, String> {
        id.parse::<MachineId>().map(Target::Named).map_err(|error| error.to_string())
    };
    Ok(match words {
        ["kill", "coordinator", "for", time] => {
            Fault::CoordinatorCrash { effects: 1, down_ms: duration(time)? }
        }
        ["kill", machine] => Fault::PowerLoss { target: named(machine)? },
        ["reboot", machine] => Fault::Reboot { target: named(machine)? },
        ["kill-agent", machine] => Fault::AgentCrash { target: named(machine)?, actions: 0 },
        ["agent-out", machine, "for", time] => {
            Fault::AgentOut { target: named(machine)?, for_ms: duration(time)? }
        }
        ["freeze", "coordinator", "for", time] => Fault::CoordinatorFreeze { for_ms: duration(time)? },
        ["freeze", machine, "for", time] => {
            Fault::Freeze { target: named(machine)?, for_ms: duration(time)? }
        }
        ["fill-disk", machine, "for", time] => {
            Fault::DiskFull { target: named(machine)?, for_ms: duration(time)? }
        }
        ["bad-boots", machine, "for", time] => {
            Fault::BadBoots { target: named(machine)?, for_ms: duration(time)?, hangs: false }
        }
        ["pause", "repair", "for", time] => Fault::RepairPaused { for_ms: duration(time)? },
        ["lose-disk", machine] => Fault::DiskLost { target: named(machine)? },
        ["vanish", machine] => Fault::Vanish { target: named(machine)? },
        ["come-back", machine] => Fault::ComesBack { target: named(machine)? },
        ["crash-unit", machine, unit] => Fault::UnitCrash { target: named(machine)?, unit: number(unit)? },
        ["hang-unit", machine, unit] => Fault::UnitHang { target: named(machine)?, unit: number(unit)? },
        ["partition", side, rest @ ..] => {
            let (way, time) = match rest {
                ["for", time] => (Way::Both, time),
                ["one-way", "for", time] => (Way::Out, time),
                _ => return Err("partition WHO [one-way] for TIME".to_owned()),
            };
            let side = match *side {
                "coordinator" => Side::Coordinator,
                zone if zone.starts_with("zone-") => Side::Zone(zone.to_owned()),
                machine => Side::Machine(named(machine)?),
            };
            Fault::Partition { side, way, for_ms: duration(time)? }
        }
        ["cut", machine, "from", "coordinator", "for", time] => {
            let (side, way) = (Side::Link(named(machine)?), Way::Both);
            Fault::Partition { side, way, for_ms: duration(time)? }
        }
        ["lose", "heartbeats", permille, "for", time] => {
            let wrong = |_| format!("`{permille}` is no part of a thousand");
            let permille = permille.parse().map_err(wrong)?;
            Fault::HeartbeatsLost { permille, for_ms: duration(time)? }
        }
        ["provider", "lists", "nothing", "for", time] => {
            Fault::ProviderListsNothing { for_ms: duration(time)? }
        }
        ["provider", "out", "for", time] => Fault::ProviderOut { for_ms: duration(time)? },
        ["budgets", "hold", "for", time] => Fault::BudgetsHold { for_ms: duration(time)? },
        _ => return Err("see docs/simulation.md".to_owned()),
    })
}

fn cluster(name: &str) -> Result<ClusterName, String> {
    name.parse().map_err(|error: keelson_protocol::NameError| error.to_string())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// A time such as `30s`, `10m` or `2h`, in milliseconds.
fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time such as 30s, 10m or 2h");
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    Ok(number * unit_ms)
}
