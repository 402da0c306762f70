//! Routes to other machines, and the balancer in front of the API servers.

use std::collections::BTreeSet;

use keelson_protocol::config::{BalancerSpec, NodeConfig, RouteSpec};
use keelson_protocol::health::EventKind;

use crate::action::{Step, StepKey};
use crate::core::AgentCore;
use crate::looks::Class;
use crate::rest::News;

#[derive(Debug, Default)]
pub(crate) struct Network {
    routes: Option<BTreeSet<RouteSpec>>,
    /// Routes were as wanted at least once under this config: another state from then on is drift.
    settled: bool,
    /// What was seen when a drift is being undone.
    drift: Option<String>,
    balancer: Balancer,
    balancer_ordered: Option<BalancerSpec>,
}

/// What is known of the balancer.
#[derive(Debug, PartialEq, Eq)]
enum Balancer {
    /// A step failed: it may run as before, as ordered, or not at all.
    Unknown,
    /// It runs so, or not at all, as at the start of an agent.
    Known(Option<BalancerSpec>),
}

impl Default for Balancer {
    fn default() -> Self {
        Self::Known(None)
    }
}

impl Balancer {
    fn is(&self, wanted: &Option<BalancerSpec>) -> bool {
        matches!(self, Self::Known(known) if known == wanted)
    }
}

impl Network {
    pub(crate) fn routes_seen(&mut self, routes: BTreeSet<RouteSpec>) -> News {
        let before = self.routes.replace(routes);
        News::when(before != self.routes)
    }

    pub(crate) fn config_changed(&mut self) {
        self.settled = false;
    }

    /// What is not as wanted, in words.
    pub(crate) fn unsettled(&self, config: &NodeConfig) -> Option<&'static str> {
        let wanted: BTreeSet<RouteSpec> = config.routes.iter().copied().collect();
        if self.routes.as_ref() != Some(&wanted) {
            return Some("routes");
        }
        (!self.balancer.is(&config.balancer)).then_some("balancer")
    }
}

impl AgentCore {
    pub(crate) fn reconcile_network(&mut self, config: &NodeConfig) {
        self.reconcile_routes(config);
        if !self.network.balancer.is(&config.balancer) && self.free(&StepKey::Balancer) {
            self.network.balancer_ordered.clone_from(&config.balancer);
            self.run(Step::Balance(config.balancer.clone()));
        }
    }

    fn reconcile_routes(&mut self, config: &NodeConfig) {
        let Some(seen) = &self.network.routes else { return };
        let wanted: BTreeSet<RouteSpec> = config.routes.iter().copied().collect();
        if *seen == wanted {
            self.network.settled = true;
            return;
        }
        let add: Vec<RouteSpec> = wanted.difference(seen).copied().collect();
        // A route that goes another way now is replaced by adding it; removing it as well would cut the new one.
        let remove: Vec<RouteSpec> = seen
            .difference(&wanted)
            .filter(|old| !add.iter().any(|new| new.destination == old.destination))
            .copied()
            .collect();
        if !self.free(&StepKey::Routes) {
            return;
        }
        let drift = format!("{} routes were missing or wrong, {} were too many", add.len(), remove.len());
        self.network.drift = self.network.settled.then_some(drift);
        self.run(Step::ChangeRoutes { add, remove });
    }

    pub(crate) fn routes_done(&mut self, done: bool) {
        self.network.routes = None;
        self.look_again(Class::Routes);
        if let Some(cause) = self.network.drift.take().filter(|_| done) {
            self.note(EventKind::Repaired, "routes", &cause, "set again");
        }
    }

    pub(crate) fn balancer_done(&mut self, done: bool) {
        let ordered = self.network.balancer_ordered.take();
        self.network.balancer = if done { Balancer::Known(ordered) } else { Balancer::Unknown };
    }
}
