//! `keelson plan`: make-ups of clusters, listed, shown, applied from files, removed.
//!
//! Nothing is applied before everything was checked: every document is read, and the coordinator is asked for a preview
//! of each, before the first one is sent.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::Read;

use keelson_api::types::{API_VERSION, ListView, PlanBody, PlanChangeView, PlanOutcome, PlanView, PoolView};
use keelson_api::{Code, ExitCode, Problem};
use serde::Deserialize;

use super::cluster::quoted;
use super::delete::typed_is;
use super::scale::{PODS_MOVE, note, removal, removed};
use super::{Work, sort};
use crate::args::{PlanApplyArgs, PlanCommand, SortArgs};
use crate::client::{Call, Client, segment};
use crate::failure::Failure;
use crate::table::{Table, one_line};
use crate::tree;

/// Largest file of plans, in bytes: hundreds of them.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most plans of one file; as many as an installation keeps.
const DOCUMENTS_MAX: usize = 256;

/// `keelson plan list|show|apply|delete`.
pub(super) async fn run(work: &mut Work<'_>, command: PlanCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        PlanCommand::List(args) => list(work, &mut client, &args).await,
        PlanCommand::Show { name } => {
            let plan: PlanView = client.document(&Call::get(path(&name))).await?;
            work.output().document(&plan, &[format!("plan/{name}")], |_| plan_text(&plan));
            Ok(ExitCode::Done)
        }
        PlanCommand::Apply(args) => apply(work, &mut client, &args).await,
        PlanCommand::Delete { name } => {
            let change: PlanChangeView = client.document(&Call::delete(path(&name))).await?;
            work.output().document(&change, &[format!("plan/{name}")], |_| format!("plan {name} is gone\n"));
            Ok(ExitCode::Done)
        }
    }
}

fn path(name: &str) -> String {
    format!("plans/{}", segment(name))
}

async fn list(work: &mut Work<'_>, client: &mut Client, args: &SortArgs) -> Result<ExitCode, Failure> {
    let mut list = client.all::<PlanView>(&Call::get("plans")).await?;
    sort(&mut list.items, args)?;
    let names: Vec<String> = list.items.iter().map(|plan| format!("plan/{}", plan.name)).collect();
    work.output().list(&list, &names, "no plans", |_| {
        let mut table = Table::new(&["NAME", "MACHINES", "BUILT IN", "DESCRIPTION"]);
        for plan in &list.items {
            let machines: u32 = plan.pools.iter().map(|pool| u32::from(pool.count)).sum();
            let built_in = if plan.built_in { "yes" } else { "no" };
            table.row(vec![
                plan.name.clone(),
                machines.to_string(),
                built_in.to_owned(),
                plan.description.clone(),
            ]);
        }
        table
    });
    Ok(ExitCode::Done)
}

fn plan_text(plan: &PlanView) -> String {
    let built_in = if plan.built_in { "  (built in)" } else { "" };
    let mut text = format!("plan {}: {}{built_in}\n", plan.name, one_line(&plan.description));
    let mut table = Table::new(&["POOL", "MACHINES", "ROLES", "CPU", "MEMORY", "DISK", "ZONES"]);
    for pool in &plan.pools {
        let unlimited = || "unlimited".to_owned();
        table.row(vec![
            pool.name.clone(),
            pool.count.to_string(),
            pool.roles.join("+"),
            pool.cpu.clone().unwrap_or_else(unlimited),
            pool.memory.clone().unwrap_or_else(unlimited),
            pool.disk.clone(),
            if pool.zones.is_empty() { "all".to_owned() } else { pool.zones.join(",") },
        ]);
    }
    text.push_str(&table.render(true));
    plan.pools.iter().for_each(|pool| node_lines(&mut text, pool));
    let workers = if plan.workers_sizable { "can be chosen with --workers" } else { "cannot be chosen" };
    let _ = writeln!(text, "the number of workers {workers}");
    text
}

