//! `keelson cluster check`: the self-test of a cluster.

use keelson_api::types::{self, KubeconfigRequestBody, KubeconfigView};
use keelson_api::{Code, ExitCode, Problem};
use keelson_check::{Check, Outcome, Report};
use serde::Serialize;

use super::Work;
use super::cluster::path;
use crate::args::CheckArgs;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::output::Output;
use crate::paint::Paint;
use crate::progress::interrupted;
use crate::table::one_line;

/// Life of the certificate that the check works with, in seconds.
const ACCESS_TTL_S: u32 = 3_600;
/// Columns of a check's name.
const NAME_COLUMNS: usize = 13;

/// The result, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckDocument<'a> {
    api_version: &'static str,
    kind: &'static str,
    cluster: &'a str,
    passed: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// `keelson cluster check`.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &CheckArgs,
) -> Result<ExitCode, Failure> {
    let body = KubeconfigRequestBody { ttl_s: Some(ACCESS_TTL_S) };
    let call = Call::post(format!("{}:kubeconfig", path(&args.name))).json(&body);
    let mut interrupt = work.session.interrupt.clone();
    let access: KubeconfigView = tokio::select! {
        access = client.document(&call) => access?,
        () = interrupted(&mut interrupt) => return Ok(ExitCode::Detached),
    };
    let kubernetes = keelson_check::connect(access.kubeconfig.expose_secret()).await.map_err(|error| {
        Problem::new(Code::UnexpectedAnswer, "there is no way into the cluster").because_of(&error)
    })?;
    let paint = Paint::stdout(work.session);
    let for_people = work.for_people();
    let mut output = work.output();
    let report = keelson_check::run(kubernetes, args.timeout, interrupted(&mut interrupt), |check| {
        if for_people {
            print(&mut output, paint, check);
        }
    })
    .await;
    let pressed = *interrupt.borrow();
    Ok(conclude(work, &args.name, &report, pressed))
}

/// One check on one line, and what to do when it failed on another.
fn print(output: &mut Output<'_>, paint: Paint, check: &Check) {
    let mark = paint.outcome(check.outcome);
    output.text(&one_line(&format!(
        "{mark} {:<NAME_COLUMNS$} {:>5.1} s  {}",
        check.name, check.seconds, check.detail
    )));
    if let Some(remedy) = &check.remedy {
        output.text(&one_line(&format!("  do this: {remedy}")));
    }
}

fn conclude(work: &mut Work<'_>, cluster: &str, report: &Report, interrupted: bool) -> ExitCode {
    let document = CheckDocument {
        api_version: types::API_VERSION,
        kind: "ClusterCheck",
        cluster,
        passed: report.passed(),
        report,
    };
    let count = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count();
    let (all, passed, failed) = (report.checks.len(), count(Outcome::Passed), count(Outcome::Failed));
    let names: Vec<String> = report.checks.iter().map(|check| format!("check/{}", check.name)).collect();
    let summary = format!("{passed} of {all} checks passed in {:.0} s", report.seconds);
    work.output().document(&document, &names, |_| summary.clone());
    if report.passed() {
        return ExitCode::Done;
    }
    if interrupted && failed == 0 {
        work.output().hint("interrupted; what the check had made is removed");
        return ExitCode::Detached;
    }
    let failure = Failure::new(
        Code::ClusterCheckFailed,
        format!("{} of {all} checks of cluster {cluster} did not pass", all - passed),
    );
    work.output().hint(&failure.to_string());
    failure.exit
}
