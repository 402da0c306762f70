//! Who gets the newest config when. A config that restarts a part of the control plane goes to one machine at a time, and
//! to the next one when that is ready; everything else goes at once.

use std::collections::{BTreeMap, BTreeSet};

use keelson_model::{BlueprintMachine, Role, SeatBegins, Standing};
use keelson_planner::Quorum;
use keelson_planner::node::{HostTraits, NodeInput, node_config};
use keelson_protocol::config::{NodeConfig, UnitKind, UnitSpec};
use keelson_protocol::message::ToAgent;
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId};
use ring::digest;

use crate::limits::{DISRUPTED_MAX, MEMBER_IN_USE_MAX};
use crate::repair::needs_fence;
use crate::replan::Serves;
use crate::row::SentConfig;
use crate::state::{Cluster, CoordinatorCore, Machine, Now};

/// All that tells one config of a machine from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RenderKey {
    incarnation: Incarnation,
    generation: Generation,
    traits: HostTraits,
}

impl CoordinatorCore {
    /// Sends the config in force to each connected machine of a cluster that has an older one, and whose turn it is.
    pub(crate) fn reconcile_configs(&mut self, name: &ClusterName) {
        let stale: Vec<MachineId> = self.stale(name).map(|machine| machine.row.id.clone()).collect();
        for id in stale {
            self.send_config(name, &id);
        }
    }

    pub(crate) fn has_stale_configs(&self, name: &ClusterName) -> bool {
        self.stale(name).next().is_some()
    }

    /// Connected machines of a cluster that have not been sent the config in force.
    fn stale(&self, name: &ClusterName) -> impl Iterator<Item = &Machine> {
        let blueprint = self.clusters.get(name).map(|cluster| &cluster.row.blueprint);
        let generation = blueprint.map(|blueprint| blueprint.generation);
        self.machines_of(name).filter(move |machine| machine.session.is_some() && machine.told < generation)
    }

    fn send_config(&mut self, name: &ClusterName, id: &MachineId) {
        let Some(services) = self.note_services(name, id) else { return };
        if self.behind(name, id, &services).is_some() || !self.has_seat(name, id) {
            return;
        }
        let Some(config) = self.rendered(name, id).cloned() else { return };
        let sent = SentConfig { generation: config.generation, services, etcd: self.etcd_of(name) };
        let Some(machine) = self.machines.get_mut(id) else { return };
        let Some(session) = machine.session else { return };
        let has = |before: &SentConfig| machine.told >= Some(before.generation);
        let same =
            machine.row.sent.as_ref().is_some_and(|before| before.services == sent.services && has(before));
        // What restarts nothing takes nothing away.
        machine.sent_at = if same { machine.sent_at } else { Some(self.last_tick) };
        machine.told = Some(config.generation);
        if machine.row.sent.as_ref() != Some(&sent) {
            machine.row.sent = Some(sent);
            self.save_machine(id);
        }
        self.send(session, ToAgent::Config(Box::new(config)));
    }

    /// Machines with etcd that configs in force name.
    fn etcd_of(&self, name: &ClusterName) -> Vec<MachineId> {
        let blueprint = self.clusters.get(name).map(|cluster| &cluster.row.blueprint);
        blueprint
            .into_iter()
            .flat_map(|it| it.staying(Role::Etcd))
            .map(|planned| planned.id.clone())
            .collect()
    }

    /// Digest of the services in the config in force of a machine, which is rendered once for it.
    fn note_services(&mut self, name: &ClusterName, id: &MachineId) -> Option<String> {
        let key = self.render_key(name, id)?;
        if let Some((known, services)) = &self.machines.get(id)?.services
            && *known == key
        {
            return Some(services.clone());
        }
        let services = services_digest(self.rendered(name, id)?);
        self.machines.get_mut(id)?.services = Some((key, services.clone()));
        Some(services)
    }

    /// The whole config of a machine, once its facts are known. The last one is kept: a machine asks for one certificate
    /// after the other, and each is looked up there.
    pub(crate) fn rendered(&mut self, cluster: &ClusterName, id: &MachineId) -> Option<&NodeConfig> {
        let key = self.render_key(cluster, id)?;
        let kept = self.rendered.as_ref().is_some_and(|(of, known, _)| of == id && *known == key);
        if !kept {
            self.rendered = Some((id.clone(), key, self.config_of(cluster, id)?));
        }
        self.rendered.as_ref().map(|(.., config)| config)
    }

