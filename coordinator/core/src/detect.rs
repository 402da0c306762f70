//! Failure detection: from evidence to a verdict. Silence is where it begins and never where it ends.
//!
//! A machine is called hung only when channels that do not depend on each other agree: its heartbeats, its peers, its
//! node's lease; and when somebody of its zone is heard, so that the zone is not what is broken. The infrastructure's
//! word on power needs no other witness. Everything else is a reason to wait and to ask again.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_model::{
    Evidence, HeartbeatSeen, LeaseSeen, LinkState, MachinePhase, PeersSeen, PowerSeen, Verdict,
};
use keelson_protocol::health::NodeState;
use keelson_protocol::limits::SILENT_AFTER;
use keelson_protocol::peer::PeerSaid;
use keelson_protocol::{ClusterName, MachineId, MonoTime};

use crate::limits::{
    FLEET_JUDGED_MIN, HUNG_AFTER, HUNG_ALONE_AFTER, LEASE_STALE_AFTER, OTHER_KEY_ALONE_AFTER,
    PEER_ANSWER_LIFE, PEERS_ASK_INTERVAL, PEERS_ASK_INTERVAL_LONG, RETURN_MAX, SUSPECT_AFTER, UNBORN_AFTER,
    WITNESS_MAX,
};
use crate::state::{CoordinatorCore, Machine, Now};

/// What a machine is judged by beside its own evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// State of its last heartbeat.
    pub(crate) state: Option<NodeState>,
    /// How long it has been silent; `None` while its heartbeats come.
    pub(crate) silent_for: Option<Duration>,
    /// Whether most of the fleet is silent.
    pub(crate) fleet_silent: bool,
    /// For how long it has been asking to enrol again, with another key: the way to it is whole, and what it was is gone.
    /// Or somebody else has its token, which only others can tell.
    pub(crate) forgot_for: Option<Duration>,
    /// Whether it fell silent with others of which some came back a moment ago, so that it may be on its way.
    pub(crate) may_follow: bool,
    /// Whether the cluster has no other machine that could be asked, and its API server does not answer either.
    pub(crate) alone_and_dark: bool,
    /// How long ago a peer last reached it since it fell silent.
    pub(crate) reached_for: Option<Duration>,
    /// Whether it was switched on long ago and never asked for its certificate.
    pub(crate) unborn: bool,
}

/// The verdict on a machine.
pub(crate) fn judge(evidence: &Evidence, heard: Heard) -> Verdict {
    let Some(silent_for) = heard.silent_for else {
        return match heard.state {
            _ if heard.unborn => Verdict::Hung,
            Some(NodeState::Failed) => Verdict::GivenUp,
            Some(NodeState::Degraded) => Verdict::Repairing,
            _ => Verdict::Well,
        };
    };
    match evidence.power {
        PowerSeen::Off => return Verdict::Off,
        // Who is reached is there, whatever a list says.
        PowerSeen::Missing if evidence.peers.reached > 0 => return Verdict::CutOff,
        PowerSeen::Missing => return Verdict::Missing,
        PowerSeen::On | PowerSeen::Unknown => {}
    }
    if silent_for < SILENT_AFTER {
        return Verdict::Suspected;
    }
    if evidence.peers.reached > 0 {
        return Verdict::CutOff;
    }
    if let Some(forgot_for) = heard.forgot_for
        && evidence.lease != LeaseSeen::Fresh
    {
        let asked = evidence.peers.refused + evidence.peers.silent > 0 || forgot_for >= OTHER_KEY_ALONE_AFTER;
        return if asked { Verdict::AgentDown } else { Verdict::Suspected };
    }
    if heard.fleet_silent {
        return Verdict::FleetSilent;
    }
    if evidence.zone_others > 0 && evidence.zone_heard == 0 {
        return Verdict::ZoneSilent;
    }
    if evidence.peers.refused > 0 {
        return Verdict::AgentDown;
    }
    if evidence.lease == LeaseSeen::Fresh {
        return Verdict::CutOff;
    }
    let nobody = evidence.peers.silent > 0 || heard.alone_and_dark;
    // Without another machine in its zone nothing tells a broken zone from a broken machine, so that takes longer.
    let patience =
        if evidence.zone_heard > 0 && !heard.alone_and_dark { HUNG_AFTER } else { HUNG_ALONE_AFTER };
    // Silent to its peers as well, and for as long: where a whole zone falls silent, they are the first to notice.
    let silent = silent_for >= patience && heard.reached_for.is_none_or(|ago| ago >= patience);
    if evidence.power == PowerSeen::On && nobody && silent && !heard.may_follow {
        return Verdict::Hung;
    }
    Verdict::Undecided
}

