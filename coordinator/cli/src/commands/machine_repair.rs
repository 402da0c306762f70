//! `keelson machine repair`: a repair that a person asks for.

use std::fmt::Write;

use keelson_api::types::{
    ConditionState, EventView, ListView, MachineStep, MachineView, PAGE_SIZE_MAX, RepairActionView,
    RepairBody, RepairView, Timestamp, VerdictWord,
};
use keelson_api::{Code, ExitCode, Problem};

use super::Work;
use super::cluster::Wait;
use super::delete::typed_is;
use super::why::machine_path;
use crate::args_repair::MachineRepairArgs;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::progress::{self, Progress, Subject, Verdict};
use crate::table::one_line;
use crate::tree;

/// The guard that only lets time pass between two repairs: no reason to give up waiting.
const COOL_DOWN: &str = "coolDown";
/// Reason of the event that says that a repair was not made.
const CALLED_OFF: &str = "RepairCalledOff";
/// Reason of the event that says that a machine did not get its power back by a repair, and is switched on as it is.
const GIVEN_UP: &str = "RepairGivenUp";
/// Reasons of the events with which a repair ends.
const ENDS: [&str; 3] = ["RepairDone", CALLED_OFF, GIVEN_UP];

/// `keelson machine repair`.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    args: &MachineRepairArgs,
) -> Result<ExitCode, Failure> {
    let action = args.action.view();
    let body = RepairBody { action, over: args.over, confirm: args.confirm_loss_of.clone() };
    let call = || Call::post(format!("{}:repair", machine_path(&args.id))).json(&body);
    let names = [format!("machine/{}", args.id)];
    // Asked first in any case, so that a guard refuses before a person has typed anything.
    let preview: RepairView = client.document(&call().query("dryRun", Some(true))).await?;
    if args.dry_run {
        work.output().document(&preview, &names, |_| text(&preview) + "nothing was done\n");
        return Ok(ExitCode::Done);
    }
    if !args.yes && action != RepairActionView::PowerOn {
        confirm(work, client, args, &preview)?;
    }
    let wait = Wait::of(&args.wait, work);
    let seen = if wait.waits() { newest_event(client, &args.id).await? } else { 0 };
    let begun: RepairView = client.document(&call()).await?;
    announce(work, &begun, wait);
    if !wait.waits() {
        work.output().document(&begun, &names, |_| text(&begun));
        return Ok(ExitCode::Done);
    }
    let subject = RepairSubject { id: &args.id, began: work.session.now().into() };
    let (mode, timeout) = (work.global.progress, args.wait.wait.flatten());
    let machine = progress::wait(client, work.session, &subject, mode, timeout).await?;
    was_done(client, &begun, seen).await?;
    let id = &args.id;
    work.output().document(&machine, &names, |_| format!("machine {id} is well ({action})\n"));
    if work.for_people() {
        work.output().hint(&format!("what happened: keelson why {id}"));
    }
    Ok(ExitCode::Done)
}

fn text(repair: &RepairView) -> String {
    let (action, machine, cluster) = (repair.action, &repair.machine, &repair.cluster);
    let incident = match &repair.incident {
        Some(incident) => format!(", incident {}", incident.number),
        None => String::new(),
    };
    let begun = if repair.begun { "has begun" } else { "would do this" };
    let mut text = format!("{action} of machine {machine} of cluster {cluster} {begun}{incident}:\n");
    for what in &repair.what {
        let _ = writeln!(text, "  {}", one_line(what));
    }
    text
}

/// Says what happens to disk, pods and etcd, and lets a person type the machine's id.
fn confirm(
    work: &mut Work<'_>,
    client: &Client,
    args: &MachineRepairArgs,
    preview: &RepairView,
) -> Result<(), Failure> {
    let (action, id) = (preview.action, &args.id);
    let server = client.server();
    if !work.session.stdin_is_terminal {
        let what = format!("this would {action} machine {id} at coordinator {server}");
        let mut problem = Problem::new(Code::ConfirmationMissing, what);
        for what in &preview.what {
            problem = problem.because(what);
        }
        let over = if args.over { " --override" } else { "" };
        let loss = args.confirm_loss_of.as_ref();
        let loss = loss.map_or_else(String::new, |name| format!(" --confirm-loss-of {name}"));
        let again = format!("keelson machine repair {id} --action {action}{over}{loss} --yes");
        return Err(problem.remedy(format!("when you are sure: {again}")).into());
    }
    let what: Vec<String> = preview.what.iter().map(|what| format!("\n  {}", one_line(what))).collect();
    let cluster = &preview.cluster;
    work.output().hint(&format!(
        "This repairs machine {id} of cluster {cluster} at coordinator {server} by {action}:{}",
        what.concat()
    ));
    typed_is(work, "To go on, type the machine's id:", id)
}

