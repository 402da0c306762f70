//! What a user asks for.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use keelson_protocol::{ClusterName, ReleaseName};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlanName, PoolName, PoolPlan, Role};

/// Most workers of one cluster. Ten times the largest plan, below the routes that one machine may hold.
pub const WORKERS_MAX: u16 = 1_000;
/// Numbers of etcd members that are useful: an even number outlives no more losses than the odd one below it, and each
/// member more slows every write (etcd FAQ, "Why an odd number of cluster members?").
pub const ETCD_COUNTS: [u16; 3] = [1, 3, 5];
/// Most masters of one cluster: as many as etcd members, beyond which another adds load and no safety.
pub const MASTERS_MAX: u16 = 5;
/// Most exposed services of one cluster.
pub const EXPOSED_MAX: usize = 64;
/// Ports that Kubernetes gives to NodePort services.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Most labels of one cluster: they are read with every list, and each label has at most 380 bytes.
pub const LABELS_MAX: usize = 64;
/// Longest name and longest value of a label, in characters, as Kubernetes has it.
pub const LABEL_CHARS_MAX: usize = 63;
/// Longest prefix of a label's key, in characters: a DNS name (RFC 1123).
pub const LABEL_PREFIX_CHARS_MAX: usize = 253;

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
    /// Numbers of machines by pool; the plan's own number for a pool that is not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<PoolName, u16>,
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
    /// How pods leave machines that go.
    #[serde(default, skip_serializing_if = "DrainSpec::is_default")]
    pub drain: DrainSpec,
    /// What its owner says of it, to select by: syntax of Kubernetes' labels. No blueprint holds them, so changing them
    /// reaches no machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Longest time that a drain may be given, in seconds: a day.
pub const DRAIN_TIMEOUT_S_MAX: u32 = 24 * 3600;

/// How pods leave a machine that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSpec {
    /// How long disruption budgets are heeded, in seconds.
    pub timeout_s: u32,
    /// What happens then.
    pub then: DrainThen,
}

/// What happens when pods may still not be evicted at the end of a drain's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DrainThen {
    /// They are deleted, with their own grace period: the machine goes.
    Force,
    /// They are asked again until it is allowed: the machine stays.
    Wait,
}

impl Default for DrainSpec {
    /// Ten minutes, then by force: most budgets allow a pod to go once its replacement is up elsewhere, and a budget that
    /// never allows it must not keep a machine for ever.
    fn default() -> Self {
        Self { timeout_s: 600, then: DrainThen::Force }
    }
}

impl DrainSpec {
    /// How long disruption budgets are heeded.
    #[must_use]
    pub fn timeout(self) -> std::time::Duration {
        std::time::Duration::from_secs(u64::from(self.timeout_s))
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// The plan has no such pool.
    #[error("plan {plan} has no pool `{pool}`; it has {known}")]
    NoPool {
        /// The plan.
        plan: PlanName,
        /// Asked for.
        pool: PoolName,
        /// Names of its pools.
        known: String,
    },
    /// Too few or too many machines of a pool.
    #[error("{count} machines of pool {pool} are not possible: {why}")]
    PoolCount {
        /// The pool.
        pool: PoolName,
        /// Asked for.
        count: u16,
        /// Which rule that breaks, and what is possible.
        why: String,
    },
    /// The number of etcd members is of no use.
    #[error(
        "{members} etcd members are not possible: choose 1, 3 or 5, as an even number outlives no more losses"
    )]
    EtcdCount {
        /// Asked for.
        members: u16,
    },
    /// Number of workers given twice.
    #[error("`workers` and `pools` both set the size of pool {pool}; leave one of them out")]
    WorkersTwice {
        /// The pool.
        pool: PoolName,
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
    /// A drain has too much time.
    #[error("a drain of {timeout_s} seconds is not possible: choose 0 to {DRAIN_TIMEOUT_S_MAX}")]
    DrainTimeout {
        /// Asked for.
        timeout_s: u32,
    },
    /// A label is not valid.
    #[error("label `{key}`: {why}")]
    Label {
        /// Its key.
        key: String,
        /// Why not.
        why: LabelError,
    },
}

