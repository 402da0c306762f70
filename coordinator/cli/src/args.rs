//! What can be typed: `keelson NOUN VERB`, singular and plural alike.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use crate::args_repair::{DrainArgs, MachineRepairArgs, RepairCommand, WhyArgs};
use crate::complete;
use crate::duration::parse_duration;
use crate::format::{Format, FormatParser};
use crate::template::Path;

/// Kubernetes clusters on any infrastructure.
#[derive(Debug, Parser)]
#[command(
    name = "keelson",
    bin_name = "keelson",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = HELP_BY_USER
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const HELP_BY_USER: &str = "\
my clusters   keelson cluster create | list | show | scale | kubeconfig | delete
fleet         keelson status, plan list | apply, release list, machine list
on call       keelson why NAME, repair status | pause | resume, machine repair | logs | shell, events --follow
more          keelson help exit-codes | pks, explain KEEL-1234 | cluster.spec, completion bash

Keelson sends nothing to anybody but your coordinator.";

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// URL of the coordinator; the one of the context file when absent [env: KEELSON_SERVER]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub(crate) server: Option<String>,
    /// Context file: server, CA and token [env: KEELSON_CONTEXT; default: ~/.config/keelson/context.json]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub(crate) context: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, global = true, value_parser = FormatParser, default_value = "table", help_heading = "Output")]
    pub(crate) output: Format,
    /// Leave the heads of tables out
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) no_headers: bool,
    /// How to show the progress of long work (on standard error)
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Output")]
    pub(crate) progress: ProgressMode,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A live tree on a terminal, else lines
    Auto,
    /// One line for each change, and one every 30 seconds
    Plain,
    /// One JSON document a line for each change
    Json,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Clusters: create, list, show, update, scale, check, kubeconfig, delete
    #[command(subcommand, visible_alias = "clusters")]
    Cluster(ClusterCommand),
    /// Machines: list, show, repair, logs, shell
    #[command(subcommand, visible_alias = "machines")]
    Machine(MachineCommand),
    /// Long work: list, show, watch, cancel
    #[command(subcommand, visible_alias = "operations")]
    Operation(OperationCommand),
    /// Make-ups of clusters to choose from: list, show, apply, delete
    #[command(subcommand, visible_alias = "plans")]
    Plan(PlanCommand),
    /// Sets of upstream parts to choose from: list, show
    #[command(subcommand, visible_alias = "releases")]
    Release(ReleaseCommand),
    /// What happened: seen, done, outcome
    #[command(visible_alias = "event")]
    Events(EventsArgs),
    /// Why a cluster or a machine is as it is: evidence, what is done, what holds it back, what happened
    Why(WhyArgs),
    /// Repair of the whole fleet: pause, resume, status
    #[command(subcommand)]
    Repair(RepairCommand),
    /// The fleet on one screen
    Status,
    /// Versions of this program and of the coordinator
    Version {
        /// Only of this program; asks nobody
        #[arg(long)]
        client: bool,
    },
    /// Wait until a cluster or an operation is where it should be
    Wait(AwaitArgs),
    /// Explain a code (what it is, why it comes up, what to do) or a field of a document. Works offline
    Explain {
        /// The code, for example KEEL-2201, or the field, for example cluster.spec.workers
        topic: String,
    },
    /// Print the completion script of a shell
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Help on a command, on `exit-codes` or on `pks`
    Help {
        /// Words of the command, or a topic
        topic: Vec<String>,
    },
}

