//! The verbs. Each file has one noun.

mod access;
mod await_state;
mod check;
mod cluster;
mod delete;
mod events;
mod fleet;
mod machine;
mod machine_repair;
mod offline;
mod operation;
mod plan;
mod release;
mod repair;
mod scale;
mod schema;
mod shell;
mod why;
mod why_cluster;
mod why_machine;

use keelson_api::ExitCode;
use serde::Serialize;

use crate::args::{Cli, Command, FilterArgs, Global, SortArgs};
use crate::client::{Call, Client};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::template;

/// What every verb works with.
pub(crate) struct Work<'a> {
    pub(crate) global: Global,
    pub(crate) session: &'a mut Session,
}

impl Work<'_> {
    /// A client of the coordinator that the context names.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(Context::load(&self.global, self.session)?)
    }

    /// Where results and hints go.
    pub(crate) fn output(&mut self) -> Output<'_> {
        Output::of(self.session, &self.global)
    }

    /// Whether the result is for a person.
    pub(crate) fn for_people(&self) -> bool {
        self.global.output.is_for_people()
    }
}

/// Lets a list be filtered where it is made.
fn filtered(call: Call, filter: &FilterArgs) -> Call {
    call.query("selector", filter.selector.clone())
        .query("state", filter.state.clone())
        .query("text", filter.text.clone())
}

/// Sorts the items of a list as `--sort-by` says. A path that no item has is a mistake that must not pass in silence.
fn sort<T: Serialize>(items: &mut Vec<T>, args: &SortArgs) -> Result<(), Failure> {
    let Some(path) = &args.sort_by else { return Ok(()) };
    let keyed = |item: T| {
        let document = serde_json::to_value(&item).unwrap_or_default();
        (path.first(&document).cloned(), item)
    };
    let mut all: Vec<_> = std::mem::take(items).into_iter().map(keyed).collect();
    if !all.is_empty() && all.iter().all(|(key, _)| key.is_none()) {
        return Err(Failure::usage("--sort-by: no item of the list has anything at this path"));
    }
    all.sort_by(|(one, _), (other, _)| template::compare(one.as_ref(), other.as_ref()));
    items.extend(all.into_iter().map(|(_, item)| item));
    Ok(())
}

/// Runs a command that was parsed.
pub(crate) async fn dispatch(cli: Cli, session: &mut Session) -> Result<ExitCode, Failure> {
    let mut work = Work { global: cli.global, session };
    match cli.command {
        Command::Cluster(command) => cluster::run(&mut work, command).await,
        Command::Machine(command) => machine::run(&mut work, command).await,
        Command::Operation(command) => operation::run(&mut work, command).await,
        Command::Plan(command) => plan::run(&mut work, command).await,
        Command::Release(command) => release::run(&mut work, command).await,
        Command::Events(args) => events::run(&mut work, &args).await,
        Command::Why(args) => why::run(&mut work, &args.what).await,
        Command::Repair(command) => repair::run(&mut work, command).await,
        Command::Status => fleet::status(&mut work).await,
        Command::Version { client } => fleet::version(&mut work, client).await,
        Command::Wait(args) => await_state::run(&mut work, &args).await,
        Command::Explain { topic } => offline::explain(&mut work, &topic),
        Command::Completion { shell } => offline::completion(&mut work, shell),
        Command::Help { topic } => offline::help(&mut work, &topic),
    }
}