/// Labels and taints of a pool's nodes, when it has some.
fn node_lines(text: &mut String, pool: &PoolView) {
    if !pool.labels.is_empty() {
        let _ = writeln!(text, "labels of pool {}: {}", pool.name, one_line(&tree::labels(&pool.labels)));
    }
    if !pool.taints.is_empty() {
        let taints: Vec<String> = pool.taints.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "taints of pool {}: {}", pool.name, one_line(&taints.join(",")));
    }
}

async fn apply(work: &mut Work<'_>, client: &mut Client, args: &PlanApplyArgs) -> Result<ExitCode, Failure> {
    let plans = read_plans(work, &args.file)?;
    let mut changes: Vec<PlanChangeView> = Vec::new();
    for plan in &plans {
        let preview = client.document(&call(plan).query("dryRun", Some(true))).await;
        changes.push(preview.map_err(|failure| of_plan(failure, plan, &plans))?);
    }
    if args.preview.dry_run {
        let differs = changes.iter().any(|change| change.outcome != PlanOutcome::Unchanged);
        print(work, changes, true);
        let code = if args.preview.exit_code && differs { ExitCode::Differences } else { ExitCode::Done };
        return Ok(code);
    }
    if !args.yes {
        confirm(work, client, &changes, &args.file)?;
    }
    let mut applied: Vec<PlanChangeView> = Vec::new();
    for (plan, preview) in plans.iter().zip(&changes) {
        match client.document(&only_as_seen(call(plan), preview)).await {
            Ok(change) => applied.push(change),
            Err(failure) => return Err(after_others(work, failure, applied)),
        }
    }
    print(work, applied, false);
    Ok(ExitCode::Done)
}

/// A plan was refused after others were applied: what was done is told all the same.
fn after_others(work: &mut Work<'_>, mut failure: Failure, applied: Vec<PlanChangeView>) -> Failure {
    if !applied.is_empty() {
        let names: Vec<&str> = applied.iter().map(|change| change.name.as_str()).collect();
        failure.problem.causes.push(format!("plans applied before: {}", names.join(", ")));
        print(work, applied, false);
    }
    failure
}

fn call(plan: &PlanBody) -> Call {
    Call::put(path(plan.name.as_deref().unwrap_or_default())).json(plan)
}

/// The change, for the plan that its preview was made for: another operator may have been there since.
fn only_as_seen(call: Call, preview: &PlanChangeView) -> Call {
    match &preview.replaces {
        Some(etag) => call.header("if-match", quoted(etag)),
        None => call.header("if-none-match", "*"),
    }
}

/// Of several plans, says which one is not valid.
fn of_plan(mut failure: Failure, plan: &PlanBody, all: &[PlanBody]) -> Failure {
    if all.len() > 1 && failure.code() == Some(Code::PlanInvalid) {
        let name = plan.name.as_deref().unwrap_or_default();
        failure.problem.detail = format!("plan {name} is not valid");
    }
    failure
}

/// All plans of a file, or of standard input when it is `-`.
fn read_plans(work: &mut Work<'_>, file: &str) -> Result<Vec<PlanBody>, Failure> {
    let text = read_text(work, file)?;
    let wrong = |why: String| {
        Failure::from(
            Problem::new(Code::DocumentInvalid, format!("{file} cannot be read as plans")).because(why),
        )
    };
    let (mut plans, mut names) = (Vec::new(), BTreeSet::new());
    for (number, document) in (1..).zip(serde_norway::Deserializer::from_str(&text)) {
        let read = Option::<PlanBody>::deserialize(document);
        let read = read.map_err(|error| wrong(format!("document {number}: {error}")))?;
        // A file may begin or end with `---`.
        let Some(plan) = read else { continue };
        for (field, given, expected) in
            [("apiVersion", &plan.api_version, API_VERSION), ("kind", &plan.kind, "Plan")]
        {
            if given.as_deref() != Some(expected) {
                return Err(wrong(format!("document {number}: its {field} has to be {expected}")));
            }
        }
        let name = plan.name.clone().ok_or_else(|| wrong(format!("document {number}: it has no name")))?;
        if !names.insert(name.clone()) {
            return Err(wrong(format!("document {number}: plan `{name}` stands in it twice")));
        }
        if plans.len() >= DOCUMENTS_MAX {
            return Err(wrong(format!("it has more than {DOCUMENTS_MAX} documents")));
        }
        plans.push(plan);
    }
    if plans.is_empty() { Err(wrong("it holds no document".to_owned())) } else { Ok(plans) }
}

