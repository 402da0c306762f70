//! `keelson machine`.

use std::fmt::Write;

use http_body_util::BodyExt;
use keelson_api::types::{MachineView, UnitStateView};
use keelson_api::{Code, ExitCode, Problem};
use keelson_protocol::WallTime;

use super::{Work, filtered, machine_repair, shell, sort};
use crate::args::{MachineCommand, MachineTarget};
use crate::client::{Call, Client, segment};
use crate::duration::{ago, short};
use crate::failure::Failure;
use crate::paint::Paint;
use crate::table::{Table, one_line};
use crate::tree;

/// `keelson machine list|show|repair|logs|shell`.
pub(super) async fn run(work: &mut Work<'_>, command: MachineCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        MachineCommand::List { cluster, filter, sort: args } => {
            let call = filtered(Call::get("machines").query("cluster", cluster), &filter);
            let mut list = client.all::<MachineView>(&call).await?;
            sort(&mut list.items, &args)?;
            let names = names(&list.items);
            work.output().list(&list, &names, "no machines", |wide| table(&list.items, wide));
            Ok(ExitCode::Done)
        }
        MachineCommand::Show(target) => show(work, &mut client, target).await,
        MachineCommand::Repair(args) => machine_repair::run(work, &mut client, &args).await,
        MachineCommand::Logs { id, unit, lines, follow } => {
            let call = Call::get(format!("machines/{}/logs", segment(&id)))
                .query("unit", unit)
                .query("lines", Some(lines))
                .query("follow", follow.then_some(true));
            logs(work, &mut client, &call).await
        }
        MachineCommand::Shell { id, command } => shell::run(work, &mut client, &id, command).await,
    }
}

fn names(machines: &[MachineView]) -> Vec<String> {
    machines.iter().map(|machine| format!("machine/{}", machine.summary.id)).collect()
}

