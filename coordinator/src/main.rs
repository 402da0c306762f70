//! The coordinator: decides for the whole fleet.
//!
//! This program is a shell around `keelson-coordinator-core`: it owns clocks, sockets, the store and the provider, and
//! carries out what the core decides. It has no policy and no SQL of its own.

mod args;
mod catalog;
mod clock;
mod fleet;
mod kubernetes;
mod link;
mod metrics;
mod plans;
mod providers;
mod remote;
mod renewal;
mod repair;
mod serve;
mod shell;
mod state_dir;

use std::process::ExitCode;

use clap::Parser;
use keelson_providers::local::forwarder;

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Serve(serve) => serve::run(serve),
        Command::LocalForwarder { state_dir } => {
            serve::start_logging(false);
            forwarder::run(state_dir).map_err(anyhow::Error::from)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the coordinator ends");
            ExitCode::FAILURE
        }
    }
}