/// How many machines of a zone are heard, of how many that have enrolled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) heard: u32,
    pub(crate) total: u32,
}

/// The fleet as a whole, counted once for all verdicts of a tick.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    pub(crate) zones: BTreeMap<String, Count>,
    pub(crate) fleet: Count,
}

impl Census {
    /// Whether so much is silent that the coordinator itself is the likely cause.
    fn fleet_silent(&self) -> bool {
        self.fleet.total >= FLEET_JUDGED_MIN && self.fleet.heard * 2 < self.fleet.total
    }
}

impl CoordinatorCore {
    /// Judges every machine that is not known to be well, asks for evidence that is missing, and does what follows.
    pub(crate) fn detect(&mut self, now: Now) {
        if !self.warm(now) {
            return;
        }
        let suspects: Vec<MachineId> = self
            .machines
            .values()
            .filter(|machine| {
                machine.verdict != Verdict::Well
                    || machine.repair.is_some()
                    || machine.row.acting.is_some()
                    || machine.row.renew
                    || machine.row.incident.is_some()
                    || !self.seems_well(now, machine)
            })
            .map(|machine| machine.row.id.clone())
            .collect();
        if suspects.is_empty() {
            return;
        }
        let census = self.census(now);
        for id in suspects {
            self.detect_machine(now, &id, &census);
        }
    }

    /// Whether a machine is heard and says nothing bad: the quick answer for nearly all of them.
    fn seems_well(&self, now: Now, machine: &Machine) -> bool {
        let bad = |state| matches!(state, NodeState::Failed | NodeState::Degraded);
        match machine.row.phase {
            MachinePhase::Off { .. } | MachinePhase::Missing { .. } => false,
            MachinePhase::Booting { .. } => !is_unborn(now, machine),
            MachinePhase::Enrolled { .. } => {
                self.silent_for(now, machine).is_none()
                    && !machine.heartbeat.is_some_and(|heartbeat| bad(heartbeat.state))
            }
            _ => true,
        }
    }

    pub(crate) fn detect_machine(&mut self, now: Now, id: &MachineId, census: &Census) {
        let Some(machine) = self.machines.get(id) else { return };
        let evidence = self.evidence(now, machine, census);
        let heard = Heard {
            state: machine.heartbeat.map(|heartbeat| heartbeat.state),
            silent_for: self.silent_for(now, machine),
            fleet_silent: census.fleet_silent(),
            forgot_for: self.forgot_itself(machine).map(|since| now.mono.since(since)),
            may_follow: self.may_follow(now, machine),
            alone_and_dark: self.is_alone_and_dark(machine),
            reached_for: machine.reached_at.map(|at| now.mono.since(at)),
            unborn: is_unborn(now, machine),
        };
        let verdict = judge(&evidence, heard);
        if evidence.peers.reached > 0
            && let Some(machine) = self.machines.get_mut(id)
        {
            machine.reached_at = Some(now.mono);
        }
        self.gather(now, id, verdict);
        self.judged(now, id, verdict, evidence);
        self.reconcile_repair(now, id, census);
    }

