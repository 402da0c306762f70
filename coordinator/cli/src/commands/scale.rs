//! `keelson cluster scale`: another size for a pool.

use keelson_api::types::{ClusterView, EffectView, OperationView, PlanPreview, ScaleBody};
use keelson_api::{Code, ExitCode, Problem};

use super::Work;
use super::cluster::{path, print_preview_noted, quoted, wait_or_leave};
use super::delete::typed_is;
use crate::args::ScaleArgs;
use crate::args_repair::{DrainArgs, DrainThenArg};
use crate::client::{Call, Client};
use crate::failure::Failure;

/// What happens to what runs on a machine that leaves a cluster that stays.
pub(super) const PODS_MOVE: &str = "pods are moved first";

/// `keelson cluster scale`.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &ScaleArgs,
) -> Result<ExitCode, Failure> {
    let body = ScaleBody { pool: args.pool.clone(), count: args.count, drain: args.drain.body() };
    let call = || Call::post(format!("{}:scale", path(&args.name))).json(&body);
    let cluster: ClusterView = client.document(&Call::get(path(&args.name))).await?;
    if args.preview.dry_run {
        let preview: PlanPreview = client.document(&call().query("dryRun", Some(true))).await?;
        let note = note(&removed(&preview)) + &still_leaving(&cluster, &args.pool);
        return Ok(print_preview_noted(work, &preview, &args.preview, &note));
    }
    if !args.yes {
        let preview: PlanPreview = client.document(&call().query("dryRun", Some(true))).await?;
        let (name, pool, count) = (&args.name, &args.pool, args.count);
        let again = format!(
            "keelson cluster scale {name} --pool {pool} --count {count}{} --yes",
            drain_words(args.drain)
        );
        confirm(work, client, &args.name, &removed(&preview), &again)?;
        let leaving = still_leaving(&cluster, &args.pool);
        if !leaving.is_empty() {
            work.output().hint(leaving.trim_end());
        }
    }
    let call = call().header("if-match", quoted(&cluster.meta.etag));
    let operation: OperationView = client.document(&call).await?;
    wait_or_leave(work, client, &operation, &args.wait).await
}

/// The flags of a drain as they were given, so that a command that is printed does the same.
fn drain_words(args: DrainArgs) -> String {
    // In seconds: the form for people leaves out what is small beside the rest.
    let timeout =
        args.drain_timeout.map_or_else(String::new, |timeout_s| format!(" --drain-timeout {timeout_s}s"));
    let then = match args.drain_then {
        None => "",
        Some(DrainThenArg::Force) => " --drain-then force",
        Some(DrainThenArg::Wait) => " --drain-then wait",
    };
    timeout + then
}

/// Machines that a change removes, or removes and makes anew.
pub(super) fn removed(preview: &PlanPreview) -> Vec<&str> {
    let gone = |effect| matches!(effect, EffectView::Delete | EffectView::Replace);
    preview.changes.iter().filter(|change| gone(change.effect)).map(|change| change.object.as_str()).collect()
}

/// What a preview says of machines that would go; nothing when none would.
pub(super) fn note(removed: &[&str]) -> String {
    match removed.len() {
        0 => String::new(),
        1 => format!("{} would be removed with its disk; {PODS_MOVE}\n", removed[0]),
        count => format!("{count} machines would be removed with their disks; {PODS_MOVE}\n"),
    }
}

/// What a preview says of machines that are on their way out already.
fn still_leaving(cluster: &ClusterView, pool: &str) -> String {
    let leaving = cluster.status.pools.iter().find(|other| other.name == pool).map_or(0, |pool| pool.leaving);
    match leaving {
        0 => String::new(),
        1 => format!("one machine of pool {pool} leaves already, and does not come back\n"),
        count => format!("{count} machines of pool {pool} leave already, and do not come back\n"),
    }
}

/// Names the machines that would be removed, and lets a person type the cluster's name. Asks nothing when none would.
fn confirm(
    work: &mut Work<'_>,
    client: &Client,
    cluster: &str,
    removed: &[&str],
    again: &str,
) -> Result<(), Failure> {
    if removed.is_empty() {
        return Ok(());
    }
    let what = removal(removed, &format!("of cluster {cluster} at coordinator {}", client.server()));
    if !work.session.stdin_is_terminal {
        let problem = Problem::new(Code::ConfirmationMissing, format!("this would remove {what}"));
        return Err(problem.remedy(format!("when you are sure: {again}")).into());
    }
    work.output().hint(&format!("This removes {what}; {PODS_MOVE}."));
    typed_is(work, "To go on, type the cluster's name:", cluster)
}

/// How many machines go, with their disks, and which.
pub(super) fn removal(removed: &[&str], of: &str) -> String {
    let (machines, their) =
        if removed.len() == 1 { ("machine", "its disk") } else { ("machines", "their disks") };
    format!("{} {machines} {of} with {their} ({})", removed.len(), removed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_has_the_timeout_that_was_given() {
        let words = |drain_timeout, drain_then| drain_words(DrainArgs { drain_timeout, drain_then });
        assert_eq!(words(None, None), "");
        assert_eq!(words(Some(3_690), Some(DrainThenArg::Wait)), " --drain-timeout 3690s --drain-then wait");
    }
}
