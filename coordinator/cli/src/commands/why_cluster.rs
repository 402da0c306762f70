//! `keelson why CLUSTER`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use keelson_api::ExitCode;
use keelson_api::types::{
    API_VERSION, ClusterView, EventView, MachineView, NotWellView, OperationView, Timestamp,
};
use keelson_protocol::WallTime;
use serde::Serialize;

use super::Work;
use super::why::{events, moment};
use super::why_machine::leaving_lines;
use crate::client::{Call, Client};
use crate::duration::ago;
use crate::failure::Failure;
use crate::paint::Paint;
use crate::table::one_line;
use crate::tree;

/// How far back incidents are told.
const INCIDENTS_OF: Duration = Duration::from_secs(3_600);
/// The entries of the catalogue for machines that leave or are repaired: they have their own parts of the text.
const TOLD_ELSEWHERE: [&str; 2] = ["KEEL-4015", "KEEL-4016"];

/// Why a cluster is as it is. Stable, as the documents of the API are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterWhy {
    api_version: &'static str,
    kind: &'static str,
    /// The cluster.
    cluster: ClusterView,
    /// Its machines on their way out.
    leaving: Vec<MachineView>,
    /// Operations on it that have not ended.
    operations: Vec<OperationView>,
    /// Its incidents of the last hour, oldest first.
    incidents: Vec<Incident>,
}

/// An incident in short.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Incident {
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
    /// Its first event of the last hour.
    began: Timestamp,
    /// When it was found, perhaps before the last hour, while it is open; absent when it is not known to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    opened: Option<Timestamp>,
    /// When it was mended.
    #[serde(skip_serializing_if = "Option::is_none")]
    mended: Option<Timestamp>,
    /// Its newest event.
    seen: Timestamp,
    /// What was found, by the newest verdict, else how it began.
    fault: String,
    /// What came last.
    last: String,
}

impl Incident {
    /// How it stands, in a few words.
    fn state(&self, now: WallTime) -> String {
        match (self.opened, self.mended) {
            (Some(opened), _) => format!("open for {}", ago(now, opened.0)),
            (None, Some(mended)) => format!("mended after {}", ago(mended.0, self.began.0)),
            (None, None) => format!("last seen {} ago", ago(now, self.seen.0)),
        }
    }
}

/// Explains a cluster.
pub(super) async fn show(
    work: &mut Work<'_>,
    client: &mut Client,
    cluster: ClusterView,
) -> Result<ExitCode, Failure> {
    let name = cluster.spec.name.clone();
    let mut leaving = Vec::new();
    if cluster.status.pools.iter().any(|pool| pool.leaving > 0) {
        let call = Call::get("machines").query("cluster", Some(&name));
        let machines = client.all::<MachineView>(&call).await?.items;
        leaving = machines.into_iter().filter(|machine| machine.leaving.is_some()).collect();
    }
    let call = Call::get("operations").query("cluster", Some(&name));
    let operations = client.all::<OperationView>(&call).await?.items;
    let operations = operations.into_iter().filter(|operation| !operation.done).collect();
    let of_incidents = |call: Call| call.query("cluster", Some(&name)).query("incident", Some("any"));
    let now = work.session.now();
    let incidents = incidents(events(client, of_incidents).await?, &cluster.status.not_well, now);
    let (api_version, kind) = (API_VERSION, "ClusterWhy");
    let why = ClusterWhy { api_version, kind, cluster, leaving, operations, incidents };
    let paint = Paint::stdout(work.session);
    work.output().document(&why, &[format!("cluster/{name}")], |_| text(&why, now, paint));
    Ok(ExitCode::Done)
}

/// Events of the last hour, put together by incident. Which are open, and since when, say the machines that are not well:
/// an incident may be older than an hour, and its last event may be lost.
fn incidents(events: Vec<EventView>, not_well: &[NotWellView], now: WallTime) -> Vec<Incident> {
    let open = not_well.iter().filter_map(|machine| machine.incident.as_ref());
    let open: BTreeMap<u64, Timestamp> = open.map(|incident| (incident.number, incident.opened)).collect();
    let mut found: BTreeMap<u64, Incident> = BTreeMap::new();
    for event in events.into_iter().filter(|event| now.since(event.at.0) <= INCIDENTS_OF) {
        let Some(number) = event.incident else { continue };
        let incident = found.entry(number).or_insert_with(|| Incident {
            number,
            machine: event.machine.clone(),
            began: event.at,
            opened: open.get(&number).copied(),
            mended: None,
            seen: event.at,
            fault: event.outcome.clone(),
            last: String::new(),
        });
        if event.reason == "FaultFound" {
            incident.fault.clone_from(&event.outcome);
        }
        incident.mended = (event.reason == "FaultMended").then_some(event.at);
        incident.seen = event.at;
        incident.last = format!("{}: {}", event.cause, event.outcome);
    }
    found.into_values().collect()
}

fn text(why: &ClusterWhy, now: WallTime, paint: Paint) -> String {
    let (cluster, status) = (&why.cluster, &why.cluster.status);
    let title = format!("cluster {} is {}", status.name, status.state);
    let mut text =
        format!("{}, generation {} of its blueprint\n", paint.bold(&title), cluster.meta.generation);
    if let Some(pause) = &status.repair_paused {
        tree::paused_lines(&mut text, pause, now, paint);
    }
    wait_lines(&mut text, why, now, paint);
    if !why.leaving.is_empty() {
        let _ = writeln!(text, "{}", paint.bold("machines that leave it"));
        for machine in &why.leaving {
            if let Some(leaving) = &machine.leaving {
                leaving_lines(&mut text, &machine.summary.id, leaving, now);
            }
        }
    }
    not_well_lines(&mut text, why, now, paint);
    operation_lines(&mut text, &why.operations, now, paint);
    incident_lines(&mut text, &why.incidents, now, paint);
    text
}

