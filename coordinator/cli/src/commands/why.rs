//! `keelson why`: why a cluster or a machine is as it is.
//!
//! An explanation is a success whatever it says, so that somebody on call sees it and scripts tell it from an error: how
//! something is stands in the document, not in the exit code.

use keelson_api::types::{ClusterView, EventView, ListView, MachineView, PAGE_SIZE_MAX};
use keelson_api::{Code, ExitCode, Problem};
use keelson_protocol::WallTime;

use super::{Work, cluster, why_cluster, why_machine};
use crate::args_repair::Asked;
use crate::client::{Call, Client, segment};
use crate::failure::Failure;
use crate::table::one_line;

/// `keelson why`.
pub(super) async fn run(work: &mut Work<'_>, asked: &Asked) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match asked {
        Asked::Cluster(name) => {
            let view: ClusterView = client.document(&Call::get(cluster::path(name))).await?;
            why_cluster::show(work, &mut client, view).await
        }
        Asked::Machine(id) => {
            let view: MachineView = client.document(&Call::get(machine_path(id))).await?;
            why_machine::show(work, &mut client, view).await
        }
        Asked::Either(name) => either(work, &mut client, name).await,
    }
}

/// Path of a machine below `/v1/`.
pub(super) fn machine_path(id: &str) -> String {
    format!("machines/{}", segment(id))
}

/// A cluster and a machine may have the same name: then it is the cluster, and the other one is named.
async fn either(work: &mut Work<'_>, client: &mut Client, name: &str) -> Result<ExitCode, Failure> {
    let machine = found(client.document::<MachineView>(&Call::get(machine_path(name))).await)?;
    let found_cluster = found(client.document::<ClusterView>(&Call::get(cluster::path(name))).await)?;
    match (found_cluster, machine) {
        (Some(view), other) => {
            let code = why_cluster::show(work, client, view).await?;
            if other.is_some() && work.for_people() {
                work.output().hint(&format!("a machine has this name too: keelson why machine/{name}"));
            }
            Ok(code)
        }
        (None, Some(view)) => why_machine::show(work, client, view).await,
        (None, None) => {
            let what = format!("there is neither a cluster nor a machine `{name}`");
            Err(Problem::new(Code::MachineNotFound, what)
                .remedy("look at what there is: keelson cluster list, keelson machine list")
                .into())
        }
    }
}

/// `None` when there is no such thing.
fn found<T>(read: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match read {
        Ok(view) => Ok(Some(view)),
        Err(failure) if failure.exit == ExitCode::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Events that `ask` chooses, the newest of them, oldest first.
pub(super) async fn events(
    client: &mut Client,
    ask: impl FnOnce(Call) -> Call,
) -> Result<Vec<EventView>, Failure> {
    let call = ask(Call::get("events")).query("page_size", Some(PAGE_SIZE_MAX));
    Ok(client.document::<ListView<EventView>>(&call).await?.items)
}

/// The clock's part of a moment.
pub(super) fn clock(at: WallTime) -> String {
    let stamp = keelson_api::types::Timestamp(at).to_string();
    stamp.get(11..19).unwrap_or_default().to_owned()
}

/// A time line: when, how long after the beginning, what, why, and what came of it.
pub(super) fn timeline(events: &[EventView]) -> String {
    let Some(first) = events.first() else { return String::new() };
    let mut text = String::new();
    for event in events {
        let after = event.at.0.since(first.at.0).as_secs_f64();
        let (at, reason) = (clock(event.at.0), &event.reason);
        text += &format!("  {at}  {:>9}  {reason:<17} {}\n", format!("+{after:.1}s"), one_line(&event.cause));
        text += &format!("{:>41}so: {}\n", "", one_line(&event.outcome));
    }
    text
}
