//! What programs mean: an etcd unit is a member of its cluster, an API server needs a quorum, a kubelet makes its node
//! ready. Probes are answered accordingly. All of it follows from names of units and ports.

use std::net::{IpAddr, SocketAddr};

use keelson_model::etcd::{EtcdAnswer, EtcdCall};
use keelson_protocol::config::{Expect, ProbeSpec, ProbeTarget};
use keelson_protocol::{ClusterName, MachineId};

use crate::check::{Checker, QUORUM_NOTICED_MS};
use crate::etcd::{FakeEtcd, Member};
use crate::host::{KILLED, UnitState};
use crate::kube::Kubelet;
use crate::network::End;
use crate::world::{Ix, SimEvent, World};

/// Ports by which probes are told apart.
const ETCD_CLIENT_PORT: u16 = 2379;
const ETCD_METRICS_PORT: u16 = 2381;
const API_PORT: u16 = 6443;
const BALANCER_PORT: u16 = 7445;
const CONTROLLER_MANAGER_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
const KUBELET_PORT: u16 = 10248;
const PROXY_PORT: u16 = 10256;
const DNS_PORT: u16 = 53;

/// Where programs say whether they live, whatever others do.
const LIVE_PATH: &str = "/livez";

pub(crate) const ETCD: &str = "etcd.service";
pub(crate) const API_SERVER: &str = "kube-apiserver.service";
const KUBELET: &str = "kubelet.service";
/// `RestartSec` of our units, in milliseconds.
const AGAIN_MS: u64 = 1_000;
/// How soon a program ends that ends soon, in milliseconds.
const CRASH_MS: (u64, u64) = (1_000, 60_000);
/// How long a learner takes to catch up, in milliseconds.
const CATCH_UP_MS: (u64, u64) = (500, 15_000);

/// How long a program takes until it serves, in milliseconds.
fn start_ms(unit: &str) -> (u64, u64) {
    match unit {
        ETCD => (300, 1_500),
        API_SERVER => (1_000, 5_000),
        KUBELET => (500, 2_000),
        "containerd.service" => (200, 800),
        _ => (100, 1_000),
    }
}

/// What is wrong with a probe that is not answered.
const SILENT: &str = "connection refused";

impl World {
    // Units.

    pub(crate) fn unit_started(&mut self, ix: Ix, unit: &str) {
        self.told(ix, &format!("{unit} is started"));
        let (low, high) = start_ms(unit);
        let wait = self.machines[ix].random.between(low, high);
        self.unit_due(ix, unit, wait);
    }

    fn unit_due(&mut self, ix: Ix, unit: &str, wait_ms: u64) {
        let machine = &mut self.machines[ix];
        let Some(serial) = machine.host.unit_mut(unit).map(|unit| unit.serial) else { return };
        let event = SimEvent::Unit(ix as u32, machine.boots, serial, unit.into());
        self.queue.push(self.now + wait_ms, event);
    }

    pub(crate) fn unit_timer(&mut self, ix: Ix, boot: u32, serial: u32, name: &str) {
        let machine = &mut self.machines[ix];
        if machine.is_off() || machine.boots != boot {
            return;
        }
        let Some(unit) = machine.host.unit_mut(name).filter(|unit| unit.serial == serial) else { return };
        let oneshot = unit.is_oneshot();
        match unit.state {
            UnitState::Starting if oneshot => self.oneshot_ends(ix, name),
            UnitState::Starting => self.unit_serves(ix, name),
            UnitState::Serving => self.unit_ends(ix, name, KILLED),
            UnitState::Again => {
                if self.machines[ix].host.start(name).is_ok() {
                    self.unit_started(ix, name);
                }
            }
            UnitState::Stopped | UnitState::Done => {}
        }
    }

    fn oneshot_ends(&mut self, ix: Ix, name: &str) {
        // Images come from the disk; everything else is said to the API server.
        let done = name.starts_with("image-") || self.api_answers(ix);
        let (why, then) = if done { ("", UnitState::Done) } else { ("exit status 1", UnitState::Stopped) };
        self.machines[ix].host.end(name, why, then);
    }