impl Command {
    /// Whether the verb, when it is interrupted, has to remove what it made.
    pub(crate) fn has_to_clean_up(&self) -> bool {
        matches!(self, Self::Cluster(ClusterCommand::Check(_)))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a cluster
    Create(CreateArgs),
    /// All clusters
    #[command(visible_alias = "ls")]
    List(ClusterListArgs),
    /// A cluster: what is fine, what is not, and why
    Show(ShowArgs),
    /// Change a cluster
    Update(UpdateArgs),
    /// Change the size of one of its pools
    Scale(ScaleArgs),
    /// Try out what its users need: pods on every worker, DNS, Services, logs, volumes and more
    ///
    /// Makes a namespace in it, runs a small pod on every worker, and removes both again. Ends with 0 when everything
    /// works and with 1 when something does not.
    Check(CheckArgs),
    /// Get access for kubectl: merge into your kubeconfig, without touching your current context
    Kubeconfig(KubeconfigArgs),
    /// Remove a cluster with its machines and disks
    Delete(DeleteArgs),
}

/// Which items of a list.
#[derive(Debug, Default, Args)]
pub(crate) struct FilterArgs {
    /// Only those with these labels: env=prod,tier!=web,team in (a,b),gpu,!old
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Only in these states, with commas between them
    #[arg(long, value_name = "STATES")]
    pub(crate) state: Option<String>,
    /// Only with this in their name
    #[arg(long)]
    pub(crate) text: Option<String>,
}

/// In which order a list is printed.
#[derive(Debug, Default, Args)]
pub(crate) struct SortArgs {
    /// Sort by what each item has at this path, for example .spec.name; `-o json` shows which there are
    #[arg(long, value_name = "PATH", value_parser = Path::relaxed)]
    pub(crate) sort_by: Option<Path>,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterListArgs {
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) sort: SortArgs,
}

/// One cluster by its name, or all that a selector chooses.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ClusterTarget {
    /// Its name
    #[arg(add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) name: Option<String>,
    /// All with these labels in place of a name: env=prod,tier!=web
    #[arg(short = 'l', long, value_parser = parse_chooser)]
    pub(crate) selector: Option<String>,
}

/// One machine by its id, or all that a selector chooses.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct MachineTarget {
    /// Its id
    #[arg(add = ArgValueCompleter::new(complete::machines))]
    pub(crate) id: Option<String>,
    /// All with these labels of their cluster, or with these cluster, pool, role, zone
    #[arg(short = 'l', long, value_parser = parse_chooser)]
    pub(crate) selector: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: lower-case letters, digits and `-`
    pub(crate) name: String,
    /// The plan it follows (`keelson plan list`)
    #[arg(long, default_value = "small", add = ArgValueCompleter::new(complete::plans))]
    pub(crate) plan: String,
    /// Number of workers; the plan's own number when absent
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<u16>,
    /// Number of machines of a pool; the plan's own number when absent; may be repeated
    #[arg(long, value_name = "NAME=N", value_parser = parse_pool)]
    pub(crate) pool: Vec<(String, u16)>,
    /// The release that it runs; the installation's default when absent (`keelson release list`)
    #[arg(long, add = ArgValueCompleter::new(complete::releases))]
    pub(crate) release: Option<String>,
    /// A label to select it by; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Make a NodePort service reachable from outside; may be repeated
    #[arg(long, value_name = "NAME=PORT", value_parser = parse_expose)]
    pub(crate) expose: Vec<(String, u16)>,
    /// Addresses of pods
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_network: Option<String>,
    /// Addresses of Services
    #[arg(long, value_name = "CIDR")]
    pub(crate) service_network: Option<String>,
    /// Refuse deletion until this is switched off
    #[arg(long)]
    pub(crate) deletion_protection: bool,
    #[command(flatten)]
    pub(crate) preview: PreviewArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: exit 10 when something would change
    #[arg(long, requires = "dry_run")]
    pub(crate) exit_code: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait for the end, at most so long (90s, 10m, 1h). Default: wait on a terminal, not in a pipe
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, value_parser = parse_duration)]
    pub(crate) wait: Option<Option<Duration>>,
    /// Do not wait
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) target: ClusterTarget,
    /// Say in words what it waits for, since when, and what ends the wait
    #[arg(long)]
    pub(crate) explain: bool,
    /// Show also what is fine
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(["deletion_protection", "label", "drain_timeout", "drain_then"])))]
pub(crate) struct UpdateArgs {
    /// Its name
    #[arg(add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) name: String,
    /// Whether deletion is refused
    #[arg(long, value_enum)]
    pub(crate) deletion_protection: Option<Switch>,
    /// Set a label (KEY=VALUE) or remove it (KEY-); may be repeated
    #[arg(long, value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change)]
    pub(crate) label: Vec<(String, Option<String>)>,
    #[command(flatten)]
    pub(crate) drain: DrainArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Its name
    #[arg(add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) name: String,
    /// The pool (`keelson cluster show NAME` lists them)
    #[arg(long)]
    pub(crate) pool: String,
    /// How many machines the pool shall have
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) count: u16,
    #[command(flatten)]
    pub(crate) drain: DrainArgs,
    /// Do not ask when machines would be removed
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) preview: PreviewArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// Above this, other checks would take the namespace for one that was left behind.
const CHECK_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 60);