/// Why a label cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key's prefix is no DNS name.
    #[error(
        "in front of `/` stands a DNS name of at most {LABEL_PREFIX_CHARS_MAX} characters, such as example.com"
    )]
    Prefix,
    /// The key's name has a wrong form.
    #[error(
        "the name has 1 to {LABEL_CHARS_MAX} letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit"
    )]
    Name,
    /// The value has a wrong form.
    #[error(
        "the value `{value}` is not possible: use at most {LABEL_CHARS_MAX} letters, digits, `-`, `_` and `.`, \
         beginning and ending with a letter or digit, or nothing"
    )]
    Value {
        /// The value.
        value: String,
    },
    /// There are too many.
    #[error("at most {LABELS_MAX} labels are possible")]
    TooMany,
}

/// Checks the key of a label: an optional DNS prefix with `/`, and a name (the rules of Kubernetes' labels).
///
/// # Errors
/// [`LabelError::Prefix`] or [`LabelError::Name`].
pub fn check_label_key(key: &str) -> Result<(), LabelError> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| !is_dns_name(prefix)) {
        return Err(LabelError::Prefix);
    }
    if name.is_empty() || !is_label_word(name) { Err(LabelError::Name) } else { Ok(()) }
}

/// Checks the value of a label, which may be empty.
///
/// # Errors
/// [`LabelError::Value`].
pub fn check_label_value(value: &str) -> Result<(), LabelError> {
    if is_label_word(value) { Ok(()) } else { Err(LabelError::Value { value: value.to_owned() }) }
}

fn is_label_word(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= LABEL_CHARS_MAX
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_dns_name(text: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        part.bytes().next().is_some_and(lower)
            && part.bytes().next_back().is_some_and(lower)
            && part.bytes().all(|byte| lower(byte) || byte == b'-')
    };
    text.len() <= LABEL_PREFIX_CHARS_MAX && text.split('.').all(part)
}

/// Prefix length of the pod network of one machine: room for 254 pods, twice kubelet's default.
pub const POD_PREFIX_PER_MACHINE: u8 = 24;

impl ClusterSpec {
    /// Checks the spec against its plan and against `infrastructure`, the network of the provider.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn check(&self, plan: &Plan, infrastructure: Ipv4Net) -> Result<(), SpecError> {
        let machines = self.check_counts(plan)?;
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
        self.check_expose()?;
        self.check_drain()?;
        self.check_labels()
    }

    /// Checks the drain alone: it changes while everything else stays.
    ///
    /// # Errors
    /// [`SpecError::DrainTimeout`].
    pub fn check_drain(&self) -> Result<(), SpecError> {
        let timeout_s = self.drain.timeout_s;
        if timeout_s > DRAIN_TIMEOUT_S_MAX { Err(SpecError::DrainTimeout { timeout_s }) } else { Ok(()) }
    }

    /// Checks the labels alone: they change while everything else stays.
    ///
    /// # Errors
    /// [`SpecError::Label`].
    pub fn check_labels(&self) -> Result<(), SpecError> {
        for (index, (key, value)) in self.labels.iter().enumerate() {
            let count = if index < LABELS_MAX { Ok(()) } else { Err(LabelError::TooMany) };
            let checked = count.and(check_label_key(key)).and(check_label_value(value));
            checked.map_err(|why| SpecError::Label { key: key.clone(), why })?;
        }
        Ok(())
    }

    /// Checks the numbers of machines and returns their sum.
    fn check_counts(&self, plan: &Plan) -> Result<usize, SpecError> {
        if let Some(pool) = self.pools.keys().find(|name| plan.pool(name).is_none()) {
            let known: Vec<String> = plan.pools.iter().map(|pool| pool.name.to_string()).collect();
            let (plan, pool) = (self.plan.clone(), pool.clone());
            return Err(SpecError::NoPool { plan, pool, known: known.join(", ") });
        }
        self.check_workers(plan)?;
        check_plan_counts(plan, |pool| self.count(plan, pool))
    }

    fn check_workers(&self, plan: &Plan) -> Result<(), SpecError> {
        let Some(workers) = self.workers else { return Ok(()) };
        let Some(pool) = plan.worker_pool() else {
            return Err(SpecError::NoWorkerPool { plan: self.plan.clone() });
        };
        if self.pools.contains_key(&pool.name) {
            return Err(SpecError::WorkersTwice { pool: pool.name.clone() });
        }
        if workers == 0 || workers > WORKERS_MAX {
            return Err(SpecError::Workers { workers, workers_max: WORKERS_MAX });
        }
        Ok(())
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
    pub fn count(&self, plan: &Plan, pool: &PoolPlan) -> u16 {
        let sized = plan.worker_pool().is_some_and(|worker| worker.name == pool.name);
        let workers = self.workers.filter(|_| sized);
        self.pools.get(&pool.name).copied().or(workers).unwrap_or(pool.count)
    }
}