    /// All that tells one config of a machine from another.
    fn render_key(&self, cluster: &ClusterName, id: &MachineId) -> Option<RenderKey> {
        let machine = self.machines.get(id)?;
        self.planned(cluster, id).filter(|planned| planned.incarnation == machine.row.incarnation)?;
        let generation = self.clusters.get(cluster)?.row.blueprint.generation;
        let traits = HostTraits::from(machine.facts.as_deref()?);
        Some(RenderKey { incarnation: machine.row.incarnation, generation, traits })
    }

    fn config_of(&self, cluster: &ClusterName, id: &MachineId) -> Option<NodeConfig> {
        let facts = self.machines.get(id)?.facts.as_deref()?;
        let cluster = self.clusters.get(cluster)?;
        let blueprint = &cluster.row.blueprint;
        let release = self.settings.releases.releases.get(&blueprint.release)?;
        let traits = HostTraits::from(facts);
        let peer_key = &self.peer_key(&blueprint.cluster);
        node_config(&NodeInput { blueprint, release, material: &cluster.material, peer_key, traits }, id)
    }

    /// Whether a machine may start its etcd member: one that joins must have been added first, or it would end at once.
    fn has_seat(&self, name: &ClusterName, id: &MachineId) -> bool {
        let Some(planned) = self.planned(name, id) else { return false };
        let joins = planned.seat.as_ref().is_some_and(|seat| seat.begins == SeatBegins::Joining);
        let added =
            |standing: Option<&Standing>| matches!(standing, Some(Standing::Learner | Standing::Voter));
        !joins || added(self.standings(name).get(id))
    }

    /// Machines that wait for their turn to get the newest config, and behind which other machine.
    pub(crate) fn turns(&self, name: &ClusterName) -> BTreeMap<MachineId, MachineId> {
        let Some(cluster) = self.clusters.get(name) else { return BTreeMap::new() };
        let generation = cluster.row.blueprint.generation;
        let waiting = self
            .machines_of(name)
            .filter(|machine| machine.session.is_some() && machine.told.is_none_or(|told| told < generation));
        waiting
            .filter_map(|machine| {
                let id = &machine.row.id;
                let key = self.render_key(name, id)?;
                let known = machine.services.as_ref().filter(|(known, _)| *known == key);
                let services = match known {
                    Some((_, services)) => services.clone(),
                    None => services_digest(&self.config_of(name, id)?),
                };
                Some((id.clone(), self.behind(name, id, &services)?))
            })
            .collect()
    }

    /// The machine that must be ready first, when a config with these services is not for `id` yet.
    fn behind(&self, name: &ClusterName, id: &MachineId, services: &str) -> Option<MachineId> {
        let cluster = self.clusters.get(name)?;
        let machine = self.machines.get(id)?;
        let planned = self.planned(name, id).filter(|planned| in_control_plane(planned))?;
        // A machine with a config of a coordinator that did not write down what it sent counts as one that changes, and so does
        // one that may serve on an older config than the one that was on its way to it, also while it is not heard.
        let has = |sent: &SentConfig| machine.told >= Some(sent.generation);
        let same = match &machine.row.sent {
            Some(sent) => sent.services == services && (has(sent) || !self.may_serve_others(planned)),
            None => machine.told.is_none(),
        };
        if same {
            return None;
        }
        // Until its API server has answered nobody uses a cluster, and everybody gets it at once.
        if !cluster.row.was_in_use() {
            return self.no_other_master(cluster, planned);
        }
        let alone = || self.no_other_master(cluster, planned).filter(|_| cluster.row.first_ready.is_none());
        alone().or_else(|| self.unsettled(cluster, planned)).or_else(|| {
            let lacks = self.quorum_lacks(cluster, planned);
            lacks.then(|| self.member_that_lacks(cluster, id).unwrap_or_else(|| id.clone()))
        })
    }

    /// Whether etcd would lose its quorum while this member begins anew.
    fn quorum_lacks(&self, cluster: &Cluster, planned: &BlueprintMachine) -> bool {
        let risky = planned.roles.contains(&Role::Etcd)
            && cluster.etcd.members.is_some()
            && self.may_serve_others(planned);
        let quorum =
            || Quorum::of(&self.standings(&cluster.row.spec.name), &self.lasting(&cluster.row.blueprint));
        let lacks = |quorum: Quorum| quorum.outlives_loss(&planned.id).is_err() && quorum.needed() > 1;
        risky && lacks(quorum())
    }