fn parse_check_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if timeout < Duration::from_secs(1) || timeout > CHECK_TIMEOUT_MAX {
        return Err("a check takes between 1s and 30m".to_owned());
    }
    Ok(timeout)
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Its name
    #[arg(add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) name: String,
    /// How long the checks may take (1s to 30m), without the removal of what they made
    #[arg(long, value_parser = parse_check_timeout, default_value = "2m")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    pub(crate) target: ClusterTarget,
    /// Write to this file instead of $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "PATH", conflicts_with = "print")]
    pub(crate) file: Option<PathBuf>,
    /// Print it instead of writing a file. It is a secret
    #[arg(long)]
    pub(crate) print: bool,
    /// Make it the current context
    #[arg(long, conflicts_with = "print")]
    pub(crate) set_context: bool,
    /// Life of its certificate (1m to 24h)
    #[arg(long, value_parser = parse_duration, default_value = "8h")]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) target: ClusterTarget,
    /// How many clusters there are to be removed; needed when a selector chooses several
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<usize>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) preview: PreviewArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// All machines
    #[command(visible_alias = "ls")]
    List {
        /// Only of this cluster
        #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::clusters))]
        cluster: Option<String>,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        sort: SortArgs,
    },
    /// A machine
    Show(MachineTarget),
    /// Repair it now, also while repair is paused
    ///
    /// What holds it back: a coordinator that has just started, too much that is broken at once, another machine that is worked
    /// on, etcd's quorum, the last API server, a record that is older than the machine, a disk that is the only copy. What does
    /// not, other than for the coordinator's own repairs: a pause, the cool-down after the last
    /// repair, the number of repairs in an hour.
    Repair(MachineRepairArgs),
    /// Its journal
    Logs {
        /// Its id
        #[arg(add = ArgValueCompleter::new(complete::machines))]
        id: String,
        /// Only this unit, for example kubelet.service
        #[arg(long)]
        unit: Option<String>,
        /// How many of the last lines
        #[arg(long, default_value_t = 200)]
        lines: u32,
        /// Go on with new lines
        #[arg(long, short)]
        follow: bool,
    },
    /// A root shell on it, or one command
    Shell {
        /// Its id
        #[arg(add = ArgValueCompleter::new(complete::machines))]
        id: String,
        /// Program and arguments, after `--`
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// All operations, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only on this cluster
        #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::clusters))]
        cluster: Option<String>,
        #[command(flatten)]
        sort: SortArgs,
    },
    /// One operation
    Show {
        /// Its id
        #[arg(add = ArgValueCompleter::new(complete::operations))]
        id: String,
    },
    /// Wait for its end and show its progress
    Watch {
        /// Its id
        #[arg(add = ArgValueCompleter::new(complete::operations))]
        id: String,
        /// Wait at most so long (90s, 10m, 1h)
        #[arg(long, value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Stop its work; a cluster that is being made is removed with what was made of it
    Cancel {
        /// Its id
        #[arg(add = ArgValueCompleter::new(complete::operations))]
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// All of them
    #[command(visible_alias = "ls")]
    List(SortArgs),
    /// One of them
    Show {
        /// Its name
        #[arg(add = ArgValueCompleter::new(complete::plans))]
        name: String,
    },
    /// Make plans, or change them, as a file says; clusters that use them follow
    ///
    /// The file holds one or more documents as `keelson plan show NAME -o yaml` prints them. A change that would harm a
    /// cluster is refused; a plan that is like this already is left alone.
    Apply(PlanApplyArgs),
    /// Remove a plan that no cluster uses
    Delete {
        /// Its name
        #[arg(add = ArgValueCompleter::new(complete::plans))]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PlanApplyArgs {
    /// File with plans in YAML or JSON; - is standard input
    #[arg(short, long)]
    pub(crate) file: String,
    /// Do not ask when machines of clusters would be removed
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) preview: PreviewArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseCommand {
    /// All of them
    #[command(visible_alias = "ls")]
    List(SortArgs),
    /// One of them
    Show {
        /// Its name
        #[arg(add = ArgValueCompleter::new(complete::releases))]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AwaitArgs {
    /// cluster/NAME or operation/ID
    #[arg(value_name = "KIND/NAME", value_parser = parse_awaited, add = ArgValueCompleter::new(complete::awaited))]
    pub(crate) what: Awaited,
    /// What a cluster shall be [default: ready]
    #[arg(long = "for", value_enum, value_name = "STATE")]
    pub(crate) until: Option<AwaitedState>,
    /// Wait at most so long (90s, 10m, 1h), for ever when absent
    #[arg(long, value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A cluster of this name.
    Cluster(String),
    /// An operation of this id.
    Operation(String),
}

/// What a cluster that is waited for shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AwaitedState {
    /// As its blueprint says
    Ready,
    /// Gone
    Deleted,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with new events
    #[arg(long, short, visible_short_alias = 'w', conflicts_with = "sort_by")]
    pub(crate) follow: bool,
    /// Only of this cluster
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) cluster: Option<String>,
    /// Only of this machine
    #[arg(long, value_name = "ID", add = ArgValueCompleter::new(complete::machines))]
    pub(crate) machine: Option<String>,
    /// Only of the incident of this number
    #[arg(long, value_name = "N")]
    pub(crate) incident: Option<u64>,
    /// Only this severe or more
    #[arg(long, value_enum, default_value_t = SeverityArg::Info)]
    pub(crate) severity: SeverityArg,
    /// How many of the newest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub(crate) limit: u16,
    #[command(flatten)]
    pub(crate) sort: SortArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SeverityArg {
    /// Everything
    Info,
    /// What an operator may want to know
    Warning,
    /// Where somebody must act
    Alarm,
}

impl SeverityArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Alarm => "alarm",
        }
    }
}