fn announce(work: &mut Work<'_>, repair: &RepairView, wait: Wait) {
    let (action, id) = (repair.action, &repair.machine);
    let follow = match &repair.incident {
        Some(incident) => format!("keelson events --follow --incident {}", incident.number),
        None => format!("keelson why {id}"),
    };
    let text = if wait.waits() {
        format!(
            "{action} of {id} has begun; waiting until it is well; detach with Ctrl-C, follow it: {follow}"
        )
    } else {
        format!("{action} of {id} has begun; follow it: {follow}")
    };
    work.output().hint(&text);
}

fn events(id: &str) -> Call {
    Call::get("events").query("machine", Some(id))
}

/// Id of the newest event about a machine; 0 when there is none.
async fn newest_event(client: &mut Client, id: &str) -> Result<u64, Failure> {
    let list: ListView<EventView> = client.document(&events(id).query("page_size", Some(1))).await?;
    Ok(list.items.last().map_or(0, |event| event.id))
}

/// That a machine is well does not say that it was repaired: what was asked for may have been called off. `seen` is the
/// newest event from before it began.
async fn was_done(client: &mut Client, begun: &RepairView, seen: u64) -> Result<(), Failure> {
    let (id, action) = (&begun.machine, begun.action);
    let call = events(id).query("after", Some(seen)).query("page_size", Some(PAGE_SIZE_MAX));
    let list: ListView<EventView> = client.document(&call).await?;
    let mut ends = list.items.iter().filter(|event| ENDS.contains(&event.reason.as_str()));
    // A power cycle whose power came late has come about all the same.
    let given_up = |reason: &str| reason == GIVEN_UP && action == RepairActionView::Rebuild;
    match ends.next().filter(|event| event.reason == CALLED_OFF || given_up(&event.reason)) {
        None => Ok(()),
        Some(event) => {
            let ended = if event.reason == CALLED_OFF { "called off" } else { "given up" };
            let what = format!("{action} of machine {id} was {ended}, and the machine is well");
            let remedy = format!(
                "if it is still needed, ask again: keelson machine repair {id} --action {action}; what happened: keelson why {id}"
            );
            Err(Problem::new(Code::RepairCalledOff, what).because(&event.cause).remedy(remedy).into())
        }
    }
}

/// A machine that is waited for until it is well.
struct RepairSubject<'a> {
    id: &'a str,
    began: Timestamp,
}

impl Subject for RepairSubject<'_> {
    type View = MachineView;
    type Done = MachineView;

    fn call(&self) -> Call {
        Call::get(machine_path(self.id))
    }

    fn progress(&self, view: &MachineView) -> Progress {
        let summary = &view.summary;
        let verdict = summary.verdict.as_ref().map_or_else(String::new, |verdict| verdict.text.clone());
        let wait = view.waiting.first();
        let step = match (view.acting, &view.hold, wait) {
            (_, Some(hold), _) => format!("{verdict}; held: {}", hold.text),
            (Some(action), None, _) if view.fenced.is_some() => format!("{action}: its power is taken away"),
            (Some(action), None, _) => action.to_string(),
            (None, None, Some(wait)) => wait.text.clone(),
            (None, None, None) => format!("{verdict}, {}", summary.state),
        };
        let fine = is_well(view);
        let machine = MachineStep {
            machine: summary.id.clone(),
            role: summary.role.clone(),
            step,
            status: if fine { ConditionState::Ok } else { ConditionState::Progressing },
            since: view.acts.last().map_or(self.began, |act| act.at),
            ends_when: (!fine).then(|| "it works and has stayed so for a moment".to_owned()),
        };
        Progress {
            title: format!("repair of {}", self.id),
            state: tree::state_word(summary),
            created: view.acts.last().map_or(self.began, |act| act.at),
            ended: None,
            machines: vec![machine],
            waiting: Vec::new(),
        }
    }

    fn verdict(&self, read: Result<MachineView, Failure>) -> Verdict<MachineView> {
        let view = match read {
            Ok(view) => view,
            Err(failure) => return Verdict::Ended(Err(failure)),
        };
        if is_well(&view) {
            return Verdict::Ended(Ok(view));
        }
        match view.hold.as_ref().filter(|hold| hold.guard != COOL_DOWN) {
            None => Verdict::Waits,
            Some(hold) => {
                let what =
                    format!("machine {} is not well, and its repair is held back: {}", self.id, hold.text);
                let problem = Problem::new(Code::RepairHeld, what)
                    .because(format!("the hold ends when {}", hold.ends_when))
                    .remedy(format!("see what speaks for it and what is possible: keelson why {}", self.id));
                Verdict::Ended(Err(problem.into()))
            }
        }
    }

    fn name(&self) -> String {
        format!("the repair of machine {}", self.id)
    }

    fn path(&self) -> String {
        machine_path(self.id)
    }

    fn again(&self) -> String {
        format!("keelson why {}", self.id)
    }
}

/// Whether its incident is closed and nothing is being done.
fn is_well(view: &MachineView) -> bool {
    let well = view.summary.verdict.as_ref().is_some_and(|verdict| verdict.word == VerdictWord::Well);
    well && view.incident.is_none() && view.acting.is_none() && view.hold.is_none()
}