    /// A member of etcd but `id` that votes and does not work, or is about to lose its power.
    fn member_that_lacks(&self, cluster: &Cluster, id: &MachineId) -> Option<MachineId> {
        let lasting = self.lasting(&cluster.row.blueprint);
        let standings = self.standings(&cluster.row.spec.name);
        let lacks = |(other, standing): &(MachineId, Standing)| {
            other != id && *standing == Standing::Voter && !lasting.contains(other)
        };
        standings.into_iter().find(lacks).map(|(other, _)| other)
    }

    /// A master that shall serve before this one, which does or has not had the time to say, begins anew; `None` when another
    /// one serves.
    fn no_other_master(&self, cluster: &Cluster, planned: &BlueprintMachine) -> Option<MachineId> {
        let serves =
            |one: &BlueprintMachine| self.works(one) || self.serves(one, Role::Master) == Serves::Yes;
        let alone = planned.roles.contains(&Role::Master) && (serves(planned) || !self.stands(planned));
        let mut others = cluster.row.blueprint.staying(Role::Master).filter(|other| other.id != planned.id);
        let first = others.next().filter(|_| alone)?;
        let works = serves(first) || others.any(serves);
        (!works).then(|| first.id.clone())
    }

    /// Another machine of the control plane that is not ready with what it was sent, or a master that is about to go: what
    /// it serves is served by `next` from then on. One that serves nobody takes nothing away when it begins anew, and may
    /// need just that config to serve again, as the others may: it waits only for those that begin anew at this moment.
    fn unsettled(&self, cluster: &Cluster, next: &BlueprintMachine) -> Option<MachineId> {
        let others = cluster.row.blueprint.machines.values();
        let (serves, next_is_settled) = (self.may_serve_others(next), self.is_settled(next));
        // Until a cluster was ready as a whole, one for which there is no room yet holds up nobody.
        let begun = |planned: &BlueprintMachine| {
            cluster.row.first_ready.is_some()
                || self.machines.get(&planned.id).is_some_and(|machine| machine.row.sent.is_some())
        };
        let unsettled = |planned: &&BlueprintMachine| {
            let fenced_soon = |machine: &Machine| {
                let called = machine.call.is_some() && machine.row.fenced.is_none();
                called && (planned.leaving || needs_fence(machine))
            };
            let goes = planned.roles.contains(&Role::Master) && self.made(planned).is_some_and(fenced_soon);
            let lately = || self.was_sent_lately(planned);
            // Of two that are not settled themselves, the one that does not serve comes first: the other one may be all that is
            // left. Whoever comes first waits for the other for no longer than that. One that is not heard, or has just
            // come back, does not say; for one that does, one that the quorum holds up is nobody to wait for.
            let first = || {
                let comes_first = || !self.stands(next) || self.order(planned) < self.order(next);
                let excused = || self.stands(next) && self.quorum_lacks(cluster, planned);
                next_is_settled || comes_first() && !excused()
            };
            let begins =
                || !self.is_settled(planned) && ((serves && !planned.leaving && first()) || lately());
            // One that leaves holds up others only while it begins anew itself, and when it is about to go.
            let waits = (goes && serves) || (begun(planned) && begins());
            planned.id != next.id && in_control_plane(planned) && waits
        };
        others.filter(unsettled).map(|planned| planned.id.clone()).next()
    }

