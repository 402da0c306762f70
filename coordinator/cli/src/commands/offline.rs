//! Verbs that ask nobody: explain, completion, help.

use std::fmt::Write;

use clap::CommandFactory;
use keelson_api::{Code, ExitCode};
use serde_json::json;

use super::Work;
use crate::args::Cli;
use crate::failure::Failure;

/// `keelson explain CODE`.
pub(super) fn explain(work: &mut Work<'_>, code: &str) -> Result<ExitCode, Failure> {
    let known: Code = code.parse().map_err(|error: keelson_api::catalogue::UnknownCode| {
        Failure::new(Code::CodeUnknown, error.to_string())
    })?;
    let entry = known.entry();
    let document = json!({
        "apiVersion": keelson_api::types::API_VERSION,
        "kind": "ErrorEntry",
        "code": entry.name,
        "title": entry.title,
        "cause": entry.cause,
        "remedy": entry.remedy,
        "example": entry.example,
        "exitCode": entry.exit.number(),
    });
    work.output().document(&document, &[format!("error/{}", entry.name)], |_| {
        let mut text = format!("{}: {}\n\n", entry.name, entry.title);
        let _ = writeln!(text, "  why:     {}", entry.cause);
        let _ = writeln!(text, "  do this: {}", entry.remedy);
        let _ = writeln!(text, "  example: {}", entry.example);
        if entry.exit != ExitCode::Done {
            let _ = writeln!(text, "  exit:    {} ({})", entry.exit.number(), entry.exit.meaning());
        }
        text
    });
    Ok(ExitCode::Done)
}

/// `keelson completion SHELL`.
pub(super) fn completion(work: &mut Work<'_>, shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keelson", &mut script);
    work.output().bytes(&script);
    ExitCode::Done
}

/// `keelson help [WORDS]`.
pub(super) fn help(work: &mut Work<'_>, topic: &[String]) -> Result<ExitCode, Failure> {
    if topic == ["exit-codes"] {
        let mut text = String::from("Exit codes of keelson:\n\n");
        for code in ExitCode::ALL {
            let _ = writeln!(text, "  {:>3}  {}", code.number(), code.meaning());
        }
        work.output().text(&text);
        return Ok(ExitCode::Done);
    }
    let mut command = Cli::command();
    command.build();
    let mut found = &mut command;
    for word in topic {
        let unknown = || Failure::usage(format!("there is no help on `{}`", topic.join(" ")));
        found = found.find_subcommand_mut(word).ok_or_else(unknown)?;
    }
    let text = found.render_long_help().to_string();
    work.output().text(&text);
    Ok(ExitCode::Done)
}