async fn show(work: &mut Work<'_>, client: &mut Client, target: MachineTarget) -> Result<ExitCode, Failure> {
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    let Some(selector) = target.selector else {
        let id = target.id.unwrap_or_default();
        let call = Call::get(format!("machines/{}", segment(&id)));
        let machine: MachineView = client.document(&call).await?;
        work.output().document(&machine, &[format!("machine/{id}")], |_| text(&machine, now, paint));
        return Ok(ExitCode::Done);
    };
    let call = Call::get("machines").query("selector", Some(&selector));
    let list = client.all::<MachineView>(&call).await?;
    if list.items.is_empty() {
        let what = format!("no machine fits `{selector}`");
        return Err(Failure::new(Code::MachineNotFound, what));
    }
    let names = names(&list.items);
    work.output().document(&list, &names, |_| {
        list.items.iter().map(|machine| text(machine, now, paint)).collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::Done)
}

fn heartbeat(machine: &MachineView) -> String {
    let millis = machine.summary.agent.last_heartbeat_ms;
    match millis {
        None => "never".to_owned(),
        // Healthy machines are heard of each second: whole seconds would say nothing.
        Some(millis) if millis < 10_000 => format!("{}.{}s", millis / 1_000, millis % 1_000 / 100),
        Some(millis) => short(std::time::Duration::from_millis(millis)),
    }
}

fn table(machines: &[MachineView], wide: bool) -> Table {
    const HEAD: [&str; 10] =
        ["ID", "CLUSTER", "ROLE", "STATE", "ADDRESS", "HEARTBEAT", "ZONE", "RELEASE", "AGENT", "KERNEL"];
    let mut table = Table::new(&HEAD[..if wide { 10 } else { 6 }]);
    for machine in machines {
        let summary = &machine.summary;
        let mut cells = vec![
            summary.id.clone(),
            machine.cluster.clone(),
            summary.role.clone(),
            tree::state_word(summary),
            summary.address.clone(),
            heartbeat(machine),
        ];
        if wide {
            let unknown = || "unknown".to_owned();
            cells.extend([
                summary.zone.clone(),
                summary.release.clone(),
                summary.agent.version.clone().unwrap_or_else(unknown),
                machine.facts.as_ref().map_or_else(unknown, |facts| facts.kernel.clone()),
            ]);
        }
        table.row(cells);
    }
    table
}

fn text(machine: &MachineView, now: WallTime, paint: Paint) -> String {
    let summary = &machine.summary;
    let mut text = String::new();
    let state = paint.state(tree::machine_condition(summary.state));
    let title = paint.bold(&format!("machine {}", summary.id));
    let _ = writeln!(text, "{title}  {}  {}", state.trim_end(), tree::state_word(summary));
    let _ = writeln!(
        text,
        "  cluster {}  pool {}  role {}  zone {}  address {}  release {}",
        machine.cluster, machine.pool, summary.role, summary.zone, summary.address, summary.release
    );
    let agent = &summary.agent;
    let version = agent.version.as_deref().unwrap_or("of unknown version");
    let connected = if agent.connected { "connected" } else { "not connected" };
    let _ = writeln!(text, "  agent {version} {connected}, last heartbeat {} ago", heartbeat(machine));
    let applied =
        machine.applied_generation.map_or_else(|| "none".to_owned(), |generation| generation.to_string());
    let _ = writeln!(text, "  config generation {} wanted, {applied} applied", machine.generation);
    if let Some(facts) = &machine.facts {
        let memory = facts.memory_bytes / (1024 * 1024);
        let (os, kernel, cgroup, cpus) = (&facts.os, &facts.kernel, facts.cgroup_version, facts.cpus);
        let _ = writeln!(text, "  {os}, kernel {kernel}, cgroup v{cgroup}, {cpus} CPUs, {memory} MiB");
    }
    if let Some(pressure) = &machine.pressure {
        let (disk, inodes) = (pressure.disk_used_percent, pressure.inodes_used_percent);
        let memory = pressure.memory_available_percent;
        let _ = writeln!(text, "  disk {disk} % used, inodes {inodes} % used, memory {memory} % available");
    }
    for unit in &summary.health {
        let lasts = format!("for {}", ago(now, unit.since.0));
        let trouble =
            if unit.state == UnitStateView::Healthy { String::new() } else { one_line(&unit.message) };
        let line =
            format!("  {:<31} {:<10} {lasts}  restarts {}  {trouble}", unit.unit, unit.state, unit.restarts);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for wait in &machine.waiting {
        tree::waiting_lines(&mut text, wait, now);
    }
    if machine.incident.is_some() || machine.hold.is_some() || machine.leaving.is_some() {
        let _ = writeln!(text, "  what speaks for it, and what is done: keelson why {}", summary.id);
    }
    text
}

async fn logs(work: &mut Work<'_>, client: &mut Client, call: &Call) -> Result<ExitCode, Failure> {
    let mut interrupt = work.session.interrupt.clone();
    let mut body = client.send(call).await?.into_body();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            Ok(_) = interrupt.wait_for(|pressed| *pressed) => return Ok(ExitCode::Done),
        };
        match frame {
            None => return Ok(ExitCode::Done),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    let terminal = work.session.stdout_is_terminal;
                    let text = if terminal { without_controls(&bytes) } else { bytes.to_vec() };
                    work.output().bytes(&text);
                }
            }
            Some(Err(error)) => {
                let what = "the log broke off before its end";
                return Err(Problem::new(Code::Unreachable, what).because_of(&error).into());
            }
        }
    }
}

/// Logs hold what programs wrote: on a terminal they must not move its cursor or change its state.
fn without_controls(bytes: &[u8]) -> Vec<u8> {
    let kept = |byte: u8| !byte.is_ascii_control() || b"\n\t".contains(&byte);
    bytes.iter().map(|byte| if kept(*byte) { *byte } else { b'?' }).collect()
}
