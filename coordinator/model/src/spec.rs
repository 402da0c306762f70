//! What a user asks for.

use ipnet::Ipv4Net;
use keelson_protocol::{ClusterName, ReleaseName};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlanName, Role};

/// Most workers of one cluster. Ten times the largest plan, below the routes that one machine may hold.
pub const WORKERS_MAX: u16 = 1_000;
/// Most exposed services of one cluster.
pub const EXPOSED_MAX: usize = 64;
/// Ports that Kubernetes gives to NodePort services.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A cluster as its owner wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Its name; never changes.
    pub name: ClusterName,
    /// The plan it follows.
    pub plan: PlanName,
    /// The release that it runs.
    pub release: ReleaseName,
    /// Number of workers; the plan's own number when absent.
    #[serde(default)]
    pub workers: Option<u16>,
    /// NodePort services that users reach from outside.
    #[serde(default)]
    pub expose: Vec<ExposeSpec>,
    /// Addresses of pods.
    #[serde(default = "default_pod_network")]
    pub pod_network: Ipv4Net,
    /// Addresses of Services.
    #[serde(default = "default_service_network")]
    pub service_network: Ipv4Net,
    /// Whether deletion is refused until this is switched off.
    #[serde(default)]
    pub deletion_protection: bool,
}

/// A NodePort service that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExposeSpec {
    /// Name for people and for `cluster show`.
    pub name: String,
    /// The NodePort.
    pub node_port: u16,
}

/// The default pod network: 256 nodes with 254 pods each.
#[must_use]
pub fn default_pod_network() -> Ipv4Net {
    Ipv4Net::new_assert([10, 244, 0, 0].into(), 16)
}

/// The default Service network, that of kubeadm.
#[must_use]
pub fn default_service_network() -> Ipv4Net {
    Ipv4Net::new_assert([10, 96, 0, 0].into(), 16)
}

/// Why a spec cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The plan has no pool of workers that could be sized.
    #[error("plan {plan} has no pool of workers of its own; choose plan small to set their number")]
    NoWorkerPool {
        /// The plan.
        plan: PlanName,
    },
    /// Too few or too many workers.
    #[error("{workers} workers are not possible: choose 1 to {workers_max}")]
    Workers {
        /// Asked for.
        workers: u16,
        /// Most that are possible.
        workers_max: u16,
    },
    /// The pod network cannot give each machine its part.
    #[error("pod network {network} has room for {machines_max} machines, {machines} are asked for")]
    PodNetworkTooSmall {
        /// The network.
        network: Ipv4Net,
        /// Machines asked for.
        machines: usize,
        /// Machines that fit.
        machines_max: usize,
    },
    /// Two networks overlap.
    #[error("{one} and {other} overlap; choose networks that do not")]
    NetworksOverlap {
        /// One network.
        one: Ipv4Net,
        /// The other.
        other: Ipv4Net,
    },
    /// A Service network needs room for at least the API and DNS Services.
    #[error("service network {network} is too small: use a /24 or larger")]
    ServiceNetworkTooSmall {
        /// The network.
        network: Ipv4Net,
    },
    /// An exposed service is not valid.
    #[error("exposed service `{name}`: {why}")]
    Expose {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
}

/// Prefix length of the pod network of one machine: room for 254 pods, twice kubelet's default.
pub const POD_PREFIX_PER_MACHINE: u8 = 24;

impl ClusterSpec {
    /// Checks the spec against its plan and against `infrastructure`, the network of the provider.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn check(&self, plan: &Plan, infrastructure: Ipv4Net) -> Result<(), SpecError> {
        let machines = self.check_workers(plan)?;
        let prefix = self.pod_network.prefix_len();
        let machines_max = match POD_PREFIX_PER_MACHINE.checked_sub(prefix) {
            Some(bits) => 1_usize << bits.min(16),
            None => 0,
        };
        if machines > machines_max {
            return Err(SpecError::PodNetworkTooSmall { network: self.pod_network, machines, machines_max });
        }
        if self.service_network.prefix_len() > 24 {
            return Err(SpecError::ServiceNetworkTooSmall { network: self.service_network });
        }
        let networks = [self.pod_network, self.service_network, infrastructure];
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (one, other) = (networks[one], networks[other]);
            if one.contains(&other.network()) || other.contains(&one.network()) {
                return Err(SpecError::NetworksOverlap { one, other });
            }
        }
        self.check_expose()
    }

    fn check_workers(&self, plan: &Plan) -> Result<usize, SpecError> {
        let mut machines = 0_usize;
        for pool in &plan.pools {
            machines += usize::from(pool.count);
        }
        let Some(workers) = self.workers else { return Ok(machines) };
        let Some(pool) = plan.worker_pool() else {
            return Err(SpecError::NoWorkerPool { plan: self.plan.clone() });
        };
        if workers == 0 || workers > WORKERS_MAX {
            return Err(SpecError::Workers { workers, workers_max: WORKERS_MAX });
        }
        Ok(machines - usize::from(pool.count) + usize::from(workers))
    }

    fn check_expose(&self) -> Result<(), SpecError> {
        for (index, expose) in self.expose.iter().enumerate() {
            let refuse = |why: String| Err(SpecError::Expose { name: expose.name.clone(), why });
            if index >= EXPOSED_MAX {
                return refuse(format!("at most {EXPOSED_MAX} services can be exposed"));
            }
            if ClusterName::new(expose.name.clone()).is_err() || expose.name == "api" {
                return refuse("use lower-case letters, digits and `-`, and not `api`".to_owned());
            }
            if !NODE_PORTS.contains(&expose.node_port) {
                let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
                return refuse(format!("port {} is no NodePort; use {first} to {last}", expose.node_port));
            }
            if self.expose[..index].iter().any(|other| other.name == expose.name) {
                return refuse("the name is used twice".to_owned());
            }
        }
        Ok(())
    }

    /// How many machines a pool of the plan has for this spec.
    #[must_use]
    pub fn pool_count(&self, plan: &Plan, index: usize) -> u16 {
        let pool = &plan.pools[index];
        let sized = plan.worker_pool().is_some_and(|worker| worker.name == pool.name);
        if sized && pool.roles.contains(&Role::Worker) {
            self.workers.unwrap_or(pool.count)
        } else {
            pool.count
        }
    }
}
