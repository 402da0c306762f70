//! Verbs that ask nobody: explain, completion, help.

use std::fmt::Write;

use clap::CommandFactory;
use clap_complete::env::Shells;
use keelson_api::{Code, ExitCode};
use serde_json::json;

use super::{Work, schema};
use crate::args::Cli;
use crate::failure::Failure;
use crate::{complete, pks};

/// `keelson explain CODE` and `keelson explain PATH`.
pub(super) fn explain(work: &mut Work<'_>, topic: &str) -> Result<ExitCode, Failure> {
    if !schema::is_path(topic) {
        return explain_code(work, topic);
    }
    let field = schema::explain(topic)?;
    work.output().document(&field, &[format!("field/{topic}")], |_| schema::text(&field));
    Ok(ExitCode::Done)
}

fn explain_code(work: &mut Work<'_>, code: &str) -> Result<ExitCode, Failure> {
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

/// `keelson completion SHELL`: a script that asks this program, so that names of clusters are completed too.
pub(super) fn completion(work: &mut Work<'_>, shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let unknown = || Failure::usage(format!("there is no completion for {shell}"));
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string()).ok_or_else(unknown)?;
    let mut script = Vec::new();
    completer
        .write_registration(complete::VARIABLE, "keelson", "keelson", "keelson", &mut script)
        .map_err(|error| Failure::local("the script cannot be made", &error))?;
    work.output().bytes(&script);
    Ok(ExitCode::Done)
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
    if topic == ["pks"] {
        work.output().text(&pks::help());
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
