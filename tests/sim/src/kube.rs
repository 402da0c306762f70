//! A cluster's Kubernetes, as far as the coordinator asks for it: nodes with pods, which leave a node when it is drained.

use std::collections::{BTreeMap, BTreeSet};

use keelson_agent_core::Invocation;
use keelson_model::Taint;
use keelson_model::kubernetes::{
    Cordon, DrainForce, DrainState, KubeAnswer, KubeCall, KubeFailure, NodeReady, NodeSeen, NodeWish,
    PodLeft, PodWait, TaintWish, out_of_service,
};
use keelson_protocol::MachineId;

use crate::rng::Stream;

/// A kubelet that gave no sign for this long is called not ready (`node-monitor-grace-period`), in milliseconds.
const NODE_GRACE_MS: u64 = 50_000;
/// Most pods that a node runs here: enough for several passes of a drain.
const PODS_MAX: u64 = 5;

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    uid: u64,
    cordon: Cordon,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    /// Pods that a drain must move.
    pub(crate) pods: u64,
    /// Pods that were told to end.
    ending: u64,
    /// When its kubelet gave its last sign, in milliseconds.
    beat: u64,
}

/// What the world knows of a machine whose node is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kubelet {
    /// Its run, while it serves and reaches the API server.
    pub(crate) run: Option<Invocation>,
}

/// The nodes of a cluster.
#[derive(Debug)]
pub(crate) struct FakeKube {
    pub(crate) nodes: BTreeMap<MachineId, Node>,
    /// The run of each kubelet that registered its node: it does so once, at its start.
    registered: BTreeMap<MachineId, Invocation>,
    /// Nodes whose drain was asked for and has not been carried out yet.
    asked: BTreeSet<MachineId>,
    /// Nodes whose drain this coordinator's process has begun, as far as it knows: the answer may be lost, or the way to the
    /// API server be cut.
    begun: BTreeSet<MachineId>,
    next_uid: u64,
    random: Stream,
}

impl FakeKube {
    pub(crate) fn new(random: Stream) -> Self {
        Self {
            nodes: BTreeMap::new(),
            registered: BTreeMap::new(),
            asked: BTreeSet::new(),
            begun: BTreeSet::new(),
            next_uid: 0,
            random,
        }
    }

    /// A kubelet that serves and reaches the API server gives a sign of life, and registers its node in each run once.
    pub(crate) fn beat(&mut self, id: &MachineId, kubelet: Kubelet, now: u64) {
        let Some(run) = kubelet.run else { return };
        if let Some(node) = self.nodes.get_mut(id) {
            node.beat = now;
            // What was given up elsewhere comes here, and what was given up here may come again.
            if node.pods == 0 && node.cordon == Cordon::Open && node.taints.is_empty() {
                node.pods = self.random.between(1, PODS_MAX);
            }
            self.registered.insert(id.clone(), run);
            return;
        }
        if self.registered.insert(id.clone(), run) == Some(run) {
            return;
        }
        self.next_uid += 1;
        let node = Node {
            uid: self.next_uid,
            cordon: Cordon::Open,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pods: self.random.between(1, PODS_MAX),
            ending: 0,
            beat: now,
        };
        self.nodes.insert(id.clone(), node);
    }

    /// Whether a node is there and ready.
    pub(crate) fn is_ready(&self, id: &MachineId, now: u64) -> bool {
        self.nodes.get(id).is_some_and(|node| now - node.beat < NODE_GRACE_MS)
    }

    /// Whether any node but masters' runs pods, so that the cluster's DNS does.
    pub(crate) fn any_ready(&self, now: u64) -> bool {
        self.nodes.values().any(|node| now - node.beat < NODE_GRACE_MS)
    }

    /// Whether a node takes pods as one does that is well and stays.
    pub(crate) fn is_in_service(&self, id: &MachineId) -> bool {
        let out = out_of_service();
        let in_service = |node: &Node| node.cordon == Cordon::Open && !node.taints.contains(&out);
        self.nodes.get(id).is_none_or(in_service)
    }

    /// A drain is asked for. Which other nodes are being drained at this moment, unless this one is already.
    pub(crate) fn drain_asked(&mut self, id: &MachineId) -> Option<BTreeSet<MachineId>> {
        let drained = |(id, node): &(&MachineId, &Node)| {
            let asked = self.asked.contains(*id) || self.begun.contains(*id);
            node.pods > 0 && (node.cordon == Cordon::Cordoned || asked)
        };
        let others: BTreeSet<MachineId> =
            self.nodes.iter().filter(drained).map(|(id, _)| id.clone()).collect();
        let begins = !others.contains(id) && self.nodes.get(id).is_some_and(|node| node.pods > 0);
        self.asked.insert(id.clone());
        self.begun.insert(id.clone());
        begins.then_some(others)
    }