    fn unit_serves(&mut self, ix: Ix, name: &str) {
        if name == ETCD
            && let Err(why) = self.etcd_starts(ix)
        {
            return self.unit_ends(ix, name, &why);
        }
        let permille = if self.stormy { self.weather.unit_crash_permille } else { 0 };
        let machine = &mut self.machines[ix];
        if let Some(unit) = machine.host.unit_mut(name) {
            unit.state = UnitState::Serving;
        }
        if name != ETCD {
            machine.host.notify(name);
        }
        machine.taken_by_us.member &= name != ETCD;
        machine.taken_by_us.api &= name != API_SERVER;
        if name == API_SERVER {
            // It may not live long enough to be seen by the next sample, nor may its fall have been.
            machine.api_since = None;
            self.sample_api(ix);
        }
        let machine = &mut self.machines[ix];
        if machine.random.chance(permille) {
            let wait = machine.random.between(CRASH_MS.0, CRASH_MS.1);
            self.unit_due(ix, name, wait);
        }
        if name == ETCD {
            self.members_say_that_they_started();
        }
    }

    /// A program ends, and systemd will start it again.
    pub(crate) fn unit_ends(&mut self, ix: Ix, name: &str, why: &str) {
        self.told(ix, &format!("{name} ends: {why}"));
        self.machines[ix].host.end(name, why, UnitState::Again);
        self.unit_due(ix, name, AGAIN_MS);
    }

    fn etcd_starts(&mut self, ix: Ix) -> Result<(), String> {
        if self.was_taken_away(ix) {
            return Err("the member has been permanently removed".to_owned());
        }
        let name = self.machines[ix].cluster.clone();
        let holds = self.etcd_serves(&name, ix);
        let machine = &mut self.machines[ix];
        let flags = machine.host.unit_mut(ETCD).and_then(|unit| unit.etcd_flags().cloned());
        let flags = flags.ok_or_else(|| "its flags make no sense".to_owned())?;
        let caught_up = self.now + machine.random.between(CATCH_UP_MS.0, CATCH_UP_MS.1);
        let (data, address) = (machine.host.disk.etcd, machine.address);
        let etcd = self.etcds.entry(name).or_default();
        let member = etcd.start(data, &flags, address, holds, caught_up)?;
        self.machines[ix].host.disk.etcd = Some(member);
        Ok(())
    }

    // etcd.

    /// Whether a member's program serves, with its data.
    pub(crate) fn member_works(&self, member: &Member) -> bool {
        self.by_address.get(&member.address).is_some_and(|ix| {
            let machine = &self.machines[*ix];
            machine.power == crate::machine::Power::On
                && machine.host.disk.etcd == Some(member.id)
                && machine.host.serves(ETCD)
        })
    }

    /// A member says that it has started when it has told the others who it is, for which there must be a quorum.
    pub(crate) fn members_say_that_they_started(&mut self) {
        let waiting: Vec<Ix> =
            self.by_id.values().copied().filter(|ix| self.machines[*ix].host.is_unsaid(ETCD)).collect();
        for ix in waiting {
            if self.etcd_serves(&self.machines[ix].cluster, ix) {
                self.machines[ix].host.notify(ETCD);
            }
        }
    }

    /// Whether a member's data are on a disk.
    pub(crate) fn has_data(&self, member: &Member) -> bool {
        let ix = self.by_address.get(&member.address);
        ix.is_some_and(|ix| self.machines[*ix].host.disk.etcd == Some(member.id))
    }

    /// A member has said that it is well: from now on it may be taken for one that works, however short that lasts.
    fn member_answered(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let etcd = self.etcds.get_mut(&machine.cluster);
        let mut members = etcd.into_iter().flat_map(|etcd| &mut etcd.members);
        if let Some(member) = members.find(|member| Some(member.id) == machine.host.disk.etcd) {
            (member.down_since, member.apart_since) = (None, None);
        }
    }

    fn member_reached(&self, member: &Member, from: Ix) -> bool {
        let ix = self.by_address.get(&member.address);
        self.member_works(member) && ix.is_some_and(|ix| self.connects(from, *ix))
    }

    /// Whether a member works and reaches a majority.
    pub(crate) fn member_counts(&self, etcd: &FakeEtcd, member: &Member) -> bool {
        let ix = self.by_address.get(&member.address).copied().filter(|_| self.member_works(member));
        ix.is_some_and(|ix| etcd.holds(|voter| self.member_reached(voter, ix)))
    }

    /// Whether a cluster's etcd works, as a machine sees it.
    fn etcd_serves(&self, name: &ClusterName, from: Ix) -> bool {
        self.etcds.get(name).is_some_and(|etcd| etcd.holds(|member| self.member_reached(member, from)))
    }

