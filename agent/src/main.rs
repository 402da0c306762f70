//! `keelson-agent`: carries out what the coordinator wants of this machine and keeps it healthy, also without it.
//!
//! Place: the outermost layer on a machine. It wires `keelson-agent-core` (decides), `keelson-host` (acts) and
//! `keelson-transport` (speaks) together. Deliberately does not know: what the machine is for.

mod balancer;
mod bulk;
mod clock;
mod enrol;
mod identity;
mod ledger_file;
mod metadata;
mod paths;
mod peers;
mod shell;
mod status;
mod steps;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::paths::Paths;

#[derive(Debug, Parser)]
#[command(name = "keelson-agent", version, about = "Keeps this machine as the coordinator wants it")]
struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent; systemd does this at boot
    Run,
    /// Show what the running agent knows about this machine
    Status {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run => shell::run(&arguments.paths),
        Command::Status { output } => view::print(&arguments.paths, output == Output::Json),
        Command::Version => view::print_version(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            view::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
