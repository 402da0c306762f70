//! Calls to the provider, their answers, and the comparison of its list with the blueprints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keelson_model::{BlueprintMachine, FleetEvent, MachinePhase, Role, Severity};
use keelson_planner::node::{API_PORT, API_READY_PATH};
use keelson_protocol::{ClusterName, MachineId};

use crate::effect::{
    CallId, Effect, HealthCheck, ProviderAnswer, ProviderCall, ProviderFailure, Remedy, SeenMachine,
};
use crate::limits::{
    LIST_FAILED_TOLD_AFTER, LIST_INTERVAL, LIST_INTERVAL_SILENT, LIST_LAG_MAX, PROVIDER_CALLS_KEPT,
    PROVIDER_CALLS_MAX, PROVIDER_RETRY_MAX, PROVIDER_RETRY_MIN, REFUSED_RETRY, UNKNOWN_MAX,
};
use crate::row::Counter;
use crate::state::{CallFor, CoordinatorCore, Exposure, Machine, Now};

/// Name of the exposure that leads to the API servers.
pub(crate) const API_EXPOSURE: &str = "api";

/// Delay before try number `attempts + 1`: doubles from [`PROVIDER_RETRY_MIN`] up to [`PROVIDER_RETRY_MAX`].
pub(crate) fn retry_delay(attempts: u32) -> Duration {
    PROVIDER_RETRY_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(PROVIDER_RETRY_MAX)
}

impl CoordinatorCore {
    /// Starts a call; `None` when too many are under way, then a later tick tries again.
    pub(crate) fn call(&mut self, purpose: CallFor, call: ProviderCall) -> Option<CallId> {
        // Machines that come and go by the hundred must not keep addresses waiting, addresses no power, power no fence, and
        // nothing the list, on which each of them depends.
        let kept = match purpose {
            CallFor::Create(_) | CallFor::Delete(_) | CallFor::Orphan(_) => PROVIDER_CALLS_KEPT,
            CallFor::Expose(..) | CallFor::Unexpose(_) => PROVIDER_CALLS_KEPT - 1,
            CallFor::PowerOn(_) => PROVIDER_CALLS_KEPT - 2,
            CallFor::Fence(_) => PROVIDER_CALLS_KEPT - 3,
            CallFor::List => 0,
        };
        let most = PROVIDER_CALLS_MAX - kept;
        if self.calls.len() >= most {
            return None;
        }
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.metrics.provider_calls += 1;
        self.calls.insert(id, purpose);
        self.effects.push(Effect::Provider { id, call });
        Some(id)
    }

    pub(crate) fn on_provider(
        &mut self,
        now: Now,
        id: CallId,
        result: Result<ProviderAnswer, ProviderFailure>,
    ) {
        let Some(purpose) = self.calls.remove(&id) else { return };
        if result.is_err() {
            self.metrics.provider_failures += 1;
        }
        match &purpose {
            CallFor::Create(machine)
            | CallFor::Delete(machine)
            | CallFor::Fence(machine)
            | CallFor::PowerOn(machine) => self.touch(machine),
            CallFor::Expose(cluster, _) | CallFor::Unexpose(cluster) => {
                self.touched.insert(cluster.clone());
            }
            CallFor::Orphan(_) | CallFor::List => {}
        }
        match (purpose, result) {
            (CallFor::Create(machine), Ok(_)) => {
                self.clear_call(&machine, id);
                self.machine_on(now, &machine, false);
            }
            (CallFor::PowerOn(machine), Ok(_)) => {
                self.clear_call(&machine, id);
                self.machine_on(now, &machine, true);
            }
            // That it is not there is for the list to say.
            (CallFor::PowerOn(machine), Err(failure)) => {
                self.machines.get_mut(&machine).into_iter().for_each(|one| one.power_asked = Some(now.mono));
                self.create_failed(now, &machine, ProviderFailure { remedy: Remedy::Retry, ..failure });
                self.give_act_up(now, &machine);
            }
            (CallFor::Fence(machine), Ok(_)) => {
                self.clear_call(&machine, id);
                self.machine_fenced(now, &machine);
            }
            (CallFor::Fence(machine), Err(failure)) => self.fence_failed(now, &machine, failure.text),
            (CallFor::Delete(machine), Ok(_)) => self.machine_deleted(now, &machine),
            (CallFor::Create(machine), Err(failure)) => self.create_failed(now, &machine, failure),
            (CallFor::Delete(machine), Err(failure)) => self.delete_failed(now, &machine, failure),
            (CallFor::Orphan(machine), Ok(_)) => self.orphan_swept(now, &machine),
            (CallFor::List, Ok(ProviderAnswer::Machines(machines))) => {
                self.list_came(now);
                self.compare_list(now, machines);
            }
            (CallFor::List, Err(failure)) => self.list_failed(now, failure.text),
            (CallFor::Orphan(machine), Err(failure)) => self.orphan_stays(now, &machine, failure.text),
            (CallFor::List, Ok(_)) => {}
            (CallFor::Expose(cluster, name), result) => self.exposed(now, id, (&cluster, &name), result),
            (CallFor::Unexpose(cluster), result) => self.unexposed(now, &cluster, result.err()),
        }
    }

