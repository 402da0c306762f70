//! What can be typed about machines that are not well: why, and repair.

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use keelson_api::types::{DrainBody, DrainThenView, RepairActionView};

use crate::args::WaitArgs;
use crate::complete;
use crate::duration::parse_duration;

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A cluster or a machine, by its name; cluster/NAME and machine/ID tell them apart
    #[arg(value_name = "NAME|MACHINE", value_parser = parse_asked, add = ArgValueCompleter::new(complete::asked))]
    pub(crate) what: Asked,
}

/// What is to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The cluster of this name.
    Cluster(String),
    /// The machine of this id.
    Machine(String),
    /// Whichever has this name.
    Either(String),
}

fn parse_asked(text: &str) -> Result<Asked, String> {
    match text.split_once('/') {
        None if !text.is_empty() => Ok(Asked::Either(text.to_owned())),
        Some(("cluster" | "clusters", name)) if !name.is_empty() => Ok(Asked::Cluster(name.to_owned())),
        Some(("machine" | "machines", id)) if !id.is_empty() => Ok(Asked::Machine(id.to_owned())),
        _ => {
            Err("write the name of a cluster or the id of a machine, or cluster/NAME, or machine/ID"
                .to_owned())
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepairCommand {
    /// Do nothing disruptive to machines until it is resumed; faults are found and told all the same
    Pause {
        /// Only of this cluster; of everything when absent
        #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::clusters))]
        cluster: Option<String>,
        /// Why, for whoever looks next
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Go on with repair
    Resume {
        /// Only of this cluster; of everything when absent
        #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::clusters))]
        cluster: Option<String>,
    },
    /// Where it is paused and by whom, which machines are not well, and what holds their repair
    Status,
}

#[derive(Debug, Args)]
pub(crate) struct MachineRepairArgs {
    /// Its id
    #[arg(add = ArgValueCompleter::new(complete::machines))]
    pub(crate) id: String,
    /// What is done to it
    #[arg(long, value_enum)]
    pub(crate) action: RepairArg,
    /// Go on although meltdown, busy or apiServer holds the repair back; not where the cluster's state is at stake
    #[arg(long = "override")]
    pub(crate) over: bool,
    /// Go against quorum, oldRecord and impossible as well: the cluster's name says that the loss is accepted
    #[arg(long, value_name = "CLUSTER", requires = "over", add = ArgValueCompleter::new(complete::clusters))]
    pub(crate) confirm_loss_of: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// A repair, from mild to harsh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RepairArg {
    /// Switch it on: for a machine without power
    PowerOn,
    /// Take its power away and give it back; its disk stays
    PowerCycle,
    /// Make it anew around its disk
    Rebuild,
    /// Make it anew with an empty disk
    Recreate,
}

impl RepairArg {
    pub(crate) fn view(self) -> RepairActionView {
        match self {
            Self::PowerOn => RepairActionView::PowerOn,
            Self::PowerCycle => RepairActionView::PowerCycle,
            Self::Rebuild => RepairActionView::Rebuild,
            Self::Recreate => RepairActionView::Recreate,
        }
    }
}

/// How pods leave machines that go.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct DrainArgs {
    /// How long disruption budgets are heeded when machines go (0s to 24h), from now on
    #[arg(long, value_name = "TIME", value_parser = parse_drain_timeout)]
    pub(crate) drain_timeout: Option<u32>,
    /// What happens then to pods that may still not be evicted
    #[arg(long, value_enum)]
    pub(crate) drain_then: Option<DrainThenArg>,
}

/// What happens at the end of a drain's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DrainThenArg {
    /// They are deleted with their own grace period, and the machine goes
    Force,
    /// They are asked again until it is allowed, and the machine stays
    Wait,
}

impl DrainArgs {
    /// What of it was given; `None` when nothing was.
    pub(crate) fn body(self) -> Option<DrainBody> {
        let then = self.drain_then.map(|then| match then {
            DrainThenArg::Force => DrainThenView::Force,
            DrainThenArg::Wait => DrainThenView::Wait,
        });
        let body = DrainBody { timeout_s: self.drain_timeout, then };
        (body != DrainBody::default()).then_some(body)
    }
}

/// In seconds. The coordinator says which are too many.
fn parse_drain_timeout(text: &str) -> Result<u32, String> {
    let timeout = parse_duration(text)?;
    u32::try_from(timeout.as_secs()).map_err(|_| format!("`{text}` is too long for a drain"))
}