    /// Asks whoever can say more.
    fn gather(&mut self, now: Now, id: &MachineId, verdict: Verdict) {
        let unheard = matches!(
            verdict,
            Verdict::Suspected
                | Verdict::CutOff
                | Verdict::AgentDown
                | Verdict::ZoneSilent
                | Verdict::FleetSilent
                | Verdict::Undecided
                | Verdict::Hung
        );
        let Some(machine) = self.machines.get_mut(id).filter(|_| unheard) else { return };
        let silent_for = machine.suspected.map(|since| now.mono.since(since)).unwrap_or_default();
        let interval =
            if silent_for < HUNG_ALONE_AFTER { PEERS_ASK_INTERVAL } else { PEERS_ASK_INTERVAL_LONG };
        if machine.peers_asked.is_some_and(|asked| now.mono.since(asked) < interval) {
            return;
        }
        let first = machine.peers_asked.is_none();
        machine.peers_asked = Some(now.mono);
        let cluster = machine.row.cluster.clone();
        self.ask_peers(now, id);
        self.look_at_nodes_soon(&cluster);
        if first {
            self.list_soon(now);
        }
    }

    /// How long a machine has been silent; `None` while nothing is wrong with its heartbeats.
    pub(crate) fn silent_for(&self, now: Now, machine: &Machine) -> Option<Duration> {
        if !matches!(machine.row.phase, MachinePhase::Enrolled { .. }) {
            // It has no power, or is being made: nobody expects heartbeats.
            let powerless =
                matches!(machine.row.phase, MachinePhase::Off { .. } | MachinePhase::Missing { .. });
            return powerless.then_some(Duration::ZERO);
        }
        let heard = self.last_heard(machine);
        // One that has spoken since it was switched on has booted, and its silence is that of any other.
        let spoke = machine.on_since.zip(heard).is_some_and(|(on, heard)| heard > on);
        if machine.boots_until.is_some_and(|until| now.mono < until && !spoke)
            && (machine.silent || machine.session.is_none())
        {
            // It was switched on a moment ago, and boots.
            return Some(SUSPECT_AFTER);
        }
        let last = heard.or(machine.silent.then_some(self.started))?.max(self.listening_since);
        let late = now.mono.since(last);
        if machine.silent {
            return Some(late.max(SUSPECT_AFTER));
        }
        let voice = machine.session.and_then(|session| self.sessions.get(&session));
        (late >= SUSPECT_AFTER && voice.is_none_or(|voice| voice.beats)).then_some(late)
    }

    /// The zone of a machine. Rows of older coordinators do not have it.
    fn zone_of<'a>(&'a self, machine: &'a Machine) -> &'a str {
        let planned = || self.planned(&machine.row.cluster, &machine.row.id);
        let known = Some(machine.row.zone.as_str()).filter(|zone| !zone.is_empty());
        known.or_else(|| planned().map(|planned| planned.zone.as_str())).unwrap_or_default()
    }

    /// Whether a machine is heard. Of one that is being removed nobody expects heartbeats; that they come tells all the same.
    fn is_heard_now(&self, now: Now, machine: &Machine) -> bool {
        let silent_for = |last: MonoTime| now.mono.since(last.max(self.listening_since));
        let late = || self.last_heard(machine).is_none_or(|last| silent_for(last) >= SUSPECT_AFTER);
        let goes = matches!(machine.row.phase, MachinePhase::Deleting { .. });
        machine.is_heard() && self.silent_for(now, machine).is_none() && !(goes && late())
    }

    /// Whether a machine is silent because it is being removed. One that was silent before tells as much as any other; but one
    /// that cannot be removed does not speak against others for ever.
    fn was_silenced(&self, now: Now, machine: &Machine) -> bool {
        let MachinePhase::Deleting { since, .. } = machine.row.phase else { return false };
        let goes_for = now.wall.since(since);
        let silent_for = self.last_heard(machine).map(|last| now.mono.since(last));
        let before = silent_for.is_none_or(|silent_for| silent_for >= goes_for + SUSPECT_AFTER);
        !self.is_heard_now(now, machine) && (!before || goes_for >= WITNESS_MAX)
    }

