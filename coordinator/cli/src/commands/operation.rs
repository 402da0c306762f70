//! `keelson operation`.

use std::fmt::Write;
use std::time::Duration;

use keelson_api::ExitCode;
use keelson_api::types::{ClusterView, OperationKindView, OperationStateView, OperationView, WaitingView};
use keelson_protocol::WallTime;

use super::{Work, cluster, delete, sort};
use crate::args::{OperationCommand, SortArgs};
use crate::client::{Call, Client, segment};
use crate::duration::ago;
use crate::failure::Failure;
use crate::paint::Paint;
use crate::progress;
use crate::table::{Table, one_line};
use crate::tree;

/// `keelson operation list|show|watch|cancel`.
pub(super) async fn run(work: &mut Work<'_>, command: OperationCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        OperationCommand::List { cluster, sort } => list(work, &mut client, cluster, &sort).await,
        OperationCommand::Show { id } => {
            let path = format!("operations/{}", segment(&id));
            let operation: OperationView = client.document(&Call::get(path)).await?;
            show(work, &operation);
            Ok(ExitCode::Done)
        }
        OperationCommand::Watch { id, timeout } => {
            let operation = watch(work, &mut client, &id, timeout).await?;
            result(work, &operation);
            Ok(ExitCode::Done)
        }
        OperationCommand::Cancel { id, yes } => cancel(work, &mut client, &id, yes).await,
    }
}

async fn list(
    work: &mut Work<'_>,
    client: &mut Client,
    cluster: Option<String>,
    args: &SortArgs,
) -> Result<ExitCode, Failure> {
    let mut list = client.all::<OperationView>(&Call::get("operations").query("cluster", cluster)).await?;
    sort(&mut list.items, args)?;
    let names: Vec<String> = list.items.iter().map(|item| format!("operation/{}", item.id)).collect();
    let now = work.session.now();
    work.output().list(&list, &names, "no operations", |wide| {
        const HEAD: [&str; 8] = ["ID", "ACTION", "CLUSTER", "STATE", "AGE", "TOOK", "DETAIL", "WAITS FOR"];
        let mut table = Table::new(&HEAD[..if wide { 8 } else { 7 }]);
        for item in &list.items {
            let took = item.ended.map_or_else(|| "-".to_owned(), |ended| ago(ended.0, item.created.0));
            let mut cells = vec![
                item.id.clone(),
                item.action.to_string(),
                item.cluster.clone(),
                item.state.to_string(),
                ago(now, item.created.0),
                took,
                item.detail.clone().unwrap_or_default(),
            ];
            if wide {
                cells.push(item.metadata.waiting.first().map_or_else(String::new, |wait| wait.text.clone()));
            }
            table.row(cells);
        }
        table
    });
    Ok(ExitCode::Done)
}

/// Cancels an operation. That of a create removes the cluster, and is confirmed as its deletion is.
async fn cancel(work: &mut Work<'_>, client: &mut Client, id: &str, yes: bool) -> Result<ExitCode, Failure> {
    let path = format!("operations/{}", segment(id));
    if !yes {
        let operation: OperationView = client.document(&Call::get(&path)).await?;
        if operation.action == OperationKindView::CreateCluster && !operation.done {
            let cluster: ClusterView = client.document(&Call::get(cluster::path(&operation.cluster))).await?;
            let again = format!("keelson operation cancel {id} --yes");
            delete::confirm(work, client, &cluster, &again)?;
        }
    }
    let operation: OperationView = client.document(&Call::post(format!("{path}:cancel"))).await?;
    show(work, &operation);
    if operation.action == OperationKindView::CreateCluster && work.for_people() {
        let name = &operation.cluster;
        work.output().hint(&format!("wait until it is gone: keelson wait cluster/{name} --for deleted"));
    }
    Ok(ExitCode::Done)
}

/// Prints an operation in full.
pub(super) fn show(work: &mut Work<'_>, operation: &OperationView) {
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    let name = format!("operation/{}", operation.id);
    work.output().document(operation, &[name], |_| text(operation, now, paint));
}

/// An operation in full, for people.
pub(super) fn text(operation: &OperationView, now: WallTime, paint: Paint) -> String {
    let title = format!("operation {}  {}", operation.id, one_line(&operation.what()));
    let mut text = format!("{}  {}\n", paint.bold(&title), operation.state);
    let until = operation.ended.map_or(now, |ended| ended.0);
    let verb = if operation.done { "took" } else { "runs for" };
    let _ = writeln!(text, "asked for at {}, {verb} {}", operation.created, ago(until, operation.created.0));
    if let Some(error) = &operation.error {
        let _ = writeln!(text, "why: {}", one_line(&error.detail));
    }
    for step in operation.metadata.machines.iter().filter(|_| !operation.done) {
        let state = paint.state(step.status);
        let lasts = ago(now, step.since.0);
        let ends = step.ends_when.as_ref().map_or_else(String::new, |ends| format!(", ends when {ends}"));
        let (what, ends) = (one_line(&step.step), one_line(&ends));
        let _ = writeln!(text, "  {state} {}  {}  {what} for {lasts}{ends}", step.machine, step.role);
    }
    // Waits for machines stand at the machines; what is left concerns the cluster, or needs a person.
    let rest = |wait: &&WaitingView| wait.machine.is_none() || wait.needs_person;
    for wait in operation.metadata.waiting.iter().filter(rest).filter(|_| !operation.done) {
        tree::waiting_lines(&mut text, wait, now);
    }
    text
}

/// Waits for an operation; a cluster that is gone takes its kubeconfig entries with it.
pub(super) async fn watch(
    work: &mut Work<'_>,
    client: &mut Client,
    id: &str,
    timeout: Option<Duration>,
) -> Result<OperationView, Failure> {
    let mode = work.global.progress;
    let watched = progress::OperationSubject { id };
    let operation = progress::wait(client, work.session, &watched, mode, timeout).await?;
    let gone = operation.action == OperationKindView::DeleteCluster;
    if gone && operation.state == OperationStateView::Succeeded {
        delete::forget_kubeconfig(work, client, &operation.cluster).await;
    }
    Ok(operation)
}

/// Prints how an operation that was waited for ended, and what comes next.
pub(super) fn result(work: &mut Work<'_>, operation: &OperationView) {
    let took = ago(operation.ended.unwrap_or(operation.created).0, operation.created.0);
    let (id, cluster) = (&operation.id, &operation.cluster);
    let (done, next) = match operation.action {
        OperationKindView::CreateCluster => {
            ("is ready", format!("next: keelson cluster kubeconfig {cluster}"))
        }
        OperationKindView::DeleteCluster => ("is gone", String::new()),
        OperationKindView::ScaleCluster => {
            ("has its new size", format!("next: keelson cluster show {cluster}"))
        }
    };
    let detail =
        operation.detail.as_ref().map_or_else(String::new, |detail| format!(": {}", one_line(detail)));
    let name = format!("operation/{id}");
    work.output()
        .document(operation, &[name], |_| format!("cluster {cluster} {done}{detail} ({id}, {took})\n"));
    if !next.is_empty() && work.for_people() {
        work.output().hint(&next);
    }
}