    /// Order in which machines that are not ready get what they lack. It is one of all, so that none waits for itself.
    fn order<'a>(&self, planned: &'a BlueprintMachine) -> (Serves, Serves, &'a MachineId) {
        (self.serves(planned, Role::Master), self.serves(planned, Role::Etcd), &planned.id)
    }

    /// Notes since when members that leave are in use.
    pub(crate) fn note_members_in_use(&mut self, now: Now, name: &ClusterName) {
        let are_in_use = !self.members_in_use(name).is_empty();
        if let Some(cluster) = self.clusters.get_mut(name) {
            let since = cluster.etcd.in_use_since;
            let is_over = since.is_some_and(|since| now.mono.since(since) >= MEMBER_IN_USE_MAX);
            cluster.etcd.in_use_since = (are_in_use || is_over).then(|| since.unwrap_or(now.mono));
        }
    }

    /// Machines on their way out whose etcd members may serve, while a master may know no other one, for a time.
    pub(crate) fn members_in_use(&self, name: &ClusterName) -> BTreeSet<MachineId> {
        let Some(cluster) = self.clusters.get(name) else { return BTreeSet::new() };
        let since = cluster.etcd.in_use_since;
        if since.is_some_and(|since| self.last_tick.since(since) >= MEMBER_IN_USE_MAX) {
            return BTreeSet::new();
        }
        let members = cluster.row.blueprint.with_role(Role::Etcd).filter(|planned| planned.leaving);
        let mut serving = members.filter(|planned| self.may_serve(planned)).peekable();
        if serving.peek().is_none() || self.outdated_master(name).is_none() {
            return BTreeSet::new();
        }
        serving.map(|planned| planned.id.clone()).collect()
    }

    /// A master that stays and may serve, and may know no etcd member that does as well: it has not taken a config that names
    /// one.
    pub(crate) fn outdated_master(&self, name: &ClusterName) -> Option<MachineId> {
        let blueprint = &self.clusters.get(name)?.row.blueprint;
        let (standings, working, names) = (self.standings(name), self.working(blueprint), self.etcd_of(name));
        let stays = |id: &MachineId| {
            standings.get(id) == Some(&Standing::Voter)
                && working.contains(id)
                && blueprint.machines.get(id).is_some_and(|planned| !planned.leaving)
        };
        let outdated = |planned: &&BlueprintMachine| {
            let machine = self.made(planned).filter(|_| self.may_serve(planned));
            machine.zip(machine.and_then(|machine| machine.row.sent.as_ref())).is_some_and(
                |(machine, sent)| {
                    let taken =
                        machine.heartbeat.is_some_and(|heartbeat| heartbeat.generation >= sent.generation);
                    // A coordinator that did not note it sent what the blueprint of that generation names.
                    let in_force = sent.generation == blueprint.generation && names.iter().any(stays);
                    !taken || !in_force && !sent.etcd.iter().any(stays)
                },
            )
        };
        // One with a member of its own knows that one.
        let mut masters =
            blueprint.staying(Role::Master).filter(|planned| !planned.roles.contains(&Role::Etcd));
        masters.find(outdated).map(|planned| planned.id.clone())
    }

    /// Whether a machine was sent a config a moment ago. What it has not taken by then it may have refused.
    pub(crate) fn was_sent_lately(&self, planned: &BlueprintMachine) -> bool {
        let sent = self.machines.get(&planned.id).and_then(|machine| machine.sent_at);
        sent.is_some_and(|sent| self.last_tick.since(sent) < DISRUPTED_MAX)
    }

    /// Whether a machine is ready with what it was sent.
    pub(crate) fn is_settled(&self, planned: &BlueprintMachine) -> bool {
        self.machines.get(&planned.id).is_some_and(|machine| {
            // What was sent and is not there was lost with its session: then what the machine has counts, or two that lost
            // theirs would wait for each other for ever.
            let has = |sent: Generation| machine.told.map_or(sent, |told| told.min(sent));
            machine.row.sent.as_ref().is_some_and(|sent| machine.is_ready_with(has(sent.generation)))
        })
    }
}

fn in_control_plane(planned: &BlueprintMachine) -> bool {
    planned.roles.contains(&Role::Etcd) || planned.roles.contains(&Role::Master)
}

/// Digest of everything in a config that restarts a program when it changes: programs with their arguments, and the files
/// and certificates that they read. Units that run once or only ask restart nothing.
fn services_digest(config: &NodeConfig) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |text: String| {
        context.update(&text.len().to_be_bytes());
        context.update(text.as_bytes());
    };
    let lasting = |kind: UnitKind| matches!(kind, UnitKind::Exec | UnitKind::Notify);
    for unit in config.units.iter().filter(|unit| lasting(unit.kind)) {
        // What only the agent reads restarts nothing.
        let (needs, health, alive) = (Vec::new(), None, None);
        add(format!("{:?}", UnitSpec { needs, health, alive, ..unit.clone() }));
        for input in &unit.restart_on {
            let file = config.files.iter().find(|file| file.path == *input);
            match file {
                Some(file) => add(hex::encode(digest::digest(&digest::SHA256, file.content.bytes()))),
                None => {
                    let certificate = config.certificates.iter().find(|spec| spec.name == *input);
                    add(format!("{certificate:?}"));
                }
            }
        }
    }
    hex::encode(context.finish())
}