fn parse_pool(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("`{text}` is not NAME=N, for example worker=3");
    let (name, count) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), count.parse().map_err(|_| wrong())?))
}

fn parse_expose(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("`{text}` is not NAME=PORT, for example web=30080");
    let (name, port) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), port.parse().map_err(|_| wrong())?))
}

/// A selector that stands for names. An empty one, perhaps of a variable that is not set, must not choose everything.
fn parse_chooser(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err(
            "an empty selector would choose everything; write labels, for example env=prod".to_owned()
        );
    }
    Ok(text.to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{text}` is not KEY=VALUE, for example env=prod");
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_label_change(text: &str) -> Result<(String, Option<String>), String> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.to_owned(), Some(value.to_owned())));
    }
    // No key ends with `-`, so this is never one.
    let wrong = || format!("`{text}` is neither KEY=VALUE nor KEY-, for example env=prod or env-");
    text.strip_suffix('-').map(|key| (key.to_owned(), None)).ok_or_else(wrong)
}

fn parse_awaited(text: &str) -> Result<Awaited, String> {
    match text.split_once('/') {
        Some(("cluster" | "clusters", name)) if !name.is_empty() => Ok(Awaited::Cluster(name.to_owned())),
        Some(("operation" | "operations", id)) if !id.is_empty() => Ok(Awaited::Operation(id.to_owned())),
        _ => Err("write cluster/NAME or operation/ID".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_the_catalogue_names_can_be_typed() {
        for code in keelson_api::Code::ALL {
            let example = code.entry().example;
            if let Err(error) = Cli::try_parse_from(example.split_whitespace()) {
                panic!("{code}: `{example}`: {error}");
            }
        }
    }

    #[test]
    fn no_destructive_verb_looks_like_a_harmless_one() {
        use clap::CommandFactory;
        let destructive = ["delete", "cancel"];
        for noun in Cli::command().get_subcommands() {
            let verbs: Vec<&str> = noun.get_subcommands().map(clap::Command::get_name).collect();
            for bad in verbs.iter().filter(|verb| destructive.contains(verb)) {
                for good in verbs.iter().filter(|verb| !destructive.contains(verb)) {
                    assert!(bad[..3] != good[..good.len().min(3)], "{} {bad} and {good}", noun.get_name());
                }
            }
        }
    }
}
