//! Repair for the API: the core's answers made into documents and problems.

use keelson_api::care::{
    NotNow, member_moves, not_well_view, pause_view, repair_held, repair_options_view, repair_status_view,
    repair_view,
};
use keelson_api::fleet::{Against, Pause, RepairWish};
use keelson_api::types::{NotWellView, PauseView, RepairOptionsView, RepairStatusView, RepairView};
use keelson_api::{Code, Problem};
use keelson_coordinator_core::{
    CommandError, CoordinatorCore, Effect, Now, Override, PauseRequest, PauseScope, RepairRequest,
};
use keelson_model::Hold;
use keelson_protocol::{ClusterName, MachineId};
use keelson_store::StoreError;

use crate::fleet;
use crate::shell::Shell;

/// How repair stands in the whole fleet.
pub(crate) fn status(core: &CoordinatorCore, now: Now) -> RepairStatusView {
    repair_status_view(pauses(core), not_well(core, now))
}

/// All machines that are not well.
pub(crate) fn not_well(core: &CoordinatorCore, now: Now) -> Vec<NotWellView> {
    let view = |machine: &keelson_coordinator_core::Machine| {
        not_well_view(&machine.row.cluster, &machine.row.id, &core.observed_machine(machine, now))
    };
    // Nearly all are well, and what was seen of a machine is much to put together.
    let suspect = |machine: &&keelson_coordinator_core::Machine| {
        !machine.verdict.is_fine()
            || machine.row.incident.is_some()
            || machine.row.acting.is_some()
            || machine.row.renew
            || CoordinatorCore::hold_of(machine).is_some()
    };
    core.machines().filter(suspect).filter_map(view).collect()
}

/// Wherever repair is paused, that of everything first.
pub(crate) fn pauses(core: &CoordinatorCore) -> Vec<PauseView> {
    let clusters = core.clusters().map(|cluster| PauseScope::Cluster(cluster.row.spec.name.clone()));
    std::iter::once(PauseScope::Fleet).chain(clusters).filter_map(|scope| pause(core, &scope)).collect()
}

/// Whether repair of a cluster is paused, alone or with everything.
pub(crate) fn pause_of(core: &CoordinatorCore, name: &ClusterName) -> Option<PauseView> {
    pause(core, &PauseScope::Fleet).or_else(|| pause(core, &PauseScope::Cluster(name.clone())))
}

fn pause(core: &CoordinatorCore, scope: &PauseScope) -> Option<PauseView> {
    let since = core.paused_since(scope)?;
    let note = core.paused_by(scope);
    let reason = note.and_then(|note| note.reason.as_deref());
    Some(pause_view(scope.cluster().as_ref(), since, note.map(|note| note.by.as_str()), reason))
}

/// A request to the core of what a caller asked for.
pub(crate) fn pause_request(pause: Pause, caller: &str) -> PauseRequest {
    let scope = pause.cluster.map_or(PauseScope::Fleet, PauseScope::Cluster);
    PauseRequest { reason: pause.reason, ..PauseRequest::new(scope, caller) }
}

/// Carries out what pausing or resuming led to, and says how repair stands then.
pub(crate) fn paused(
    shell: &mut Shell,
    changed: Result<Vec<Effect>, CommandError>,
) -> Result<Result<RepairStatusView, Problem>, StoreError> {
    match changed {
        Ok(effects) => {
            shell.carry_out(effects)?;
            Ok(Ok(status(&shell.core, shell.now())))
        }
        Err(error) => Ok(Err(fleet::problem(&error))),
    }
}

/// Which repairs of a machine are possible now.
pub(crate) fn options(shell: &Shell, id: &MachineId) -> Result<RepairOptionsView, Problem> {
    let machine = shell.core.machine(id).ok_or_else(|| Problem::machine_not_found(id))?;
    let options = shell.core.repair_options(shell.now(), id).into_iter().map(|(action, checked)| {
        let not_now = checked.err().map(|error| match error {
            CommandError::Held { hold, .. } => NotNow::Held(*hold),
            CommandError::NoUse { why, .. } | CommandError::MachineBusy { why, .. } => NotNow::Other(why),
            other => NotNow::Other(other.to_string()),
        });
        (action, not_now)
    });
    Ok(repair_options_view(id, &machine.row.cluster, options))
}

/// What a repair would do.
pub(crate) fn preview(shell: &Shell, id: MachineId, wish: RepairWish) -> Result<RepairView, Problem> {
    let request = request(id, &wish, String::new());
    let preview = shell.core.preview_repair(shell.now(), &request);
    Ok(repair_view(&preview.map_err(|error| repair_problem(shell, &wish, &error))?, None))
}

/// Begins a repair.
pub(crate) fn begin(
    shell: &mut Shell,
    id: MachineId,
    wish: RepairWish,
    caller: String,
) -> Result<Result<RepairView, Problem>, StoreError> {
    let (now, request) = (shell.now(), request(id, &wish, caller));
    let preview = match shell.core.preview_repair(now, &request) {
        Ok(preview) => preview,
        Err(error) => return Ok(Err(repair_problem(shell, &wish, &error))),
    };
    match shell.core.repair_machine(now, &request) {
        Ok(effects) => {
            shell.carry_out(effects)?;
            let machine = shell.core.machine(&request.machine);
            let incident = machine.and_then(|machine| machine.row.incident.as_ref());
            Ok(Ok(RepairView { begun: true, ..repair_view(&preview, incident) }))
        }
        Err(error) => Ok(Err(repair_problem(shell, &wish, &error))),
    }
}

fn request(machine: MachineId, wish: &RepairWish, caller: String) -> RepairRequest {
    let over = match &wish.against {
        Against::Nothing => Override::None,
        Against::Guards => Override::Guards,
        Against::Quorum { typed } => Override::Quorum { typed: typed.clone() },
    };
    RepairRequest { machine, action: wish.action, over, caller }
}

fn repair_problem(shell: &Shell, wish: &RepairWish, error: &CommandError) -> Problem {
    let CommandError::Held { machine, hold, .. } = error else { return fleet::problem(error) };
    // Whoever accepts what it costs the cluster is asked for that alone.
    if !hold.costs_cluster()
        && let Some(Hold::Busy { machine: other }) = shell.core.plan_hold(machine, wish.action)
    {
        return member_moves(machine, &other);
    }
    match shell.core.machine(machine) {
        Some(found) => repair_held(machine, &found.row.cluster, wish, hold),
        None => Problem::machine_not_found(machine),
    }
}

/// Why the core refused a repair, as far as the error alone says it.
pub(crate) fn problem(error: &CommandError) -> Problem {
    match error {
        CommandError::NoMachine { machine } => Problem::machine_not_found(machine),
        CommandError::MachineBusy { machine, .. } => Problem::new(Code::MachineBusy, error.to_string())
            .remedy(format!("wait until that is done; how far it is: keelson why {machine}")),
        CommandError::NoUse { machine, .. } => Problem::new(Code::RepairUseless, error.to_string())
            .remedy(format!("see which repairs are possible now: keelson why {machine}")),
        other => Problem::new(Code::RepairHeld, other.to_string()),
    }
}