    /// Pods that a node still runs.
    pub(crate) fn pods_on(&self, id: &MachineId) -> usize {
        self.nodes.get(id).map_or(0, |node| node.pods as usize)
    }

    /// Names of all nodes.
    pub(crate) fn names(&self) -> impl Iterator<Item = &MachineId> {
        self.nodes.keys()
    }

    /// The coordinator's process has ended: the next one knows only what it sees.
    pub(crate) fn coordinator_ended(&mut self) {
        self.begun.clear();
    }

    /// A drain that was asked for has come to the API server, or has not.
    pub(crate) fn drain_came(&mut self, id: &MachineId) {
        self.asked.remove(id);
    }

    /// Carries out a call. `lives` tells of a node whether its kubelet ends pods.
    pub(crate) fn call(
        &mut self,
        call: KubeCall,
        now: u64,
        budgets_hold: bool,
        lives: impl Fn(&MachineId) -> bool,
    ) -> Result<KubeAnswer, KubeFailure> {
        match call {
            KubeCall::Nodes => {
                Ok(KubeAnswer::Nodes(self.nodes.iter().map(|(id, node)| node.seen(id, now)).collect()))
            }
            KubeCall::SetNode { node, wish } => {
                self.find(&node)?.set(wish);
                Ok(KubeAnswer::Done)
            }
            KubeCall::Drain { node: id, force } => {
                let alive = lives(&id);
                let node = self.find(&id)?;
                Ok(KubeAnswer::Drained(node.drain(alive, budgets_hold && force == DrainForce::Never)))
            }
            KubeCall::Evacuate { node } => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.taints = vec![out_of_service()];
                    node.pods = 0;
                    node.ending = 0;
                }
                Ok(KubeAnswer::Drained(DrainState::default()))
            }
            KubeCall::DeleteNode { node } => {
                self.nodes.remove(&node);
                self.begun.remove(&node);
                Ok(KubeAnswer::Done)
            }
        }
    }

    fn find(&mut self, id: &MachineId) -> Result<&mut Node, KubeFailure> {
        self.nodes.get_mut(id).ok_or_else(|| KubeFailure::NoNode { node: id.clone() })
    }
}

impl Node {
    fn seen(&self, id: &MachineId, now: u64) -> NodeSeen {
        let ready = now - self.beat < NODE_GRACE_MS;
        NodeSeen {
            name: id.to_string(),
            uid: self.uid.to_string(),
            ready: if ready { NodeReady::True } else { NodeReady::Unknown },
            why: None,
            lease: Some(self.beat.to_string()),
            cordon: self.cordon,
            labels: self.labels.clone(),
            taints: self.taints.clone(),
            boot: None,
            kubelet: None,
            created: String::new(),
        }
    }

    fn set(&mut self, wish: NodeWish) {
        if let Some(cordon) = wish.cordon {
            self.cordon = cordon;
        }
        for (key, value) in wish.labels {
            match value {
                Some(value) => drop(self.labels.insert(key, value)),
                None => drop(self.labels.remove(&key)),
            }
        }
        for taint in wish.taints {
            match taint {
                TaintWish::Present(taint) => self.taints.push(taint),
                TaintWish::Absent { key, effect } => {
                    self.taints.retain(|taint| taint.key != key || taint.effect != effect);
                }
            }
        }
    }

    /// One pass: pods that were told to end are gone when their kubelet lives; then the others are told.
    fn drain(&mut self, alive: bool, budgets_hold: bool) -> DrainState {
        self.cordon = Cordon::Cordoned;
        if alive {
            self.pods -= self.ending;
            self.ending = 0;
        }
        if !budgets_hold {
            self.ending = self.pods;
        }
        let why = if budgets_hold {
            PodWait::Refused { why: "a disruption budget".to_owned() }
        } else {
            PodWait::Ending { finalizers: Vec::new() }
        };
        let left = |number| PodLeft {
            namespace: "default".to_owned(),
            pod: format!("web-{number}"),
            owner: None,
            why: why.clone(),
        };
        DrainState::new((0..self.pods).map(left).collect(), 0)
    }
}