    /// Counts who is heard.
    pub(crate) fn census(&self, now: Now) -> Census {
        let mut census = Census::default();
        for machine in self.machines.values() {
            if machine.row.enrolled_key.is_none() {
                continue;
            }
            // One on its way out that has no power was switched off by us, and says nothing about its zone. Until then it
            // tells as much as any other, also when no blueprint names it any more.
            let leaves =
                self.planned(&machine.row.cluster, &machine.row.id).is_none_or(|planned| planned.leaving);
            let off = machine.row.fenced.is_some() || machine.seen_off > machine.seen_on;
            if leaves && off || self.was_silenced(now, machine) {
                continue;
            }
            let heard = u32::from(self.is_heard_now(now, machine));
            let zone = census.zones.entry(self.zone_of(machine).to_owned()).or_default();
            zone.heard += heard;
            zone.total += 1;
            // What has no power by the infrastructure's own word says nothing about the coordinator's network.
            if !matches!(machine.row.phase, MachinePhase::Off { .. } | MachinePhase::Missing { .. }) {
                census.fleet.heard += heard;
                census.fleet.total += 1;
            }
        }
        census
    }

    /// All that speaks for or against a machine now.
    pub(crate) fn evidence(&self, now: Now, machine: &Machine, census: &Census) -> Evidence {
        let zone = census.zones.get(self.zone_of(machine)).copied().unwrap_or_default();
        let heard = self.last_heard(machine);
        let ago = heard.map(|last| u64::try_from(now.mono.since(last).as_millis()).unwrap_or(u64::MAX));
        let power = match machine.row.phase {
            MachinePhase::Off { .. } => PowerSeen::Off,
            MachinePhase::Missing { .. } => PowerSeen::Missing,
            _ => match (machine.seen_on, heard) {
                (Some(seen), Some(heard)) if seen >= heard => PowerSeen::On,
                (Some(_), None) => PowerSeen::On,
                _ => PowerSeen::Unknown,
            },
        };
        // A machine that is heard counts itself.
        let itself = u32::from(self.is_heard_now(now, machine));
        Evidence {
            heartbeat: ago.map_or(HeartbeatSeen::Never, |ms| HeartbeatSeen::Ago { ms }),
            peers: self.peers_seen(now, machine),
            power,
            lease: self.lease_seen(now, &machine.row.cluster, &machine.row.id),
            zone_heard: zone.heard.saturating_sub(itself),
            zone_others: zone.total.saturating_sub(1),
        }
    }

    /// What peers have said since the machine fell silent, each with its last word.
    fn peers_seen(&self, now: Now, machine: &Machine) -> PeersSeen {
        let since = self.last_heard(machine);
        let mut seen = PeersSeen::default();
        for word in self.peer_answers(&machine.row.id) {
            if since.is_some_and(|since| word.at < since) || now.mono.since(word.at) > PEER_ANSWER_LIFE {
                continue;
            }
            match word.said {
                PeerSaid::Answered { .. } => seen.reached += 1,
                PeerSaid::Refused => seen.refused += 1,
                PeerSaid::Silent => seen.silent += 1,
                PeerSaid::Failed { .. } => {}
            }
        }
        seen
    }

    fn lease_seen(&self, now: Now, cluster: &ClusterName, id: &MachineId) -> LeaseSeen {
        let Some(cluster) = self.clusters.get(cluster) else { return LeaseSeen::Unknown };
        let Some(looked) = cluster.kube.looked else { return LeaseSeen::Unknown };
        let Some(watch) = cluster.kube.nodes.get(id.as_str()) else { return LeaseSeen::Unknown };
        if now.mono.since(looked) > LEASE_STALE_AFTER {
            return LeaseSeen::Unknown;
        }
        // Renewed for certain after the last heartbeat came: the looks before and after it were both later.
        let heard = self.last_heard_of(id);
        let lived = watch.lived_after.is_some_and(|after| heard.is_none_or(|heard| after > heard));
        match (looked.since(watch.renewed) >= LEASE_STALE_AFTER, lived) {
            (true, _) => LeaseSeen::Stale,
            (false, true) => LeaseSeen::Fresh,
            (false, false) => LeaseSeen::Unknown,
        }
    }