fn read_text(work: &mut Work<'_>, file: &str) -> Result<String, Failure> {
    let failed = |error: &std::io::Error| Failure::local(format!("{file} cannot be read"), error);
    let mut bytes = Vec::new();
    if file == "-" {
        if let Some(stdin) = work.session.stdin.as_mut() {
            stdin.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        }
    } else {
        let opened = std::fs::File::open(file).map_err(|error| failed(&error))?;
        opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    }
    let wrong = |why: String| {
        Problem::new(Code::DocumentInvalid, format!("{file} cannot be read as plans")).because(why)
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(format!("it has more than {FILE_BYTES_MAX} bytes")).into());
    }
    String::from_utf8(bytes).map_err(|_| wrong("it is no text in UTF-8".to_owned()).into())
}

/// Names the machines that clusters would lose, and lets a person type how many these are. Asks nothing when none would.
fn confirm(
    work: &mut Work<'_>,
    client: &Client,
    changes: &[PlanChangeView],
    file: &str,
) -> Result<(), Failure> {
    let previews = changes.iter().flat_map(|change| &change.clusters);
    let machines: Vec<&str> = previews.flat_map(removed).collect();
    if machines.is_empty() {
        return Ok(());
    }
    let what = removal(&machines, &format!("at coordinator {}", client.server()));
    // A file that came in through standard input leaves nobody to ask.
    if !work.session.stdin_is_terminal || file == "-" {
        let problem = Problem::new(Code::ConfirmationMissing, format!("this would remove {what}"));
        let remedy =
            format!("look at it with --dry-run; when you are sure: keelson plan apply -f {file} --yes");
        return Err(problem.remedy(remedy).into());
    }
    work.output().hint(&format!("This removes {what}; {PODS_MOVE}."));
    typed_is(work, "To go on, type how many machines these are:", &machines.len().to_string())
}

fn print(work: &mut Work<'_>, changes: Vec<PlanChangeView>, dry_run: bool) {
    let now = work.session.now();
    let names: Vec<String> = changes.iter().map(|change| format!("plan/{}", change.name)).collect();
    let text = |change: &PlanChangeView| {
        let mut text = change_text(change, dry_run);
        for preview in &change.clusters {
            if dry_run {
                text += &tree::preview(preview, now);
                text += &note(&removed(preview));
            } else if !preview.changes.is_empty() {
                let _ = writeln!(text, "cluster {} follows: keelson wait cluster/{0}", preview.cluster);
            }
        }
        text
    };
    if let [change] = changes.as_slice() {
        return work.output().document(change, &names, |_| text(change));
    }
    let (api_version, total) = (API_VERSION.to_owned(), changes.len());
    let list = ListView {
        api_version,
        kind: "PlanChangeList".to_owned(),
        items: changes,
        next_page_token: None,
        total,
    };
    work.output().document(&list, &names, |_| list.items.iter().map(text).collect());
}

fn change_text(change: &PlanChangeView, dry_run: bool) -> String {
    let (would, name) = (if dry_run { "would be " } else { "" }, &change.name);
    let mut text = match change.outcome {
        PlanOutcome::Created => format!("plan {name} {would}created\n"),
        PlanOutcome::Changed => format!("plan {name} {would}changed\n"),
        PlanOutcome::Unchanged => format!("plan {name} is like this already\n"),
        PlanOutcome::Deleted => format!("plan {name} is gone\n"),
    };
    for difference in &change.differences {
        let _ = writeln!(text, "  {}", one_line(difference));
    }
    text
}
