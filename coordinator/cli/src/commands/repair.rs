//! `keelson repair`: the coordinator's repair of machines, paused, resumed, looked at.

use std::fmt::Write;

use keelson_api::ExitCode;
use keelson_api::types::{NotWellView, PauseBody, RepairStatusView};
use keelson_protocol::WallTime;

use super::Work;
use crate::args_repair::RepairCommand;
use crate::client::Call;
use crate::duration::ago;
use crate::failure::Failure;
use crate::paint::Paint;
use crate::table::{Table, one_line};
use crate::tree;

/// `keelson repair pause|resume|status`.
pub(super) async fn run(work: &mut Work<'_>, command: RepairCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    let of = |cluster: &Option<String>| match cluster {
        Some(name) => format!("cluster {name}"),
        None => "everything".to_owned(),
    };
    let (call, done, next) = match command {
        RepairCommand::Status => (Call::get("repair"), String::new(), String::new()),
        RepairCommand::Pause { cluster, reason } => {
            let flag = cluster.as_ref().map_or_else(String::new, |name| format!(" --cluster {name}"));
            let done =
                format!("repair of {} is paused; faults are found and told all the same\n", of(&cluster));
            let call = Call::post("repair:pause").json(&PauseBody { cluster, reason });
            (call, done, format!("go on with it: keelson repair resume{flag}"))
        }
        RepairCommand::Resume { cluster } => {
            let done = format!("repair of {} goes on\n", of(&cluster));
            let call = Call::post("repair:resume").json(&PauseBody { cluster, reason: None });
            (call, done, String::new())
        }
    };
    let status: RepairStatusView = client.document(&call).await?;
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    work.output().document(&status, &names(&status), |_| done + &text(&status, now, paint));
    if !next.is_empty() && work.for_people() {
        work.output().hint(&next);
    }
    Ok(ExitCode::Done)
}

fn names(status: &RepairStatusView) -> Vec<String> {
    status.not_well.iter().map(|machine| format!("machine/{}", machine.machine)).collect()
}

fn text(status: &RepairStatusView, now: WallTime, paint: Paint) -> String {
    let mut text = String::new();
    for pause in &status.paused {
        tree::paused_lines(&mut text, pause, now, paint);
    }
    if status.paused.is_empty() {
        let _ = writeln!(text, "repair is not paused anywhere");
    }
    let counts = &status.counts;
    if counts.not_well == 0 {
        let _ = writeln!(text, "every machine is well");
        return text;
    }
    let (all, incidents, acting, held) = (counts.not_well, counts.incidents, counts.acting, counts.held);
    let _ = writeln!(
        text,
        "{all} not well: {incidents} with an open incident, {acting} being repaired, {held} held back"
    );
    text.push_str(&table(&status.not_well, now).render(true));
    held_lines(&mut text, &status.not_well);
    let missing = (all as usize).saturating_sub(status.not_well.len());
    if missing > 0 {
        let _ = writeln!(text, "and {missing} more machines");
    }
    let _ = writeln!(text, "what speaks for it: keelson why MACHINE");
    text
}

fn table(machines: &[NotWellView], now: WallTime) -> Table {
    let mut table = Table::new(&["MACHINE", "CLUSTER", "VERDICT", "INCIDENT", "FOR", "REPAIR", "HELD BY"]);
    for machine in machines {
        let none = || "-".to_owned();
        let incident = machine.incident.as_ref();
        table.row(vec![
            machine.machine.clone(),
            machine.cluster.clone(),
            machine.verdict.name.clone(),
            incident.map_or_else(none, |incident| incident.number.to_string()),
            incident.map_or_else(none, |incident| ago(now, incident.opened.0)),
            machine.acting.map_or_else(none, |action| action.to_string()),
            machine.hold.as_ref().map_or_else(none, |hold| hold.guard.clone()),
        ]);
    }
    table
}

/// Why repairs are held, and what ends it: each pair of sentences once. Pauses of two clusters have two ends.
fn held_lines(text: &mut String, machines: &[NotWellView]) {
    let mut told = Vec::new();
    for hold in machines.iter().filter_map(|machine| machine.hold.as_ref()) {
        let sentences = (&hold.text, &hold.ends_when);
        if told.contains(&sentences) {
            continue;
        }
        told.push(sentences);
        let person = if hold.needs_person { "  (needs a person)" } else { "" };
        let _ = writeln!(text, "held by guard {}: {}{person}", hold.guard, one_line(&hold.text));
        let _ = writeln!(text, "    ends when {}", one_line(&hold.ends_when));
    }
}
