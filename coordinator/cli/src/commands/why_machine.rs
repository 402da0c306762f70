//! `keelson why MACHINE`.

use std::fmt::Write;
use std::time::Duration;

use keelson_api::ExitCode;
use keelson_api::types::{
    API_VERSION, EventView, EvidenceView, IncidentView, LeaseView, LeavingView, MachineView, PodLeftView,
    PowerView, RepairActionView, RepairOptionView, RepairOptionsView, UnitStateView, VerdictWord,
};
use keelson_protocol::WallTime;
use serde::Serialize;

use super::Work;
use super::why::{events, machine_path, moment, timeline};
use crate::client::{Call, Client};
use crate::duration::{ago, short};
use crate::failure::Failure;
use crate::paint::Paint;
use crate::table::one_line;
use crate::tree;

/// The entry of the catalogue for a machine that is being repaired: what it says stands here in full already.
const WAIT_REPAIR: &str = "KEEL-4016";

/// The guard of a coordinator that has just started: what going against it would cost is not known yet.
const STARTING: &str = "starting";

/// A clock that is off by more than this is wrong: agents tell `ClockWrong` from there on.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(30);

/// Guards that only the name of the cluster goes against.
const COSTS_CLUSTER: [&str; 3] = ["quorum", "oldRecord", "impossible"];

/// Why a machine is as it is. Stable, as the documents of the API are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MachineWhy {
    api_version: &'static str,
    kind: &'static str,
    /// The machine.
    machine: MachineView,
    /// Which repairs are possible now.
    repairs: Vec<RepairOptionView>,
    /// The incident that the time line is of: the open one, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    incident: Option<u64>,
    /// What happened in it, oldest first.
    timeline: Vec<EventView>,
}

/// Explains a machine.
pub(super) async fn show(
    work: &mut Work<'_>,
    client: &mut Client,
    machine: MachineView,
) -> Result<ExitCode, Failure> {
    let id = machine.summary.id.clone();
    let options = Call::get(format!("{}/repairs", machine_path(&id)));
    let options: RepairOptionsView = client.document(&options).await?;
    let incident = match &machine.incident {
        Some(open) => Some(open.number),
        None => last_incident(client, &id).await?,
    };
    let timeline = match incident {
        Some(number) => events(client, |call| call.query("incident", Some(number))).await?,
        None => Vec::new(),
    };
    let why = MachineWhy {
        api_version: API_VERSION,
        kind: "MachineWhy",
        machine,
        repairs: options.actions,
        incident,
        timeline,
    };
    let (now, paint) = (work.session.now(), Paint::stdout(work.session));
    work.output().document(&why, &[format!("machine/{id}")], |_| text(&why, now, paint));
    Ok(ExitCode::Done)
}

async fn last_incident(client: &mut Client, id: &str) -> Result<Option<u64>, Failure> {
    let of_incidents = |call: Call| call.query("machine", Some(id)).query("incident", Some("any"));
    Ok(events(client, of_incidents).await?.last().and_then(|event| event.incident))
}

fn text(why: &MachineWhy, now: WallTime, paint: Paint) -> String {
    let machine = &why.machine;
    let mut text = verdict_line(machine, now, paint);
    evidence_lines(&mut text, machine, now, paint);
    if let Some(leaving) = &machine.leaving {
        let _ = writeln!(text, "{}", paint.bold("it leaves its cluster"));
        leaving_lines(&mut text, &machine.summary.id, leaving, now);
    }
    doing_lines(&mut text, machine, now, paint);
    repair_lines(&mut text, why, paint);
    incident_lines(&mut text, why, now, paint);
    text
}