/// Checks the numbers of a plan's machines, `count` of each pool, and returns their sum.
pub(crate) fn check_plan_counts(plan: &Plan, count: impl Fn(&PoolPlan) -> u16) -> Result<usize, SpecError> {
    for pool in &plan.pools {
        check_pool_count(pool, count(pool))?;
    }
    let with = |role: Role| plan.pools.iter().filter(move |pool| pool.roles.contains(&role));
    let sum = |role: Role| with(role).map(&count).fold(0, u16::saturating_add);
    let members = sum(Role::Etcd);
    if !ETCD_COUNTS.contains(&members) {
        return Err(SpecError::EtcdCount { members });
    }
    for (role, count_max) in [(Role::Master, MASTERS_MAX), (Role::Worker, WORKERS_MAX)] {
        let count = sum(role);
        if let Some(pool) = with(role).next()
            && (count == 0 || count > count_max)
        {
            let why = format!("a cluster has 1 to {count_max} machines with role {role}");
            return Err(SpecError::PoolCount { pool: pool.name.clone(), count, why });
        }
    }
    Ok(plan.pools.iter().map(|pool| usize::from(count(pool))).sum())
}

fn check_pool_count(pool: &PoolPlan, count: u16) -> Result<(), SpecError> {
    if count == 0 && !(pool.roles.len() == 1 && pool.roles.contains(&Role::Worker)) {
        let why = "without them the cluster would lose its state or its API".to_owned();
        return Err(SpecError::PoolCount { pool: pool.name.clone(), count, why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_kubernetes() {
        let long = "x".repeat(LABEL_CHARS_MAX);
        let longer = "x".repeat(LABEL_CHARS_MAX + 1);
        for key in ["env", "Env_1.x", "example.com/team", "a-b.c/d", &long, &format!("a/{long}")] {
            assert_eq!(check_label_key(key), Ok(()), "{key}");
        }
        for key in ["", "-a", "a-", "a b", "a/b/c", "ü", &longer] {
            assert_eq!(check_label_key(key), Err(LabelError::Name), "{key}");
        }
        for key in ["/a", "A.com/a", "a..b/a", "-a/b", &format!("{}/a", "a.".repeat(127))] {
            assert_eq!(check_label_key(key), Err(LabelError::Prefix), "{key}");
        }
        for value in ["", "prod", "1.0_x-Y", &long] {
            assert_eq!(check_label_value(value), Ok(()), "{value}");
        }
        for value in ["-", "a ", "a/b", &longer] {
            assert!(check_label_value(value).is_err(), "{value}");
        }
    }

    #[test]
    fn rows_from_before_labels_still_load_and_stay_the_same() {
        let old = r#"{"name":"demo","plan":"small","release":"1.37.2"}"#;
        let mut spec: ClusterSpec = serde_json::from_str(old).unwrap();
        assert!(spec.labels.is_empty());
        assert!(!serde_json::to_string(&spec).unwrap().contains("labels"));
        for number in 0..LABELS_MAX {
            spec.labels.insert(format!("l{number:02}"), String::new());
        }
        assert_eq!(spec.check_labels(), Ok(()));
        spec.labels.insert("more".to_owned(), String::new());
        assert_eq!(
            spec.check_labels(),
            Err(SpecError::Label { key: "more".to_owned(), why: LabelError::TooMany })
        );
    }
}