    /// Whether others that fell silent with a machine came back so lately that it may be on its way. The first one that is
    /// heard ends the silence of the zone, and what peers said of the rest while the zone was cut off is then no proof.
    fn may_follow(&self, now: Now, machine: &Machine) -> bool {
        let heard = self.last_heard(machine);
        let together = machine.silent_together.filter(|at| heard.is_none_or(|heard| heard <= *at));
        together.is_some_and(|at| now.mono.since(at) < RETURN_MAX)
    }

    /// Since when a machine asks to enrol again with another key: its disk has lost who it is. What was asked before it was
    /// last heard was asked by somebody else.
    pub(crate) fn forgot_itself(&self, machine: &Machine) -> Option<MonoTime> {
        let heard = self.last_heard(machine);
        machine.other_key.filter(|since| heard.is_none_or(|heard| heard < *since))
    }

    fn last_heard_of(&self, id: &MachineId) -> Option<MonoTime> {
        self.last_heard(self.machines.get(id)?)
    }

    /// A machine that is its whole cluster has no peers; its API server is the other channel then.
    fn is_alone_and_dark(&self, machine: &Machine) -> bool {
        let Some(cluster) = self.clusters.get(&machine.row.cluster) else { return false };
        let alone = cluster.row.blueprint.machines.len() == 1;
        alone
            && matches!(cluster.kube.error, Some(keelson_model::kubernetes::KubeFailure::Unreachable { .. }))
    }

    /// Writes down a verdict, and tells when it is another one.
    fn judged(&mut self, now: Now, id: &MachineId, verdict: Verdict, evidence: Evidence) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        if verdict == Verdict::Well {
            machine.suspected = None;
            machine.peers_asked = None;
        } else if machine.suspected.is_none() {
            machine.suspected = Some(now.mono);
        }
        if matches!(verdict, Verdict::ZoneSilent | Verdict::FleetSilent) {
            machine.silent_together = Some(now.mono);
        }
        let before = std::mem::replace(&mut machine.verdict, verdict);
        machine.evidence = Some(evidence);
        if before != verdict {
            let cluster = machine.row.cluster.clone();
            self.touched.insert(cluster);
            self.verdict_changed(now, id, verdict);
        }
    }

    /// Whether a machine's link stands; for people.
    #[must_use]
    pub fn is_connected(machine: &Machine) -> bool {
        matches!(machine.link, LinkState::Connected { .. })
    }
}