fn verdict_line(machine: &MachineView, now: WallTime, paint: Paint) -> String {
    let summary = &machine.summary;
    let title = paint.bold(&format!("machine {} of cluster {}", summary.id, machine.cluster));
    let verdict = match &summary.verdict {
        Some(verdict) if verdict.word != VerdictWord::Well => one_line(&verdict.text),
        Some(_) if machine.leaving.is_some() => "well, and leaving".to_owned(),
        // A verdict is of health alone: a machine that is being made is well, and not ready.
        Some(_) => format!("well, and {}", summary.state),
        None => summary.state.to_string(),
    };
    let class =
        machine.fault_class.map_or_else(String::new, |class| format!(" ({} fault)", class_word(class)));
    let since = machine.incident.as_ref().map_or_else(String::new, |incident| {
        format!(", incident {} for {}", incident.number, ago(now, incident.opened.0))
    });
    format!("{title}: {verdict}{class}{since}\n")
}

fn class_word(class: keelson_api::types::FaultClassView) -> String {
    serde_json::to_value(class).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Each channel on its line: what was seen, not what is made of it.
fn evidence_lines(text: &mut String, machine: &MachineView, now: WallTime, paint: Paint) {
    let _ = writeln!(text, "{}", paint.bold("evidence"));
    match &machine.evidence {
        Some(evidence) => channel_lines(text, evidence),
        None => {
            let heard = machine.summary.agent.last_heartbeat_ms;
            let _ = writeln!(text, "  heartbeat   {}", heartbeat(heard));
        }
    }
    if let Some(wrong) = machine.clock_offset_ms.and_then(clock) {
        let _ = writeln!(text, "  clock       {wrong}");
    }
    for unit in machine.summary.health.iter().filter(|unit| unit.state != UnitStateView::Healthy) {
        let (name, state, lasts) = (&unit.unit, unit.state, ago(now, unit.since.0));
        let message = one_line(&unit.message);
        let _ = writeln!(
            text,
            "{}",
            format!("  unit        {name} is {state} for {lasts}  {message}").trim_end()
        );
    }
}

/// What a clock does that is off by so much, in milliseconds; nothing while that harms nobody.
fn clock(offset_ms: i64) -> Option<String> {
    let off = Duration::from_millis(offset_ms.unsigned_abs());
    let direction = if offset_ms < 0 { "behind" } else { "ahead of" };
    (off > CLOCK_OFF_MAX).then(|| {
        format!(
            "{} {direction} the coordinator's: set it, or programs refuse each other's certificates",
            short(off)
        )
    })
}

fn channel_lines(text: &mut String, evidence: &EvidenceView) {
    let _ = writeln!(text, "  heartbeat   {}", heartbeat(evidence.heartbeat_ms));
    let (reached, refused, silent) = (evidence.peers_reached, evidence.peers_refused, evidence.peers_silent);
    let all = reached + refused + silent;
    let said = [
        (reached, "reached its agent"),
        (refused, "reached its kernel and no agent"),
        (silent, "got no answer"),
    ];
    let said = said.iter().filter(|(count, _)| *count > 0);
    let said: Vec<String> = said.map(|(count, what)| format!("{count} of {all} {what}")).collect();
    let none = || "none was asked, or none has said anything".to_owned();
    let peers = if said.is_empty() { none() } else { said.join(", ") };
    let _ = writeln!(text, "  peers       {peers}");
    let power = match evidence.power {
        PowerView::Unknown => "not known",
        PowerView::On => "on, says the infrastructure",
        PowerView::Off => "off, says the infrastructure",
        PowerView::Missing => "the infrastructure does not know the machine",
    };
    let _ = writeln!(text, "  power       {power}");
    let lease = match evidence.lease {
        LeaseView::Unknown => "not known",
        LeaseView::Fresh => "its kubelet renews it",
        LeaseView::Stale => "its kubelet does not renew it",
    };
    let _ = writeln!(text, "  node lease  {lease}");
    let (heard, others) = (evidence.zone_heard, evidence.zone_others);
    let _ = writeln!(text, "  zone        {heard} of {others} other machines of its zone are heard");
}

fn heartbeat(ms: Option<u64>) -> String {
    match ms {
        None => "none since the coordinator started".to_owned(),
        Some(ms) if ms < 10_000 => format!("the last one came {}.{} s ago", ms / 1_000, ms % 1_000 / 100),
        Some(ms) => format!("the last one came {} ago", short(Duration::from_millis(ms))),
    }
}

/// How far a machine is that leaves, with every pod that keeps it.
pub(super) fn leaving_lines(text: &mut String, machine: &str, leaving: &LeavingView, now: WallTime) {
    let lasts = leaving.since.map_or_else(String::new, |since| format!(", for {}", ago(now, since.0)));
    let (pods, volumes) = (leaving.pods.len() as u64 + leaving.more_pods, leaving.volumes_attached);
    let what = match leaving.step.as_str() {
        "draining" if pods + volumes > 0 => {
            format!("its drain goes on: {pods} pods and {volumes} attached volumes are left")
        }
        _ => one_line(&leaving.text),
    };
    let _ = writeln!(text, "  {machine}: {what}{lasts}");
    let end = match leaving.forced_at {
        Some(at) if at.0 > now => format!("; in {} pods are deleted all the same", ago(at.0, now)),
        Some(_) => "; its time is over, and pods are deleted all the same".to_owned(),
        None => String::new(),
    };
    let _ = writeln!(text, "      ends when {}{end}", one_line(&leaving.ends_when));
    for pod in &leaving.pods {
        pod_lines(text, pod);
    }
    if leaving.more_pods > 0 {
        let _ = writeln!(text, "    and {} more pods", leaving.more_pods);
    }
}

fn pod_lines(text: &mut String, pod: &PodLeftView) {
    let owner = match &pod.owner {
        Some(owner) => format!("of {}", one_line(owner)),
        None => "of no controller, which nobody makes again,".to_owned(),
    };
    let person = if pod.needs_person { "  (needs a person)" } else { "" };
    let what = one_line(&pod.text);
    let _ =
        writeln!(text, "    pod {}/{} {owner} {what}{person}", one_line(&pod.namespace), one_line(&pod.pod));
    let _ = writeln!(text, "      ends when {}", one_line(&pod.ends_when));
}

/// What is being done, or why nothing is, and what ends that.
fn doing_lines(text: &mut String, machine: &MachineView, now: WallTime, paint: Paint) {
    if machine.leaving.is_some() && machine.acting.is_none() && machine.incident.is_none() {
        return;
    }
    let _ = writeln!(text, "{}", paint.bold("what is done"));
    let act = machine.acts.last().map_or_else(String::new, |act| {
        format!(", the last repair was {} {} ago", act.action, ago(now, act.at.0))
    });
    match (machine.acting, &machine.hold) {
        (Some(action), _) => {
            let began = machine.acts.last().filter(|act| act.action == action);
            let lasts = began.map_or_else(String::new, |act| format!(", for {}", ago(now, act.at.0)));
            let _ = writeln!(text, "  {action} is under way{lasts}");
        }
        (None, Some(_)) => {
            let _ = writeln!(text, "  nothing{act}");
        }
        (None, None) if let Some(due) = &machine.due => {
            let (action, id) = (due.action, &machine.summary.id);
            let after = ago(due.at.0.max(now), now);
            let _ = writeln!(
                text,
                "  nothing yet{act}; {action} in {after}, if it goes on like this and no guard holds it"
            );
            if action != RepairActionView::Recreate {
                let _ =
                    writeln!(text, "      without that wait: keelson machine repair {id} --action {action}");
            }
        }
        (None, None) if machine.incident.is_some() => {
            let _ = writeln!(text, "  nothing is due yet{act}; the coordinator goes on looking");
        }
        (None, None) => {
            let _ = writeln!(text, "  nothing, and nothing is due{act}");
        }
    }
    if let Some(fenced) = machine.fenced {
        let _ = writeln!(text, "  its power was taken away for certain {} ago", ago(now, fenced.0));
    }
    if let Some(hold) = &machine.hold {
        let person = if hold.needs_person { "  (needs a person)" } else { "" };
        let until = hold.until.filter(|until| until.0 > now);
        let until = until.map_or_else(String::new, |until| format!(", in {}", ago(until.0, now)));
        let _ = writeln!(text, "  held by guard {}: {}{person}", hold.guard, one_line(&hold.text));
        let _ = writeln!(text, "      ends when {}{until}", one_line(&hold.ends_when));
    }
    let shown = |code: &str| code == WAIT_REPAIR || machine.leaving.is_some();
    for wait in machine.waiting.iter().filter(|wait| !shown(&wait.code)) {
        tree::waiting_lines(text, wait, now);
    }
}

/// What somebody could ask for. What holds all of them is said once, and also how to go against it.
fn repair_lines(text: &mut String, why: &MachineWhy, paint: Paint) {
    let _ = writeln!(text, "{}", paint.bold("repairs that somebody could ask for now"));
    let options = &why.repairs;
    let reason = options.first().and_then(|first| first.why.as_ref());
    if let Some(reason) =
        reason.filter(|reason| options.iter().all(|other| other.why.as_ref() == Some(reason)))
    {
        let _ = writeln!(text, "  none: {}", one_line(reason));
        return;
    }
    let mut told: Vec<&str> = why.machine.hold.iter().map(|hold| hold.text.as_str()).collect();
    for option in options {
        let what = match (&option.hold, &option.why) {
            _ if option.allowed => "yes".to_owned(),
            (Some(hold), _) if told.contains(&hold.text.as_str()) => {
                format!("held by guard {}, as above", hold.guard)
            }
            (Some(hold), _) => {
                told.push(&hold.text);
                format!("held by guard {}: {}", hold.guard, one_line(&hold.text))
            }
            (None, Some(why)) => format!("no: {}", one_line(why)),
            (None, None) => "no".to_owned(),
        };
        let _ = writeln!(text, "  {:<11} {what}", option.action);
    }
    let held = options.iter().find_map(|option| Some((option.action, option.hold.as_ref()?)));
    if let Some((action, hold)) = held.filter(|(_, hold)| hold.guard != STARTING) {
        let (id, cluster) = (&why.machine.summary.id, &why.machine.cluster);
        let loss = if COSTS_CLUSTER.contains(&hold.guard.as_str()) {
            format!(" --confirm-loss-of {cluster}")
        } else {
            String::new()
        };
        let again = format!("keelson machine repair {id} --action {action} --override{loss} --dry-run");
        let _ = writeln!(text, "  what going against that would do: {again}");
    }
}

fn incident_lines(text: &mut String, why: &MachineWhy, now: WallTime, paint: Paint) {
    let Some(number) = why.incident else {
        let _ = writeln!(text, "no incident of it is on record");
        return;
    };
    let began = why.timeline.first().map(|event| event.at.0);
    let title = match (&why.machine.incident, began) {
        (Some(IncidentView { opened, verdict, .. }), _) => {
            format!("incident {number}, open since {}: {}", moment(opened.0, now), one_line(&verdict.text))
        }
        (None, Some(began)) => {
            format!("the last incident, {number}, began {} ago and is over", ago(now, began))
        }
        (None, None) => format!("the last incident, {number}, is over"),
    };
    let _ = writeln!(text, "{}", paint.bold(&title));
    text.push_str(&timeline(&why.timeline, now));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_wrong_is_a_word_worth() {
        assert_eq!(clock(-30_000), None);
        let hour = "1h behind the coordinator's: set it, or programs refuse each other's certificates";
        assert_eq!(clock(-3_600_000).as_deref(), Some(hour));
        assert!(clock(31_000).is_some_and(|text| text.starts_with("31s ahead of")));
    }
}