    /// Asks a cluster's etcd through the member on a machine.
    pub(crate) fn ask_etcd(
        &mut self,
        name: &ClusterName,
        ix: Ix,
        call: &EtcdCall,
    ) -> Result<EtcdAnswer, String> {
        let served = self.api_servers(name);
        let Some(mut etcd) = self.etcds.remove(name) else { return Err(SILENT.to_owned()) };
        let removed = match call {
            EtcdCall::Remove { member } => {
                etcd.members.iter().find(|other| other.id == *member).map(|member| member.address)
            }
            _ => None,
        };
        let result = etcd.call(call, self.now, |member| self.member_reached(member, ix));
        let after = etcd.holds(|member| self.seems_to_work(member));
        self.etcds.insert(name.clone(), etcd);
        self.check_api_after(name, &served, call);
        // That the call was carried out proves a quorum before it.
        if !after && result.is_ok() && *call != EtcdCall::Look {
            self.violate(Checker::Quorum, format!("etcd of {name} has no quorum after: {call}"));
        }
        // The program of a member that was removed ends.
        if let (Ok(_), Some(address)) = (&result, removed)
            && let Some(ix) = self.by_address.get(&address).copied()
            && self.machines[ix].host.serves(ETCD)
        {
            self.unit_ends(ix, ETCD, "the member has been permanently removed");
        }
        result
    }

    /// A member that works is about to be taken away for a while, by an act of ours.
    pub(crate) fn check_member_act(&mut self, ix: Ix, act: &str) {
        let machine = &self.machines[ix];
        let (Some(data), Some(etcd)) = (machine.host.disk.etcd, self.etcds.get(&machine.cluster)) else {
            return;
        };
        let votes = etcd.voters().any(|voter| voter.id == data);
        // A quorum that has just come back may not have been noticed.
        let held = etcd.held_since.is_some_and(|since| since + QUORUM_NOTICED_MS <= self.now);
        let before = held && self.etcd_serves(&machine.cluster, ix);
        let after = etcd.holds(|member| member.id != data && self.seems_to_count(etcd, member));
        // A cluster with one member has nobody to take over, whatever is done.
        if votes && before && !after && etcd.voters().count() > 1 {
            let what = format!("etcd of {} has no quorum without {}: {act}", machine.cluster, machine.id);
            self.violate(Checker::Quorum, what);
        }
    }

    /// A machine's disk is destroyed by an act of ours.
    pub(crate) fn check_member_lost(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let wanted = self.store.clusters.get(&machine.cluster).is_some_and(|row| row.wanted);
        let (Some(data), Some(etcd)) = (machine.host.disk.etcd, self.etcds.get(&machine.cluster)) else {
            return;
        };
        let votes = etcd.voters().any(|voter| voter.id == data);
        let left = etcd.voters().filter(|voter| voter.id != data && self.has_data(voter)).count();
        if wanted && votes && left < etcd.needed() {
            let what =
                format!("etcd of {} has lost its quorum with the disk of {}", machine.cluster, machine.id);
            self.violate(Checker::Quorum, what);
        }
    }

    // Kubernetes.

    /// Whether a machine's API server works.
    pub(crate) fn api_serves(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        machine.power == crate::machine::Power::On
            && machine.host.serves(API_SERVER)
            && self.knows_member(ix)
            && self.etcd_serves(&machine.cluster, ix)
    }

    /// Whether an API server was told of a member that answers it.
    fn knows_member(&self, ix: Ix) -> bool {
        self.was_told_of(ix, |member| self.member_reached(member, ix))
    }

    /// The same of one that may be believed to work.
    pub(crate) fn seems_to_know_member(&self, ix: Ix) -> bool {
        self.was_told_of(ix, |member| self.seems_to_work(member))
    }

    fn was_told_of(&self, ix: Ix, works: impl Fn(&Member) -> bool) -> bool {
        let machine = &self.machines[ix];
        let told = machine.host.unit(API_SERVER).map_or(&[][..], |unit| &unit.etcd_servers);
        self.etcds.get(&machine.cluster).is_some_and(|etcd| {
            let voter = |member: &Member| !member.learner && works(member);
            told.iter().any(|address| etcd.member_at(*address).is_some_and(voter))
        })
    }

    /// Whether a machine's programs reach an API server: through the balancer, or the one on the machine itself.
    fn api_answers(&self, ix: Ix) -> bool {
        let reached = |address: &SocketAddr| {
            let IpAddr::V4(address) = address.ip() else { return false };
            let master = self.by_address.get(&address);
            master.is_some_and(|master| self.connects(ix, *master) && self.api_serves(*master))
        };
        // The balancer is a part of the agent.
        let machine = &self.machines[ix];
        let balancer = machine.host.memory.balancer.as_ref().filter(|_| machine.agent.is_some());
        balancer.is_some_and(|balancer| balancer.backends.iter().any(reached))
    }

