//! The verbs. Each file has one noun.

mod catalogue;
mod cluster;
mod events;
mod fleet;
mod machine;
mod offline;
mod operation;
mod shell;

use keelson_api::ExitCode;

use crate::args::{Cli, Command, Format, Global};
use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;

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
        Output::new(self.session, self.global.output)
    }

    /// Whether tables have heads.
    pub(crate) fn headers(&self) -> bool {
        !self.global.no_headers
    }

    /// Whether the result is for a person.
    pub(crate) fn for_people(&self) -> bool {
        matches!(self.global.output, Format::Table | Format::Wide)
    }
}

/// Runs a command that was parsed.
pub(crate) async fn dispatch(cli: Cli, session: &mut Session) -> Result<ExitCode, Failure> {
    let mut work = Work { global: cli.global, session };
    match cli.command {
        Command::Cluster(command) => cluster::run(&mut work, command).await,
        Command::Machine(command) => machine::run(&mut work, command).await,
        Command::Operation(command) => operation::run(&mut work, command).await,
        Command::Plan(command) => catalogue::plans(&mut work, command).await,
        Command::Release(command) => catalogue::releases(&mut work, command).await,
        Command::Events(args) => events::run(&mut work, &args).await,
        Command::Status => fleet::status(&mut work).await,
        Command::Version { client } => fleet::version(&mut work, client).await,
        Command::Explain { code } => offline::explain(&mut work, &code),
        Command::Completion { shell } => Ok(offline::completion(&mut work, shell)),
        Command::Help { topic } => offline::help(&mut work, &topic),
    }
}
