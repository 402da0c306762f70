//! Sessions of the link: who may speak, what was heard, and who fell silent.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use keelson_model::{FleetEvent, LinkState, MachinePhase, Severity, Verdict};
use keelson_protocol::health::{AgentEvent, EventKind, Facts, Heartbeat, NodeState};
use keelson_protocol::limits::SILENT_AFTER;
use keelson_protocol::message::{Refusal, RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::wire::negotiate;
use keelson_protocol::{BootId, ClusterName, Generation, Incarnation, MachineId};

use crate::effect::{Effect, SessionId};
use crate::limits::{
    BACKLOG_MAX, CLOCK_STEP_MIN, FENCE_SETTLES, FIRST_HEARTBEAT_MAX, REFUSAL_TOLD_EVERY, REFUSALS_TOLD_MAX,
    RENEWED_KEYS_MAX, SECOND_HOLDER_AFTER, TICK_GAP_MAX, WARM_UP,
};
use crate::metrics::AgentRepair;
use crate::replan::said_that_its_member_serves;
use crate::row::MachineRow;
use crate::state::{CoordinatorCore, Machine, Now, Voice};

impl CoordinatorCore {
    pub(crate) fn on_opened(
        &mut self,
        now: Now,
        session: SessionId,
        id: &MachineId,
        incarnation: Incarnation,
        hello: ToCoordinator,
    ) {
        let ToCoordinator::Hello { version_min, version_max, boot, generation, facts } = hello else {
            let why = "the first message was no hello".to_owned();
            return self.effects.push(Effect::Close { session, why });
        };
        if let Err(refusal) = self.check_session(now, id, incarnation, boot) {
            return self.refuse_session(now, session, id, refusal);
        }
        if let Some(fenced) = self.machines.get(id).and_then(|machine| machine.row.fenced)
            && now.wall.since(fenced) < FENCE_SETTLES
        {
            // It was on its way when the power went. A machine that lives all the same opens another one.
            let why = "the machine's power was taken away".to_owned();
            return self.effects.push(Effect::Close { session, why });
        }
        match negotiate(version_min, version_max) {
            Ok(version) => {
                self.accept_session(now, session, id, boot, *facts);
                self.send(session, ToAgent::Welcome { version, now: now.wall });
                if let Some(machine) = self.machines.get_mut(id) {
                    machine.told = generation;
                }
            }
            Err(error) => {
                let refusal = Refusal { code: RefusalCode::Version, text: error.to_string() };
                self.refuse_session(now, session, id, refusal);
            }
        }
    }

    fn check_session(
        &self,
        now: Now,
        id: &MachineId,
        incarnation: Incarnation,
        boot: BootId,
    ) -> Result<(), Refusal> {
        let refuse = |code, text: String| Err(Refusal { code, text });
        let Some(machine) = self.machines.get(id) else {
            return refuse(
                RefusalCode::UnknownMachine,
                format!("no blueprint names {id}; it will be removed"),
            );
        };
        self.check_incarnation(&machine.row, incarnation)?;
        let Some(last) = self.last_heard(machine) else { return Ok(()) };
        let alive = machine.session.is_some() && now.mono.since(last) < SECOND_HOLDER_AFTER;
        let same_boot = machine.boot == Some(boot);
        if alive && !same_boot {
            return refuse(
                RefusalCode::SecondHolder,
                format!(
                    "another live machine holds the identity {id}; it was cloned, or it rebooted just now"
                ),
            );
        }
        Ok(())
    }

    /// Whether a machine is the one of its id that is in force, or why not. What is planned cannot be taken back: one whose
    /// successor is, but not made yet, was replaced already.
    pub(crate) fn check_incarnation(
        &self,
        row: &MachineRow,
        incarnation: Incarnation,
    ) -> Result<(), Refusal> {
        let id = &row.id;
        let planned = self.planned(&row.cluster, id).map(|planned| planned.incarnation);
        let newest = planned.map_or(row.incarnation, |planned| planned.max(row.incarnation));
        let (code, text) = match incarnation.cmp(&newest) {
            Ordering::Equal => return Ok(()),
            Ordering::Less => (
                RefusalCode::OldIncarnation,
                format!("{id} was replaced: this is incarnation {incarnation}, {newest} is in force"),
            ),
            // No machine is newer than the coordinator's own record, unless that is not the newest.
            Ordering::Greater => (
                RefusalCode::UnknownMachine,
                format!(
                    "incarnation {incarnation} of {id} is not known, only {newest}: was an old copy of the database restored?"
                ),
            ),
        };
        Err(Refusal { code, text })
    }

    /// Whether that a machine was refused so is to be told: its agent asks again and again, and others may ask in any name.
    pub(crate) fn is_news(&mut self, now: Now, id: &MachineId, refusal: &Refusal) -> bool {
        self.refusals.retain(|_, (_, told)| now.mono.since(*told) < REFUSAL_TOLD_EVERY);
        let known = self.refusals.get(id).is_some_and(|(told, _)| told == refusal);
        let room = self.machines.contains_key(id) || self.refusals.len() < REFUSALS_TOLD_MAX;
        let news = !known && room;
        if news {
            self.refusals.insert(id.clone(), (refusal.clone(), now.mono));
        }
        news
    }

    fn refuse_session(&mut self, now: Now, session: SessionId, id: &MachineId, refusal: Refusal) {
        self.metrics.sessions_refused += 1;
        if self.is_news(now, id, &refusal) {
            let event = self.event_of(now, id, Severity::Alarm, "SessionRefused");
            let outcome = match refusal.code {
                RefusalCode::OldIncarnation => "the session was ended; that machine switches itself off",
                _ => "the session was ended",
            };
            let (cause, outcome) = (refusal.to_string(), outcome.to_owned());
            self.note(FleetEvent { cause, outcome, ..event });
        }
        self.send(session, ToAgent::Refused(refusal));
        let why = "refused".to_owned();
        self.effects.push(Effect::Close { session, why });
    }

    fn accept_session(&mut self, now: Now, session: SessionId, id: &MachineId, boot: BootId, facts: Facts) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let heard_before = machine.speaks();
        if let Some(old) = machine.session.replace(session) {
            let said = self.sessions.remove(&old).and_then(|voice| voice.heartbeat);
            machine.heartbeat = said.or(machine.heartbeat);
            let why = "the machine opened another session".to_owned();
            self.effects.push(Effect::Close { session: old, why });
        }
        self.metrics.sessions_opened += 1;
        machine.link = LinkState::Connected { since: now.wall, boot };
        machine.facts = Some(Arc::new(facts));
        machine.other_key = None;
        if machine.boot.replace(boot) != Some(boot) {
            // What it said before it booted is no longer true.
            (machine.heartbeat, machine.health, machine.applies_since) = (None, None, None);
        }
        machine.spoke = heard_before && machine.heartbeat.is_some();
        let heartbeat = machine.heartbeat;
        // A machine that speaks has power, whatever an older list said.
        if matches!(machine.row.phase, MachinePhase::Off { .. } | MachinePhase::Missing { .. }) {
            machine.row.phase = MachinePhase::Enrolled { since: now.wall };
            (machine.off_since, machine.refusal) = (None, None);
            // Whatever was being done to it has come to its end.
            self.acted(now, id);
            self.save_machine(id);
        }
        let voice = Voice { machine: id.clone(), heard: now.mono, heartbeat, beats: false, awaited: false };
        self.sessions.insert(session, voice);
        self.touch(id);
        self.someone_returned(now);
        self.end_silence(now, id);
    }

    pub(crate) fn send(&mut self, session: SessionId, message: ToAgent) {
        self.effects.push(Effect::Send { session, message: Box::new(message) });
    }

    /// Takes a heartbeat: the one input that comes 20,000 times a second. It touches the cluster only when something
    /// that it tells has changed.
    pub(crate) fn on_heartbeat(&mut self, now: Now, session: SessionId, heartbeat: Heartbeat) {
        self.metrics.heartbeats += 1;
        let is_news = self.has_caught_up(now);
        let Some(voice) = self.sessions.get_mut(&session) else { return };
        voice.heard = now.mono;
        let first = !std::mem::replace(&mut voice.beats, true);
        let before = voice.heartbeat.replace(heartbeat);
        if let Some(before) = before
            && before.boot == heartbeat.boot
        {
            self.metrics.heartbeats_lost += heartbeat.sequence.saturating_sub(before.sequence + 1);
        }
        let told = |heartbeat: Heartbeat| (heartbeat.boot, heartbeat.generation, heartbeat.state);
        let changed = before.map(told) != Some(told(heartbeat));
        // Also of a session that began in a backlog: its next word counts.
        let awaited = std::mem::replace(&mut voice.awaited, !is_news) && is_news;
        if !awaited && !changed && !first {
            return;
        }
        let id = voice.machine.clone();
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.heartbeat = Some(heartbeat);
            machine.spoke |= is_news;
            let applies = heartbeat.state == NodeState::Applying;
            machine.applies_since = applies.then(|| machine.applies_since.unwrap_or(now.mono));
        }
        self.touch(&id);
        self.end_silence(now, &id);
    }

    /// A machine wants another certificate for its link. What key it may hold from now on is written down first.
    pub(crate) fn on_renew_link(
        &mut self,
        session: SessionId,
        signing_request: Vec<u8>,
        key_hash: Option<String>,
    ) {
        let Some(id) = self.sessions.get(&session).map(|voice| voice.machine.clone()) else { return };
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(key_hash) = key_hash.filter(|key_hash| !machine.row.renewed_keys.contains(key_hash)) {
            machine.row.renewed_keys.push(key_hash);
            let surplus = machine.row.renewed_keys.len().saturating_sub(RENEWED_KEYS_MAX);
            machine.row.renewed_keys.drain(..surplus);
        }
        let incarnation = machine.row.incarnation;
        self.save_machine(&id);
        self.effects.push(Effect::RenewLink { session, machine: id, incarnation, signing_request });
    }

    pub(crate) fn on_message(&mut self, now: Now, session: SessionId, message: ToCoordinator) {
        self.metrics.messages += 1;
        let Some(id) = self.sessions.get(&session).map(|voice| voice.machine.clone()) else { return };
        match message {
            ToCoordinator::Hello { .. } => {
                let why = "a second hello came".to_owned();
                self.effects.push(Effect::Close { session, why });
            }
            ToCoordinator::Health(report) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    let served = said_that_its_member_serves(machine);
                    machine.health = Some(Arc::new(*report));
                    let fell = served && !said_that_its_member_serves(machine);
                    let cluster = self.clusters.get_mut(&machine.row.cluster).filter(|_| fell);
                    if let Some(cluster) = cluster {
                        cluster.etcd.fell = Some(now.mono);
                    }
                }
                self.touch(&id);
            }
            ToCoordinator::Events(events) => self.on_events(session, &id, events),
            ToCoordinator::SignCertificate { name, generation, signing_request } => {
                self.on_sign(session, &id, name, generation, signing_request);
            }
            ToCoordinator::RenewLink { signing_request } => {
                self.on_renew_link(session, signing_request, None);
            }
            ToCoordinator::TimeRequest { asked_at } => {
                self.send(session, ToAgent::Time { asked_at, now: now.wall });
            }
            ToCoordinator::PeersProbed { id: question, answers } => {
                self.on_peers_probed(now, session, &id, question, answers);
            }
        }
    }

    /// Writes down events that are new, and says how far that got.
    fn on_events(&mut self, session: SessionId, id: &MachineId, events: Vec<AgentEvent>) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let cluster = machine.row.cluster.clone();
        let known = machine.row.agent_events;
        let Some(through) = events.last().map(|event| event.sequence) else { return };
        machine.row.agent_events = known.max(through);
        let incident = machine.row.incident.as_ref().map(|incident| incident.number);
        for event in events.into_iter().filter(|event| event.sequence > known) {
            if let Some(repair) = AgentRepair::of(event.kind) {
                *self.metrics.agent_repairs.entry(repair).or_default() += 1;
            }
            self.note(FleetEvent {
                id: 0,
                at: event.at,
                severity: severity(event.kind),
                reason: format!("{:?}", event.kind),
                cluster: Some(cluster.clone()),
                machine: Some(id.clone()),
                incident,
                cause: format!("{}: {}", event.subject, event.cause),
                outcome: event.outcome,
            });
        }
        if through > known {
            self.save_machine(id);
        }
        self.send(session, ToAgent::EventsStored { through });
    }

    /// Lets a certificate be signed that the machine's blueprint names; the names come from there, not from the request.
    fn on_sign(
        &mut self,
        session: SessionId,
        id: &MachineId,
        name: String,
        generation: Generation,
        signing_request: Vec<u8>,
    ) {
        let Some(cluster) = self.machines.get(id).map(|machine| machine.row.cluster.clone()) else { return };
        let config = self.rendered(&cluster, id);
        let spec = config.and_then(|c| c.certificates.iter().find(|spec| spec.name == name)).cloned();
        let newest = config.map(|config| config.generation);
        // One that waits for its turn to get the newest config, perhaps for days, renews what it has meanwhile.
        let told = self.machines.get(id).and_then(|machine| machine.told);
        match (newest, spec) {
            (Some(newest), Some(spec)) if newest == generation || told == Some(generation) => {
                self.metrics.certificates_signed += 1;
                self.effects.push(Effect::SignLeaf {
                    session,
                    cluster,
                    spec: Box::new(spec),
                    signing_request,
                });
            }
            (Some(newest), _) => {
                let why = format!(
                    "generation {generation} of this machine's config has no certificate {name} that is still wanted; the newest is {newest}"
                );
                self.send(session, ToAgent::CertificateRefused { name, why });
            }
            (None, _) => {
                let why = "no blueprint names this machine".to_owned();
                self.send(session, ToAgent::CertificateRefused { name, why });
            }
        }
    }

    pub(crate) fn on_closed(&mut self, now: Now, session: SessionId, why: String) {
        let Some(Voice { machine: id, heard, heartbeat, .. }) = self.sessions.remove(&session) else {
            return;
        };
        if let Some(machine) = self.machines.get_mut(&id)
            && machine.session == Some(session)
        {
            machine.session = None;
            machine.heard_before = Some(heard);
            machine.heartbeat = heartbeat.or(machine.heartbeat);
            machine.link = LinkState::Lost { since: now.wall, why };
            self.touch(&id);
        }
    }

    pub(crate) fn on_tick(&mut self, now: Now) {
        self.notice_gap(now);
        let warm = self.warm(now);
        let silent: Vec<MachineId> = self
            .machines
            .values()
            .filter(|machine| !machine.silent && matches!(machine.row.phase, MachinePhase::Enrolled { .. }))
            .filter(|machine| match self.last_heard(machine).filter(|_| !self.may_return(machine)) {
                Some(last) => now.mono.since(last.max(self.listening_since)) >= self.silence_allowed(machine),
                // Not heard since the coordinator started, or was held up: it may be on its way back. Or it is new, and has
                // just been given its certificate.
                None => warm && !self.is_new(now, machine),
            })
            .map(|machine| machine.row.id.clone())
            .collect();
        for id in silent {
            self.begin_silence(now, &id);
        }
        self.detect(now);
        self.touch_unsettled();
        self.look_at_due_nodes(now);
        self.forget_old(now);
    }

    /// A wall clock that was set back must not leave times behind that have not come yet; and one that was set ahead must not
    /// make old what happened a moment ago.
    pub(crate) fn notice_wall_clock(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.last_look, now);
        if before.wall > now.wall {
            self.machines.values_mut().for_each(|machine| machine.wall_was_set_back(now.wall));
            return;
        }
        let ahead = now.wall.since(before.wall).saturating_sub(now.mono.since(before.mono));
        if ahead < CLOCK_STEP_MIN {
            return;
        }
        self.machines.values_mut().for_each(|machine| machine.wall_was_set_ahead(ahead));
        // The next process has to know it as well, of what limits it.
        let counts = |row: &MachineRow| {
            !row.acts.is_empty()
                || row.incident.is_some()
                || row.fenced.is_some()
                || row.leaving_since.is_some()
        };
        let ids: Vec<MachineId> = self
            .machines
            .values()
            .filter(|machine| counts(&machine.row))
            .map(|machine| machine.row.id.clone())
            .collect();
        ids.iter().for_each(|id| self.save_machine(id));
    }

    /// Whether a machine has enrolled a moment ago.
    fn is_new(&self, now: Now, machine: &Machine) -> bool {
        matches!(machine.row.phase, MachinePhase::Enrolled { since } if now.wall.since(since) < FIRST_HEARTBEAT_MAX)
    }

    /// Whether a machine lost its session while the coordinator did not listen.
    fn may_return(&self, machine: &Machine) -> bool {
        machine.session.is_none() && machine.heard_before.is_some_and(|heard| heard < self.listening_since)
    }

    /// How long a machine may be silent before that is told.
    fn silence_allowed(&self, machine: &Machine) -> Duration {
        let voice = machine.session.and_then(|session| self.sessions.get(&session));
        if voice.is_some_and(|voice| !voice.beats) { FIRST_HEARTBEAT_MAX } else { SILENT_AFTER }
    }

    /// A coordinator that was held up (frozen, swapped out, moved to another host) heard nobody meanwhile: silence then
    /// begins to count when it listens again.
    fn notice_gap(&mut self, now: Now) {
        let gap = now.mono.since(self.last_tick);
        self.last_tick = now.mono;
        if gap < TICK_GAP_MAX {
            return;
        }
        self.listening_since = now.mono;
        // Sessions may have ended meanwhile, so the fleet returns as after a start. What is read next was said meanwhile, by
        // machines that may be gone since: they are counted on again when they say something new.
        self.returning_until = self.returning_until.max(now.mono.plus(WARM_UP));
        self.sessions.values_mut().for_each(|voice| voice.awaited = true);
        self.machines.values_mut().for_each(|machine| machine.spoke = false);
        let event = self.event(now, Severity::Warning, "CoordinatorHeldUp");
        self.note(FleetEvent {
            cause: format!("the coordinator did not run for {:.1} s", gap.as_secs_f64()),
            outcome:
                "machines are not called silent for that time; if it comes again, give its host more CPU"
                    .to_owned(),
            ..event
        });
    }

    /// Whether what comes now was said now, and not while the coordinator was held up.
    fn has_caught_up(&self, now: Now) -> bool {
        let listens = now.mono.since(self.last_tick) < TICK_GAP_MAX;
        let is_over = || now.mono.since(self.listening_since) >= BACKLOG_MAX;
        listens && (self.listening_since == self.started || is_over())
    }

    /// Clusters with something that may be due: a call to repeat, or a machine on its way.
    fn touch_unsettled(&mut self) {
        let on_its_way =
            |machine: &&crate::state::Machine| !matches!(machine.row.phase, MachinePhase::Enrolled { .. });
        let machines = self.machines.values().filter(on_its_way).map(|machine| machine.row.cluster.clone());
        let mut touched: Vec<ClusterName> = machines.collect();
        let clusters = self.clusters.values().filter(|cluster| {
            !cluster.row.wanted
                || cluster.busy
                || cluster.exposures.is_empty()
                || cluster.exposures.values().any(|e| !e.set)
        });
        touched.extend(clusters.map(|cluster| cluster.row.spec.name.clone()));
        self.touched.extend(touched);
    }

    fn begin_silence(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.silent = true;
        let (cluster, session) = (machine.row.cluster.clone(), machine.session);
        let heard = self.machines.get(id).and_then(|machine| self.last_heard(machine));
        if let Some(voice) = session.and_then(|session| self.sessions.get_mut(&session)) {
            voice.awaited = true;
        }
        self.touched.insert(cluster);
        let last = match heard {
            Some(last) => format!("its last heartbeat came {} ms ago", now.mono.since(last).as_millis()),
            None => "it was not heard since the coordinator started".to_owned(),
        };
        self.metrics.machines_silent += 1;
        self.list_soon(now);
        let event = self.event_of(now, id, Severity::Warning, "MachineSilent");
        let outcome = "the provider is asked whether it has power; nothing is replaced on silence alone";
        self.note(FleetEvent { cause: last, outcome: outcome.to_owned(), ..event });
    }

    fn end_silence(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        if !std::mem::take(&mut machine.silent) {
            return;
        }
        // What was thought of it is of before. Where it falls silent again before it is judged, it may serve all the same.
        if machine.verdict.is_dead() {
            machine.verdict = Verdict::Undecided;
        }
        let event = self.event_of(now, id, Severity::Info, "MachineBack");
        let (cause, outcome) = ("its heartbeats came again".to_owned(), "it is watched as before".to_owned());
        self.note(FleetEvent { cause, outcome, ..event });
    }
}

/// How much an agent's event matters to an operator.
fn severity(kind: EventKind) -> Severity {
    match kind {
        EventKind::AgentStarted
        | EventKind::ConfigAccepted
        | EventKind::UnitStarted
        | EventKind::UnitHealthy
        | EventKind::CertificateIssued
        | EventKind::PeersBack
        | EventKind::FenceLifted => Severity::Info,
        EventKind::ConfigRefused
        | EventKind::UnitFailed
        | EventKind::Repaired
        | EventKind::CertificateRefused
        | EventKind::Pressure
        | EventKind::ActionFailed
        | EventKind::EventsDropped
        | EventKind::PeersLost
        | EventKind::ClockWrong
        | EventKind::RepairDue => Severity::Warning,
        EventKind::RepairWithheld | EventKind::RepairFailed | EventKind::Fenced => Severity::Alarm,
    }
}