    fn clear_call(&mut self, id: &MachineId, call: CallId) {
        if let Some(machine) = self.machines.get_mut(id)
            && machine.call == Some(call)
        {
            machine.call = None;
            machine.refusal = None;
        }
    }

    fn create_failed(&mut self, now: Now, id: &MachineId, failure: ProviderFailure) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.call = None;
        // It has spoken since: what was asked for has come about, and only the answer was lost.
        if matches!(machine.row.phase, MachinePhase::Enrolled { .. }) {
            (machine.attempts, machine.after, machine.refusal) = (0, None, None);
            return;
        }
        machine.attempts += 1;
        machine.refusal = Some(failure.text.clone());
        let delay = retry_delay(machine.attempts);
        let (severity, reason, outcome) = match failure.remedy {
            Remedy::Retry => {
                machine.after = Some(now.mono.plus(delay));
                if !matches!(machine.row.phase, MachinePhase::Off { .. } | MachinePhase::Missing { .. }) {
                    machine.row.phase = MachinePhase::Retrying {
                        why: failure.text.clone(),
                        attempts: machine.attempts,
                        next: now.wall.plus(delay),
                    };
                }
                (Severity::Warning, "ProviderRetry", format!("asked again in {} s", delay.as_secs()))
            }
            // Somebody may have removed the cause, and should not have to say so.
            Remedy::Person => {
                machine.after = Some(now.mono.plus(REFUSED_RETRY));
                let phase = MachinePhase::Refused { why: failure.text.clone() };
                if machine.row.phase == phase {
                    return;
                }
                machine.row.phase = phase;
                let outcome = format!("a person must act; asked again every {} s", REFUSED_RETRY.as_secs());
                (Severity::Alarm, "ProviderRefused", outcome)
            }
        };
        self.save_machine(id);
        let event = self.event_of(now, id, severity, reason);
        self.note(FleetEvent { cause: failure.text, outcome, ..event });
    }

    fn delete_failed(&mut self, now: Now, id: &MachineId, failure: ProviderFailure) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.call = None;
        machine.attempts += 1;
        let delay = retry_delay(machine.attempts);
        machine.after = Some(now.mono.plus(delay));
        let since = match machine.row.phase {
            MachinePhase::Deleting { since, .. } => since,
            _ => now.wall,
        };
        machine.row.phase = MachinePhase::Deleting { since, why: Some(failure.text.clone()) };
        self.save_machine(id);
        let event = self.event_of(now, id, Severity::Warning, "ProviderRetry");
        let outcome = format!("removal is tried again in {} s", delay.as_secs());
        self.note(FleetEvent { cause: failure.text, outcome, ..event });
    }

    pub(crate) fn reconcile_list(&mut self, now: Now) {
        if now.mono < self.next_list || self.calls.values().any(|call| *call == CallFor::List) {
            return;
        }
        if self.call(CallFor::List, ProviderCall::List).is_some() {
            self.list_begun = now.mono;
            let silent = self.machines.values().any(|machine| machine.silent || machine.suspected.is_some());
            let interval = if silent { LIST_INTERVAL_SILENT } else { LIST_INTERVAL };
            self.next_list = now.mono.plus(interval);
        }
    }

    /// Asks for the provider's list at the next tick.
    pub(crate) fn list_soon(&mut self, now: Now) {
        self.next_list = now.mono;
    }

    /// The provider gave no list; the next one is asked for in its time.
    fn list_failed(&mut self, now: Now, why: String) {
        let (since, told) = *self.list_failing.get_or_insert((now.mono, false));
        if told || now.mono.since(since) < LIST_FAILED_TOLD_AFTER {
            return;
        }
        self.list_failing = Some((since, true));
        let event = self.event(now, Severity::Alarm, "ProviderListFailed");
        let outcome =
            "asked again; until it answers nobody knows which machines have power, and silent ones wait";
        self.note(FleetEvent { cause: why, outcome: outcome.to_owned(), ..event });
    }

    fn list_came(&mut self, now: Now) {
        let Some((since, true)) = self.list_failing.take() else { return };
        let event = self.event(now, Severity::Info, "ProviderListBack");
        let cause = format!("the provider lists machines again, after {} s", now.mono.since(since).as_secs());
        self.note(FleetEvent { cause, outcome: "power is known again".to_owned(), ..event });
    }

    fn compare_list(&mut self, now: Now, seen: Vec<SeenMachine>) {
        let mut by_id: BTreeMap<MachineId, SeenMachine> = BTreeMap::new();
        let mut unowned = Vec::new();
        for machine in seen {
            let owned = self.machines.get(&machine.machine);
            if owned.is_some_and(|owned| owned.row.incarnation == machine.incarnation) {
                by_id.insert(machine.machine.clone(), machine);
            } else {
                unowned.push(machine);
            }
        }
        self.notice_newer(&unowned);
        self.sweep_orphans(now, unowned);
        let begun = self.list_begun;
        for seen in by_id.values() {
            let Some(machine) = self.machines.get_mut(&seen.machine) else { continue };
            *(if seen.on { &mut machine.seen_on } else { &mut machine.seen_off }) = Some(begun);
        }
        let settled = self.machines.values().filter(|machine| {
            machine.call.is_none() && machine.on_since.is_none_or(|on| begun >= on.plus(LIST_LAG_MAX))
        });
        let (settled, never_there): (Vec<&Machine>, Vec<&Machine>) = settled.partition(|machine| {
            let off = matches!(machine.row.phase, MachinePhase::Off { .. });
            !off || machine.row.enrolled_key.is_some() || by_id.contains_key(&machine.row.id)
        });
        // What leaves out machines that speak says nothing by leaving others out.
        let speaks = |machine: &&Machine| {
            matches!(machine.row.phase, MachinePhase::Enrolled { .. })
                && self.silent_for(now, machine).is_none()
        };
        let partial = settled.iter().filter(|m| speaks(m)).any(|m| !by_id.contains_key(&m.row.id));
        let listed = |machine: &&Machine| !partial || by_id.contains_key(&machine.row.id);
        let never_there: Vec<MachineId> =
            never_there.iter().filter(|m| listed(m)).map(|machine| machine.row.id.clone()).collect();
        let gone: Vec<(MachineId, bool)> = settled
            .into_iter()
            .filter(listed)
            .filter(|machine| match machine.row.phase {
                MachinePhase::Booting { .. } => by_id.get(&machine.row.id).is_none_or(|seen| !seen.on),
                // Whoever speaks has power: then the list is old.
                MachinePhase::Enrolled { .. } if self.silent_for(now, machine).is_none() => false,
                MachinePhase::Enrolled { .. } => by_id.get(&machine.row.id).is_none_or(|seen| !seen.on),
                // It was off, and now it is not even listed.
                MachinePhase::Off { .. } => !by_id.contains_key(&machine.row.id),
                _ => false,
            })
            .map(|machine| (machine.row.id.clone(), by_id.contains_key(&machine.row.id)))
            .collect();
        for (id, listed) in gone {
            self.machine_off(now, &id, listed);
        }
        for id in never_there {
            self.ask_anew(&id);
        }
        let back: Vec<MachineId> = self
            .machines
            .values()
            .filter(|machine| matches!(machine.row.phase, MachinePhase::Missing { .. }))
            .filter(|machine| by_id.contains_key(&machine.row.id))
            .map(|machine| machine.row.id.clone())
            .collect();
        for id in back {
            // A list that lagged behind: it is as it was.
            if let Some(machine) = self.machines.get_mut(&id) {
                let on = by_id.get(&id).is_some_and(|seen| seen.on);
                machine.row.phase = match on {
                    true => MachinePhase::Enrolled { since: now.wall },
                    false => MachinePhase::Off { since: now.wall },
                };
                machine.off_since = machine.off_since.filter(|_| !on);
                machine.row.fenced = machine.row.fenced.filter(|_| !on);
                self.save_machine(&id);
            }
            self.touch(&id);
        }
    }

    /// A machine without power that never spoke is not even there. Unless it is to go, it is asked for once more; one that
    /// was fenced is made anew, because a fence may have been left where it was.
    fn ask_anew(&mut self, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let planned = self.planned(&machine.row.cluster, id);
        let stays = planned.is_some_and(|p| !p.leaving && p.incarnation == machine.row.incarnation)
            && !machine.row.renew;
        let (name, nothing) = (machine.row.cluster.clone(), self.holds_nothing(id));
        let Some(machine) = self.machines.get_mut(id).filter(|_| stays) else { return };
        if machine.row.fenced.is_some() || machine.row.powering {
            machine.row.renew = true;
            machine.row.forced |= nothing;
            self.plan_soon(&name);
        } else {
            machine.row.phase = MachinePhase::Planned;
        }
        self.save_machine(id);
        self.touch(id);
    }

    /// Machines that are newer than the record of them; what a list once showed is known although the next one leaves it out.
    /// Numbers that would be given once more are left out.
    fn notice_newer(&mut self, unowned: &[SeenMachine]) {
        for seen in unowned {
            let next = self.counters.get(&Counter::Incarnation).copied().unwrap_or(1);
            let given = u64::from(seen.incarnation.0);
            let machine = self.machines.get_mut(&seen.machine);
            if let Some(machine) = machine.filter(|machine| machine.row.incarnation < seen.incarnation) {
                machine.newer = machine.newer.max(Some(seen.incarnation));
            }
            if given >= next {
                self.set_counter(Counter::Incarnation, given + 1);
            }
        }
    }

    /// Removes machines of ours that no row names. One that was replaced goes at once. One of which nothing is known goes when it
    /// has been listed for long, and one that is newer than the record of it stays: an old copy of the database may have been
    /// restored, and then their disks are all that there is of them.
    fn sweep_orphans(&mut self, now: Now, unowned: Vec<SeenMachine>) {
        self.orphans_failed.retain(|id, _| unowned.iter().any(|seen| seen.machine == *id));
        let before = std::mem::take(&mut self.unknown);
        for seen in unowned {
            let known = self.machines.get(&seen.machine).map(|machine| machine.row.incarnation);
            match known {
                Some(newest) if seen.incarnation < newest => self.sweep_orphan(seen),
                Some(_) => {}
                None => {
                    let key = (seen.machine.clone(), seen.incarnation);
                    let since = before.get(&key).copied().unwrap_or(now.mono);
                    self.unknown.insert(key, since);
                    if now.mono.since(since) >= UNKNOWN_MAX {
                        self.sweep_orphan(seen);
                    }
                }
            }
        }
    }

    fn sweep_orphan(&mut self, seen: SeenMachine) {
        let purpose = CallFor::Orphan(seen.machine.clone());
        if self.calls.values().any(|call| *call == purpose) {
            return;
        }
        let call = ProviderCall::Delete {
            machine: seen.machine,
            cluster: seen.cluster,
            incarnation: seen.incarnation,
        };
        self.call(purpose, call);
    }

    fn orphan_swept(&mut self, now: Now, id: &MachineId) {
        self.metrics.orphans_swept += 1;
        self.orphans_failed.remove(id);
        let event = self.event(now, Severity::Warning, "OrphanRemoved");
        self.note(FleetEvent {
            machine: Some(id.clone()),
            cause: "the provider listed a machine of this installation that no blueprint names".to_owned(),
            outcome: "removed".to_owned(),
            ..event
        });
    }

    /// The next list tries again; the same cause is told once.
    fn orphan_stays(&mut self, now: Now, id: &MachineId, why: String) {
        if self.orphans_failed.get(id) == Some(&why) {
            return;
        }
        self.orphans_failed.insert(id.clone(), why.clone());
        let event = self.event(now, Severity::Warning, "OrphanStays");
        self.note(FleetEvent {
            machine: Some(id.clone()),
            cause: why,
            outcome: "a machine of this installation that no blueprint names could not be removed; tried again with each list"
                .to_owned(),
            ..event
        });
    }

    fn machine_off(&mut self, now: Now, id: &MachineId, listed: bool) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        // One that never spoke has nothing that could be lost: asking for it again makes it.
        let gone = !listed && machine.row.enrolled_key.is_some();
        machine.row.phase = if gone {
            MachinePhase::Missing { since: now.wall }
        } else {
            MachinePhase::Off { since: now.wall }
        };
        if gone {
            // Neither power nor another shell helps it any more: it is to be made anew.
            machine.row.acting = None;
        }
        machine.off_since = Some(now.mono);
        machine.evacuated = false;
        let (cluster, session) = (machine.row.cluster.clone(), machine.session);
        if let Some(session) = session {
            // Its connection would seem to stand until it times out.
            let why = "the machine has no power".to_owned();
            self.on_closed(now, session, why.clone());
            self.effects.push(Effect::Close { session, why });
        }
        self.touched.insert(cluster);
        self.save_machine(id);
        // At once, before it is switched on again.
        let census = self.census(now);
        self.detect_machine(now, id, &census);
        let machine = self.machines.get(id);
        let acting = machine.and_then(|machine| machine.row.acting);
        let held = machine.and_then(|machine| self.power_held(now, machine));
        let (reason, cause, outcome) = match held {
            _ if gone => (
                "MachineMissing",
                "the provider does not list it",
                "it is looked for again before it is made anew".to_owned(),
            ),
            None => {
                let what = acting.map_or_else(|| "it is switched on again".to_owned(), |act| act.to_string());
                ("MachineOff", "the provider reports it as off", format!("{what}, with the disk that it has"))
            }
            Some(hold) => {
                ("MachineOff", "the provider reports it as off", format!("it is not switched on yet: {hold}"))
            }
        };
        // With the incident that this has opened.
        self.note_repair(now, id, Severity::Warning, reason, cause, &outcome);
    }

    /// Asks for the exposures that blueprints name and that are not there.
    pub(crate) fn reconcile_exposures(&mut self, now: Now, name: &ClusterName) {
        let wanted = self.wanted_exposures(now, name);
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        if cluster.row.wanted {
            cluster.want_exposures(wanted);
            return self.call_exposures(now, name);
        }
        let due = cluster.unexpose_after.is_none_or(|after| after <= now.mono);
        // One that is being exposed would come after it, and stay.
        let exposing = cluster.exposures.values().any(|exposure| exposure.call.is_some());
        if cluster.unexposed || cluster.unexpose_call.is_some() || exposing || !due {
            return;
        }
        let call = ProviderCall::Unexpose { cluster: name.clone() };
        let call = self.call(CallFor::Unexpose(name.clone()), call);
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.unexpose_call = call;
        }
    }

    /// What a blueprint exposes. API servers say for themselves whether they work; of users' services nothing is known but
    /// the port.
    fn wanted_exposures(&self, now: Now, name: &ClusterName) -> Vec<(String, Vec<SocketAddr>, HealthCheck)> {
        let Some(blueprint) = self.clusters.get(name).map(|cluster| &cluster.row.blueprint) else {
            return Vec::new();
        };
        // A machine that leaves serves until it has nothing more to do: those that stay may be few, new, or broken.
        let addresses = |role: Role, port: u16| -> Vec<SocketAddr> {
            let serves = |machine: &&BlueprintMachine| !machine.leaving || !self.is_done(now, name, machine);
            let machines = blueprint.with_role(role).filter(serves);
            machines.map(|machine| (machine.address, port).into()).collect()
        };
        let ready = HealthCheck::Https { path: API_READY_PATH.to_owned() };
        let mut wanted = vec![(API_EXPOSURE.to_owned(), addresses(Role::Master, API_PORT), ready)];
        for expose in &blueprint.expose {
            let targets = addresses(Role::Worker, expose.node_port);
            wanted.push((expose.name.clone(), targets, HealthCheck::Tcp));
        }
        wanted
    }

    /// Whether the provider is being told where a cluster's services lead, and has not refused.
    pub(crate) fn is_exposing(&self, name: &ClusterName) -> bool {
        let mut exposures =
            self.clusters.get(name).into_iter().flat_map(|cluster| cluster.exposures.values());
        exposures.any(|exposure| !exposure.set && exposure.error.is_none())
    }

    fn call_exposures(&mut self, now: Now, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name) else { return };
        let due: Vec<(String, Exposure)> = cluster
            .exposures
            .iter()
            .filter(|(_, exposure)| !exposure.set && exposure.call.is_none())
            .filter(|(_, exposure)| exposure.after.is_none_or(|after| after <= now.mono))
            .map(|(service, exposure)| (service.clone(), exposure.clone()))
            .collect();
        for (service, Exposure { targets, check, .. }) in due {
            let call = ProviderCall::Expose { cluster: name.clone(), name: service.clone(), targets, check };
            let call = self.call(CallFor::Expose(name.clone(), service.clone()), call);
            let exposure =
                self.clusters.get_mut(name).and_then(|cluster| cluster.exposures.get_mut(&service));
            if let Some(exposure) = exposure {
                exposure.call = call;
            }
        }
    }

    fn exposed(
        &mut self,
        now: Now,
        call: CallId,
        (cluster, service): (&ClusterName, &str),
        result: Result<ProviderAnswer, ProviderFailure>,
    ) {
        let exposure = self.clusters.get_mut(cluster).and_then(|cluster| cluster.exposures.get_mut(service));
        let Some(exposure) = exposure.filter(|exposure| exposure.call == Some(call)) else { return };
        exposure.call = None;
        let stale = std::mem::take(&mut exposure.stale);
        match result {
            Ok(ProviderAnswer::Exposed(address)) => {
                exposure.address = Some(address);
                exposure.set = !stale;
                exposure.error = None;
                exposure.attempts = 0;
            }
            Ok(_) => {}
            Err(_) if stale => {}
            Err(failure) => {
                exposure.attempts += 1;
                exposure.after = Some(now.mono.plus(retry_delay(exposure.attempts)));
                exposure.error = Some(failure.text);
            }
        }
    }

    fn unexposed(&mut self, now: Now, name: &ClusterName, failure: Option<ProviderFailure>) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        cluster.unexpose_call = None;
        cluster.unexposed = failure.is_none();
        let Some(ProviderFailure { text, .. }) = failure else {
            (cluster.unexpose_after, cluster.unexpose_error) = (None, None);
            return;
        };
        cluster.unexpose_attempts += 1;
        let delay = retry_delay(cluster.unexpose_attempts);
        cluster.unexpose_after = Some(now.mono.plus(delay));
        if cluster.unexpose_error.replace(text.clone()).as_ref() == Some(&text) {
            return;
        }
        let event = self.event(now, Severity::Warning, "ProviderRetry");
        let outcome =
            format!("the address of its API server is given up later; asked again in {} s", delay.as_secs());
        self.note(FleetEvent { cluster: Some(name.clone()), cause: text, outcome, ..event });
    }
}

impl crate::state::Cluster {
    /// Takes over the list of exposures; what changed is asked for again. Where users reach it stays the same meanwhile.
    fn want_exposures(&mut self, wanted: Vec<(String, Vec<SocketAddr>, HealthCheck)>) {
        self.exposures.retain(|name, _| wanted.iter().any(|(other, ..)| other == name));
        for (name, targets, check) in wanted {
            let before = self.exposures.get(&name);
            if !before.is_some_and(|before| before.targets == targets && before.check == check) {
                let after = Exposure::new(targets, check, before);
                self.exposures.insert(name, after);
            }
        }
    }
}