/// A machine that was switched on long ago and whose agent never asked for a certificate.
pub(crate) fn is_unborn(now: Now, machine: &Machine) -> bool {
    matches!(machine.row.phase, MachinePhase::Booting { since } if now.wall.since(since) >= UNBORN_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            heartbeat: HeartbeatSeen::Ago { ms: 0 },
            peers: PeersSeen::default(),
            power: PowerSeen::On,
            lease: LeaseSeen::Stale,
            zone_heard: 2,
            zone_others: 2,
        }
    }

    fn check(silent_s: u64, change: impl FnOnce(&mut Evidence, &mut Heard), expected: Verdict) {
        let mut evidence = evidence();
        let mut heard = Heard {
            state: Some(NodeState::Ready),
            silent_for: (silent_s > 0).then(|| Duration::from_secs(silent_s)),
            fleet_silent: false,
            forgot_for: None,
            may_follow: false,
            alone_and_dark: false,
            reached_for: None,
            unborn: false,
        };
        change(&mut evidence, &mut heard);
        assert_eq!(judge(&evidence, heard), expected, "{evidence}");
    }

    #[test]
    fn who_is_heard_is_judged_by_its_own_word() {
        check(0, |_, _| {}, Verdict::Well);
        check(0, |_, heard| heard.state = Some(NodeState::Degraded), Verdict::Repairing);
        check(0, |_, heard| heard.state = Some(NodeState::Failed), Verdict::GivenUp);
        // An old list may say otherwise.
        check(0, |evidence, _| evidence.power = PowerSeen::Off, Verdict::Well);
    }

    #[test]
    fn the_word_on_power_needs_no_witness() {
        check(2, |evidence, _| evidence.power = PowerSeen::Off, Verdict::Off);
        check(2, |evidence, _| evidence.power = PowerSeen::Missing, Verdict::Missing);
    }

    #[test]
    fn silence_alone_is_never_enough() {
        let all_silent = |evidence: &mut Evidence| evidence.peers.silent = 3;
        check(2, |_, _| {}, Verdict::Suspected);
        check(60, |_, _| {}, Verdict::Undecided);
        check(4, |evidence, _| all_silent(evidence), Verdict::Undecided);
        check(60, |evidence, _| all_silent(evidence), Verdict::Hung);
        check(
            60,
            |evidence, _| (all_silent(evidence), evidence.power = PowerSeen::Unknown).0,
            Verdict::Undecided,
        );
    }

    #[test]
    fn who_is_reached_by_anybody_is_not_hung() {
        check(
            60,
            |evidence, _| evidence.peers = PeersSeen { reached: 1, refused: 0, silent: 2 },
            Verdict::CutOff,
        );
        check(
            60,
            |evidence, _| evidence.peers = PeersSeen { reached: 0, refused: 1, silent: 2 },
            Verdict::AgentDown,
        );
        let lease = |evidence: &mut Evidence| {
            evidence.peers.silent = 3;
            evidence.lease = LeaseSeen::Fresh;
        };
        check(60, |evidence, _| lease(evidence), Verdict::CutOff);
    }

    /// A zone that is cut off falls silent for peers a moment before it does for the coordinator (seed 3656).
    #[test]
    fn who_was_reached_a_moment_ago_is_not_hung_yet() {
        let reached = |seconds, expected| {
            let with = |evidence: &mut Evidence, heard: &mut Heard| {
                evidence.peers.silent = 3;
                heard.reached_for = Some(Duration::from_secs(seconds));
            };
            check(60, with, expected);
        };
        reached(2, Verdict::Undecided);
        reached(11, Verdict::Hung);
    }

    #[test]
    fn another_key_is_believed_once_nobody_else_speaks_for_the_machine() {
        let forgot = |seconds, change: fn(&mut Evidence), expected| {
            let with = |evidence: &mut Evidence, heard: &mut Heard| {
                (heard.fleet_silent, heard.forgot_for) = (true, Some(Duration::from_secs(seconds)));
                change(evidence);
            };
            check(60, with, expected);
        };
        forgot(1, |_| {}, Verdict::Suspected);
        forgot(1, |evidence| evidence.peers.silent = 1, Verdict::AgentDown);
        forgot(1, |evidence| evidence.peers.refused = 1, Verdict::AgentDown);
        forgot(60, |evidence| evidence.peers.reached = 1, Verdict::CutOff);
        forgot(60, |evidence| evidence.lease = LeaseSeen::Fresh, Verdict::FleetSilent);
        // Nobody is there who could be asked.
        forgot(15, |_| {}, Verdict::AgentDown);
    }

    #[test]
    fn a_zone_and_a_fleet_that_fall_silent_together_are_held() {
        let silent = |evidence: &mut Evidence| evidence.peers.silent = 3;
        check(60, |evidence, _| (silent(evidence), evidence.zone_heard = 0).0, Verdict::ZoneSilent);
        check(60, |evidence, heard| (silent(evidence), heard.fleet_silent = true).0, Verdict::FleetSilent);
        check(600, |evidence, heard| (silent(evidence), heard.may_follow = true).0, Verdict::Undecided);
        // Alone in its zone: only patience can tell.
        let lone = |evidence: &mut Evidence| {
            evidence.peers.silent = 3;
            (evidence.zone_heard, evidence.zone_others) = (0, 0);
        };
        check(15, |evidence, _| lone(evidence), Verdict::Undecided);
        check(60, |evidence, _| lone(evidence), Verdict::Hung);
    }

    #[test]
    fn a_cluster_of_one_machine_is_judged_by_its_api_server() {
        check(60, |_, heard| heard.alone_and_dark = true, Verdict::Hung);
        check(15, |_, heard| heard.alone_and_dark = true, Verdict::Undecided);
    }
}