fn wait_lines(text: &mut String, why: &ClusterWhy, now: WallTime, paint: Paint) {
    let status = &why.cluster.status;
    if status.waiting.is_empty() {
        let _ = writeln!(text, "it waits for nothing: everything is as its blueprint says");
        return;
    }
    // What has a part of its own is told there, with all that is known of it.
    let elsewhere = |machine: Option<&str>| {
        let left = |view: &MachineView| Some(view.summary.id.as_str()) == machine;
        let ill = |view: &NotWellView| Some(view.machine.as_str()) == machine;
        why.leaving.iter().any(left) || status.not_well.iter().any(ill)
    };
    let rest = status
        .waiting
        .iter()
        .filter(|wait| !(TOLD_ELSEWHERE.contains(&wait.code.as_str()) && elsewhere(wait.machine.as_deref())));
    let mut lines = String::new();
    rest.for_each(|wait| tree::waiting_lines(&mut lines, wait, now));
    if !lines.is_empty() {
        let _ = writeln!(text, "{}\n{}", paint.bold("it waits for"), lines.trim_end());
    }
}

fn not_well_lines(text: &mut String, why: &ClusterWhy, now: WallTime, paint: Paint) {
    let not_well = &why.cluster.status.not_well;
    if not_well.is_empty() {
        let _ = writeln!(text, "every machine of it is well");
        return;
    }
    let _ = writeln!(text, "{}", paint.bold("machines that are not well"));
    for machine in not_well {
        let _ = writeln!(text, "{}", tree::not_well_line(machine, now));
        if let Some(hold) = &machine.hold {
            let person = if hold.needs_person { "  (needs a person)" } else { "" };
            let _ = writeln!(text, "      ends when {}{person}", one_line(&hold.ends_when));
        }
        let _ = writeln!(text, "      more: keelson why {}", machine.machine);
    }
}

fn operation_lines(text: &mut String, operations: &[OperationView], now: WallTime, paint: Paint) {
    if operations.is_empty() {
        return;
    }
    let _ = writeln!(text, "{}", paint.bold("operations on it"));
    for operation in operations {
        let (id, what, state) = (&operation.id, one_line(&operation.what()), operation.state);
        let lasts = ago(now, operation.created.0);
        let _ = writeln!(text, "  {id}  {what}  {state} for {lasts}; watch it: keelson operation watch {id}");
    }
}

fn incident_lines(text: &mut String, incidents: &[Incident], now: WallTime, paint: Paint) {
    if incidents.is_empty() {
        let _ = writeln!(text, "no incident in the last hour");
        return;
    }
    let _ = writeln!(text, "{}", paint.bold("incidents of the last hour"));
    for incident in incidents {
        let (number, began) = (incident.number, moment(incident.opened.unwrap_or(incident.began).0, now));
        let machine = incident.machine.as_deref().unwrap_or("the cluster");
        let state = incident.state(now);
        let _ = writeln!(text, "  {number}  {began}  {machine}  {}, {state}", one_line(&incident.fault));
        let _ = writeln!(text, "      last: {}", one_line(&incident.last));
    }
    let _ =
        writeln!(text, "  all of one: keelson events --incident {}", incidents[incidents.len() - 1].number);
}

#[cfg(test)]
mod tests {
    use keelson_api::types::{IncidentView, SeverityView, VerdictView, VerdictWord};

    use super::*;

    const NOW: WallTime = WallTime(10_000_000);

    fn before(seconds: i64) -> Timestamp {
        WallTime(NOW.0 - seconds * 1_000).into()
    }

    fn event(incident: u64, reason: &str, ago_s: i64) -> EventView {
        EventView {
            api_version: API_VERSION.to_owned(),
            kind: "Event".to_owned(),
            id: 1,
            at: before(ago_s),
            severity: SeverityView::Warning,
            reason: reason.to_owned(),
            cluster: None,
            machine: Some("demo-worker-1".to_owned()),
            incident: Some(incident),
            cause: "cause".to_owned(),
            outcome: "outcome".to_owned(),
        }
    }

    fn ill(incident: u64, opened_s: i64) -> NotWellView {
        let (name, text) = ("hung".to_owned(), "hung".to_owned());
        let verdict = VerdictView { word: VerdictWord::Hung, name, text: text.clone() };
        let incident = IncidentView { number: incident, opened: before(opened_s), verdict: verdict.clone() };
        NotWellView {
            machine: "demo-worker-1".to_owned(),
            cluster: "demo".to_owned(),
            verdict,
            fault_class: None,
            text,
            incident: Some(incident),
            acting: None,
            hold: None,
        }
    }

    #[test]
    fn an_incident_is_as_old_as_it_is_and_open_only_when_its_machine_says_so() {
        let check = |events: Vec<EventView>, not_well: &[NotWellView], expected: &str| {
            let found = incidents(events, not_well, NOW);
            assert_eq!(found.iter().map(|incident| incident.state(NOW)).collect::<Vec<_>>(), [expected]);
        };
        check(vec![event(7, "FaultFound", 60)], &[ill(7, 60)], "open for 1m");
        // It was found before the last hour, and what is left of it is a repair.
        check(
            vec![event(7, "FaultFound", 7_200), event(7, "RepairHeld", 60)],
            &[ill(7, 7_200)],
            "open for 2h",
        );
        check(
            vec![event(7, "FaultFound", 600), event(7, "FaultMended", 540)],
            &[ill(8, 60)],
            "mended after 1m",
        );
        // The machine was removed: nothing says that it was mended.
        check(vec![event(7, "FaultFound", 600), event(7, "RepairHeld", 300)], &[], "last seen 5m ago");
    }
}