    /// Whether the coordinator reaches an API server of a cluster.
    pub(crate) fn api_for_coordinator(&self, name: &ClusterName) -> bool {
        let machines = self.members.get(name).into_iter().flatten().copied();
        let mut reached = machines.filter(|ix| self.network.connects(End::Coordinator, self.end(*ix)));
        reached.any(|ix| self.api_serves(ix))
    }

    /// Kubelets give their signs of life.
    pub(crate) fn beat_nodes(&mut self, name: &ClusterName) {
        let machines: Vec<Ix> = self.members.get(name).into_iter().flatten().copied().collect();
        machines.into_iter().for_each(|ix| self.beat_node(ix));
    }

    fn beat_node(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let on = machine.power == crate::machine::Power::On && machine.host.serves(KUBELET);
        let run = machine.host.run_of(KUBELET).filter(|_| on && self.api_answers(ix));
        let now = self.now;
        if let Some(kube) = self.kubes.get_mut(&machine.cluster) {
            kube.beat(&self.machines[ix].id, Kubelet { run }, now);
        }
    }

    /// Whether a node's kubelet ends pods.
    pub(crate) fn kubelet_lives(&self, id: &MachineId) -> bool {
        self.by_id.get(id).is_some_and(|ix| {
            self.machines[*ix].power == crate::machine::Power::On
                && self.machines[*ix].host.serves(KUBELET)
                && self.api_answers(*ix)
        })
    }

    // Probes.

    /// Asks a probe on a machine.
    pub(crate) fn probe(&mut self, ix: Ix, probe: &ProbeSpec) -> Result<(), String> {
        let good = match &probe.target {
            ProbeTarget::Unix(_) => self.machines[ix].host.serves("containerd.service"),
            ProbeTarget::Tcp(address) => self.probe_tcp(ix, *address),
            ProbeTarget::Http { address, path } | ProbeTarget::Https { address, path, .. } => {
                self.probe_http(ix, *address, path, &probe.expect)
            }
        };
        if good { Ok(()) } else { Err(SILENT.to_owned()) }
    }

    fn probe_tcp(&self, ix: Ix, address: SocketAddr) -> bool {
        let machine = &self.machines[ix];
        match (address.port(), address.ip()) {
            (DNS_PORT, _) => {
                let kube = self.kubes.get(&machine.cluster);
                machine.host.serves("kube-proxy.service") && kube.is_some_and(|kube| kube.any_ready(self.now))
            }
            (ETCD_CLIENT_PORT, IpAddr::V4(address)) => self.by_address.get(&address).is_some_and(|other| {
                self.machines[*other].power == crate::machine::Power::On
                    && self.connects(ix, *other)
                    && self.machines[*other].host.serves(ETCD)
            }),
            _ => false,
        }
    }

    fn probe_http(&mut self, ix: Ix, address: SocketAddr, path: &str, expect: &Expect) -> bool {
        let host = &self.machines[ix].host;
        match address.port() {
            ETCD_METRICS_PORT if path.starts_with(LIVE_PATH) => host.serves(ETCD),
            API_PORT if path.starts_with(LIVE_PATH) => host.serves(API_SERVER),
            ETCD_METRICS_PORT => {
                let good = host.serves(ETCD) && self.etcd_serves(&self.machines[ix].cluster, ix);
                if good {
                    self.member_answered(ix);
                }
                good
            }
            API_PORT => self.api_serves(ix),
            CONTROLLER_MANAGER_PORT => host.serves("kube-controller-manager.service"),
            SCHEDULER_PORT => host.serves("kube-scheduler.service"),
            KUBELET_PORT => host.serves(KUBELET),
            PROXY_PORT => host.serves("kube-proxy.service"),
            BALANCER_PORT => self.probe_api(ix, path, expect),
            _ => false,
        }
    }

    fn probe_api(&mut self, ix: Ix, path: &str, expect: &Expect) -> bool {
        if !self.api_answers(ix) {
            return false;
        }
        let Some(node) = path.strip_prefix("/api/v1/nodes/") else { return true };
        let Ok(node) = node.parse::<MachineId>() else { return false };
        if let Some(other) = self.by_id.get(&node).copied() {
            self.beat_node(other);
        }
        let Some(kube) = self.kubes.get(&self.machines[ix].cluster) else { return false };
        match expect {
            Expect::Answer => kube.nodes.contains_key(&node),
            Expect::NodeReady => kube.is_ready(&node, self.now),
        }
    }
}
