//! The command line of Keelson.
//!
//! Purpose: what a person or a script types becomes calls of the HTTPS API, and what comes back becomes a table, a
//! tree, one JSON or YAML document, live progress, and an exit code that means something.
//!
//! Place in the data flow: the outermost edge, in front of `/v1`. It uses the same types and the same error catalogue as
//! the API.
//!
//! Deliberately does not know: how anything is planned or done. It collects nothing and sends nothing anywhere but to
//! the coordinator in its context file.

mod args;
mod args_repair;
mod client;
mod commands;
mod complete;
mod context;
mod duration;
mod failure;
mod format;
mod kubeconfig;
mod output;
mod paint;
mod pks;
mod progress;
mod session;
mod sse;
mod table;
mod template;
mod terminal;
mod tree;

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser as _;

pub use complete::complete;
pub use keelson_api::ExitCode;
pub use session::Session;

use crate::args::Cli;
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Output;
use crate::pks::Reading;

/// How long a verb may take to end by itself after Ctrl-C.
const INTERRUPT_GRACE: Duration = Duration::from_millis(500);
/// The same for verbs that have something to remove first. They limit that themselves; this is for the worst.
const REMOVAL_GRACE: Duration = Duration::from_secs(90);

/// Runs one command line. `arguments` begin with the name of the program.
pub async fn run(arguments: Vec<OsString>, session: &mut Session) -> ExitCode {
    let arguments = match pks::read(arguments) {
        Reading::Native(arguments) => arguments,
        Reading::Alias { arguments, native } => {
            Output::new(session, Format::Table).hint(&format!("native form: {native}"));
            arguments
        }
        Reading::Help => {
            Output::new(session, Format::Table).text(&pks::help());
            return ExitCode::Done;
        }
        Reading::Refused { failure, format } => {
            Output::new(session, format).failure(&failure);
            return failure.exit;
        }
    };
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused_by_clap(&error, &arguments, session),
    };
    run_parsed(cli, session).await
}

async fn run_parsed(cli: Cli, session: &mut Session) -> ExitCode {
    let format = cli.global.output.clone();
    let mut interrupt = session.interrupt.clone();
    let grace = if cli.command.has_to_clean_up() { REMOVAL_GRACE } else { INTERRUPT_GRACE };
    // Verbs that wait end by themselves at Ctrl-C and say what goes on; all others are ended here.
    let ended = tokio::select! {
        ended = commands::dispatch(cli, session) => Some(ended),
        () = overdue(&mut interrupt, grace) => None,
    };
    match ended {
        Some(Ok(code)) => code,
        Some(Err(failure)) => {
            Output::new(session, format).failure(&failure);
            failure.exit
        }
        None => {
            Output::new(session, format).hint("interrupted");
            ExitCode::Detached
        }
    }
}

/// Done when Ctrl-C was pressed and the verb had its time to end, or when it was pressed twice.
async fn overdue(interrupt: &mut tokio::sync::watch::Receiver<bool>, grace: Duration) {
    if interrupt.wait_for(|pressed| *pressed).await.is_err() {
        std::future::pending::<()>().await;
    }
    // An error says that no second press can come.
    let again = async {
        if interrupt.changed().await.is_err() {
            std::future::pending().await
        }
    };
    let _ = tokio::time::timeout(grace, again).await;
}

/// Help and version go to standard output with 0; everything else that clap refuses is a usage error.
fn refused_by_clap(error: &clap::Error, arguments: &[OsString], session: &mut Session) -> ExitCode {
    let format = wanted_format(arguments);
    if !error.use_stderr() {
        Output::new(session, Format::Table).text(&error.render().to_string());
        return ExitCode::Done;
    }
    let text = error.render().to_string();
    let mut output = Output::new(session, format);
    output.hint(text.trim_end());
    if error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output.hint(&format!("\n  more:    keelson explain {}", keelson_api::Code::CommandLine));
    }
    output.failure_document(&Failure::usage(first_paragraph(&text)));
    ExitCode::Usage
}

fn first_paragraph(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

/// The output format of a command line that could not be parsed: scripts get their document all the same.
fn wanted_format(arguments: &[OsString]) -> Format {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let mut format = Format::Table;
    for (index, word) in words.iter().enumerate() {
        let value = match *word {
            "-o" | "--output" => words.get(index + 1).copied(),
            _ => word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o")),
        };
        match value.map(|value| value.trim_start_matches('=')) {
            Some("json") => format = Format::Json,
            Some("yaml") => format = Format::Yaml,
            _ => {}
        }
    }
    format
}
