//! Whether a plan can be accepted.

use std::collections::BTreeSet;

use keelson_protocol::ids::{CLUSTER_NAME_BYTES_MAX, LABEL_BYTES_MAX};

use crate::plan::{Plan, PlanName, PoolName, PoolPlan, Role};
use crate::quantity::bytes_text;
use crate::spec::{LABELS_MAX, LabelError, SpecError, check_label_key, check_label_value, check_plan_counts};

/// Most pools of a plan: each role alone and some kinds of workers.
pub const POOLS_MAX: usize = 16;
/// Digits of the largest number of a machine. Numbers are never given twice, so they outgrow any count.
const NUMBER_DIGITS_MAX: usize = 6;
/// Longest name of a pool, in bytes: `<cluster>-<pool>-<number>` is a DNS label whatever the cluster is called.
pub const POOL_NAME_BYTES_MAX: usize = LABEL_BYTES_MAX - CLUSTER_NAME_BYTES_MAX - NUMBER_DIGITS_MAX - 2;
/// Longest description, in bytes: one sentence, on one line.
pub const DESCRIPTION_BYTES_MAX: usize = 256;
/// Most taints of a pool: a node with more is one that nobody understands.
pub const TAINTS_MAX: usize = 16;
/// Smallest state disk, in bytes: logs and the pod sandbox image have room.
pub const DISK_BYTES_MIN: u64 = 1 << 30;
/// Fewer etcd members than this cannot be spread so that the loss of any zone is outlived.
pub const SPREAD_MEMBERS_MIN: usize = 3;
/// Fewer zones than this cannot either.
pub const SPREAD_ZONES_MIN: usize = 3;
/// Namespaces of labels that kubelet refuses to start with unless it knows the label (kubelet `--node-labels`).
const GUARDED_NAMESPACES: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Those below them that are for everybody (kubelet `--node-labels`).
const OPEN_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Namespace of the labels that we set ourselves.
const OWN_NAMESPACE: &str = "keelson.dev";

/// Why a plan cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanSpecError {
    /// Its own name is none.
    #[error("`{name}` is no name of a plan: {}", label_rule(LABEL_BYTES_MAX))]
    Name {
        /// The name.
        name: PlanName,
    },
    /// Its description is too long or has line breaks.
    #[error("the description has one line of at most {DESCRIPTION_BYTES_MAX} bytes")]
    Description,
    /// Too few or too many pools.
    #[error("a plan has 1 to {POOLS_MAX} pools, not {pools}")]
    Pools {
        /// How many there are.
        pools: usize,
    },
    /// Two pools have one name.
    #[error("two pools are called {pool}")]
    PoolTwice {
        /// The name.
        pool: PoolName,
    },
    /// The name of a pool is none.
    #[error("`{pool}` is no name of a pool: {}", label_rule(POOL_NAME_BYTES_MAX))]
    PoolName {
        /// The name.
        pool: PoolName,
    },
    /// The machines of a pool would do nothing.
    #[error("pool {pool} has no role: choose of etcd, master, worker")]
    NoRole {
        /// The pool.
        pool: PoolName,
    },
    /// No pool has a role that every cluster needs.
    #[error("no pool has the role {role}, which every cluster needs")]
    RoleMissing {
        /// The role.
        role: Role,
    },
    /// Its counts cannot be.
    #[error(transparent)]
    Count(#[from] SpecError),
    /// A zone does not exist.
    #[error("pool {pool}: there is no zone `{zone}`; there are {known}")]
    Zone {
        /// The pool.
        pool: PoolName,
        /// The zone.
        zone: String,
        /// Zones that there are.
        known: String,
    },
    /// All machines with a role stand in so few zones that the loss of one costs the cluster its data or its API, though there are
    /// zones enough.
    #[error(
        "machines with the role {role} stand in {named} of {} zones, and the loss of one would be that of the cluster: name {needed} \
         at least, or none",
        zones
    )]
    Spread {
        /// The role.
        role: Role,
        /// Zones that pools with that role name.
        named: usize,
        /// How many they must.
        needed: usize,
        /// Zones that there are.
        zones: usize,
    },
    /// A label is not valid.
    #[error("pool {pool}: label `{key}`: {why}")]
    Label {
        /// The pool.
        pool: PoolName,
        /// Its key.
        key: String,
        /// Why not.
        why: LabelError,
    },
    /// Kubelet would not start with a label, or it is ours.
    #[error(
        "pool {pool}: label `{key}` is in a namespace that is not for users; use one of your own, such as example.com/"
    )]
    LabelGuarded {
        /// The pool.
        pool: PoolName,
        /// Its key.
        key: String,
    },
    /// A taint is not valid.
    #[error("pool {pool}: taint `{key}`: {why}")]
    Taint {
        /// The pool.
        pool: PoolName,
        /// Its key.
        key: String,
        /// Why not.
        why: LabelError,
    },
    /// A taint stands twice, which Kubernetes refuses, or there are too many.
    #[error("pool {pool}: taint `{key}` stands twice with one effect, or is one of more than {TAINTS_MAX}")]
    TaintTwice {
        /// The pool.
        pool: PoolName,
        /// Its key.
        key: String,
    },
    /// The disk is too small.
    #[error("pool {pool}: a disk of {} is too small, at least {} are needed", bytes_text(*disk_bytes), bytes_text(DISK_BYTES_MIN))]
    Disk {
        /// The pool.
        pool: PoolName,
        /// Asked for.
        disk_bytes: u64,
    },
    /// A machine with nothing of something cannot work.
    #[error("pool {pool}: {what} is 0; leave it out for no limit")]
    Zero {
        /// The pool.
        pool: PoolName,
        /// Of what.
        what: &'static str,
    },
}

fn label_rule(bytes_max: usize) -> String {
    format!(
        "use at most {bytes_max} lower-case letters, digits and `-`, beginning and ending with a letter or digit"
    )
}

impl PlanSpecError {
    /// The field of the plan's document that is wrong.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Name { .. } => "name",
            Self::Description => "description",
            Self::Pools { .. } => "pools",
            Self::PoolTwice { .. } | Self::PoolName { .. } => "pools.name",
            Self::NoRole { .. } | Self::RoleMissing { .. } => "pools.roles",
            Self::Count(_) => "pools.count",
            Self::Zone { .. } | Self::Spread { .. } => "pools.zones",
            Self::Label { .. } | Self::LabelGuarded { .. } => "pools.labels",
            Self::Taint { .. } | Self::TaintTwice { .. } => "pools.taints",
            Self::Disk { .. } => "pools.disk",
            Self::Zero { what, .. } => match *what {
                "cpu" => "pools.cpu",
                _ => "pools.memory",
            },
        }
    }
}

impl Plan {
    /// Checks the plan against the rules of all plans and against `zones`, those of the infrastructure.
    ///
    /// # Errors
    /// The first [`PlanSpecError`] found.
    pub fn check(&self, zones: &[String]) -> Result<(), PlanSpecError> {
        if !is_label(&self.name.0, LABEL_BYTES_MAX) {
            return Err(PlanSpecError::Name { name: self.name.clone() });
        }
        if self.description.len() > DESCRIPTION_BYTES_MAX || self.description.chars().any(char::is_control) {
            return Err(PlanSpecError::Description);
        }
        if self.pools.is_empty() || self.pools.len() > POOLS_MAX {
            return Err(PlanSpecError::Pools { pools: self.pools.len() });
        }
        let mut names = BTreeSet::new();
        for pool in &self.pools {
            if !names.insert(&pool.name) {
                return Err(PlanSpecError::PoolTwice { pool: pool.name.clone() });
            }
            pool.check(zones)?;
        }
        for role in [Role::Etcd, Role::Master, Role::Worker] {
            if self.pools.iter().all(|pool| !pool.roles.contains(&role)) {
                return Err(PlanSpecError::RoleMissing { role });
            }
        }
        check_plan_counts(self, |pool| pool.count)?;
        self.check_spread(zones)
    }

    /// One zone may be lost. What only runs pods stands where its users want it.
    fn check_spread(&self, zones: &[String]) -> Result<(), PlanSpecError> {
        for (role, machines, needed) in
            [(Role::Etcd, SPREAD_MEMBERS_MIN, SPREAD_ZONES_MIN), (Role::Master, 2, 2)]
        {
            let pools = || self.pools.iter().filter(|pool| pool.roles.contains(&role));
            let count: usize = pools().map(|pool| usize::from(pool.count)).sum();
            let named: BTreeSet<&String> =
                pools().flat_map(|pool| if pool.zones.is_empty() { zones } else { &pool.zones }).collect();
            if count >= machines && zones.len() >= needed && named.len() < needed {
                return Err(PlanSpecError::Spread { role, named: named.len(), needed, zones: zones.len() });
            }
        }
        Ok(())
    }
}

impl PoolPlan {
    fn check(&self, zones: &[String]) -> Result<(), PlanSpecError> {
        let pool = || self.name.clone();
        if !is_label(&self.name.0, POOL_NAME_BYTES_MAX) {
            return Err(PlanSpecError::PoolName { pool: pool() });
        }
        if self.roles.is_empty() {
            return Err(PlanSpecError::NoRole { pool: pool() });
        }
        if let Some(zone) = self.zones.iter().find(|zone| !zones.contains(zone)) {
            return Err(PlanSpecError::Zone { pool: pool(), zone: zone.clone(), known: zones.join(", ") });
        }
        let size = self.size;
        if size.disk_bytes < DISK_BYTES_MIN {
            return Err(PlanSpecError::Disk { pool: pool(), disk_bytes: size.disk_bytes });
        }
        for (what, zero) in [("cpu", size.cpu_millis == Some(0)), ("memory", size.memory_bytes == Some(0))] {
            if zero {
                return Err(PlanSpecError::Zero { pool: pool(), what });
            }
        }
        self.check_labels()?;
        self.check_taints()
    }

    fn check_labels(&self) -> Result<(), PlanSpecError> {
        for (index, (key, value)) in self.labels.iter().enumerate() {
            let count = if index < LABELS_MAX { Ok(()) } else { Err(LabelError::TooMany) };
            let checked = count.and(check_label_key(key)).and(check_label_value(value));
            checked.map_err(|why| PlanSpecError::Label { pool: self.name.clone(), key: key.clone(), why })?;
            if is_guarded(key) {
                return Err(PlanSpecError::LabelGuarded { pool: self.name.clone(), key: key.clone() });
            }
        }
        Ok(())
    }

    fn check_taints(&self) -> Result<(), PlanSpecError> {
        let mut seen = BTreeSet::new();
        for taint in &self.taints {
            let (pool, key) = (self.name.clone(), taint.key.clone());
            if let Err(why) = check_label_key(&taint.key).and(check_label_value(&taint.value)) {
                return Err(PlanSpecError::Taint { pool, key, why });
            }
            if !seen.insert((&taint.key, taint.effect)) || seen.len() > TAINTS_MAX {
                return Err(PlanSpecError::TaintTwice { pool, key });
            }
        }
        Ok(())
    }
}

/// Whether a label's key is in a namespace that is not for users.
fn is_guarded(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else { return false };
    let within = |whole: &str| namespace == whole || namespace.ends_with(&format!(".{whole}"));
    let guarded = GUARDED_NAMESPACES.into_iter().any(within);
    within(OWN_NAMESPACE) || (guarded && !OPEN_NAMESPACES.contains(&namespace))
}

/// Whether a text is an RFC 1123 label of at most `bytes_max` bytes.
fn is_label(text: &str, bytes_max: usize) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    text.len() <= bytes_max
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| edge(Some(byte)) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Taint, TaintEffect};

    fn zones() -> Vec<String> {
        ["zone-a", "zone-b"].map(str::to_owned).to_vec()
    }

    /// Checks plan `small` after `change`.
    fn check(change: impl FnOnce(&mut Plan), expected: Result<(), (&str, &str)>) {
        let mut plan = Plan::built_in().into_iter().find(|plan| plan.name.0 == "small").unwrap();
        change(&mut plan);
        let found = plan.check(&zones()).map_err(|error| (error.field(), error.to_string()));
        assert_eq!(found, expected.map_err(|(field, why)| (field, why.to_owned())), "{plan:?}");
    }

    fn taint(key: &str, effect: TaintEffect) -> Taint {
        Taint { key: key.to_owned(), value: String::new(), effect }
    }

    #[test]
    fn built_in_plans_are_valid() {
        for plan in Plan::built_in() {
            assert_eq!(plan.check(&zones()), Ok(()), "{}", plan.name);
        }
    }

    #[test]
    fn names_and_pools() {
        let rule = |bytes_max| {
            format!(
                "use at most {bytes_max} lower-case letters, digits and `-`, beginning and ending with a letter or digit"
            )
        };
        let bad = |name: &str, what: &str, bytes_max: usize| {
            format!("`{name}` is no name of a {what}: {}", rule(bytes_max))
        };
        check(|plan| plan.name.0 = "Big".to_owned(), Err(("name", &bad("Big", "plan", 63))));
        check(|plan| plan.pools[2].name.0 = "gpu-".to_owned(), Err(("pools.name", &bad("gpu-", "pool", 15))));
        let long = "x".repeat(POOL_NAME_BYTES_MAX + 1);
        check(|plan| plan.pools[2].name.0 = long.clone(), Err(("pools.name", &bad(&long, "pool", 15))));
        check(|plan| plan.pools[2].name.0 = "x".repeat(POOL_NAME_BYTES_MAX), Ok(()));
        check(
            |plan| plan.pools[2].name.0 = "etcd".to_owned(),
            Err(("pools.name", "two pools are called etcd")),
        );
        check(|plan| plan.pools.clear(), Err(("pools", "a plan has 1 to 16 pools, not 0")));
        let one_line = "the description has one line of at most 256 bytes";
        check(|plan| plan.description = "a\nb".to_owned(), Err(("description", one_line)));
    }

    #[test]
    fn roles_and_counts_obey_the_rules_of_clusters() {
        let worker = "no pool has the role worker, which every cluster needs";
        check(|plan| plan.pools.truncate(2), Err(("pools.roles", worker)));
        let none = "pool worker has no role: choose of etcd, master, worker";
        check(|plan| plan.pools[2].roles.clear(), Err(("pools.roles", none)));
        let even =
            "2 etcd members are not possible: choose 1, 3 or 5, as an even number outlives no more losses";
        check(|plan| plan.pools[0].count = 2, Err(("pools.count", even)));
        let masters =
            "6 machines of pool master are not possible: a cluster has 1 to 5 machines with role master";
        check(|plan| plan.pools[1].count = 6, Err(("pools.count", masters)));
        let workers =
            "0 machines of pool worker are not possible: a cluster has 1 to 1000 machines with role worker";
        check(|plan| plan.pools[2].count = 0, Err(("pools.count", workers)));
    }

    #[test]
    fn places_sizes_labels_and_taints() {
        let zone = "pool worker: there is no zone `zone-x`; there are zone-a, zone-b";
        check(|plan| plan.pools[2].zones = vec!["zone-x".to_owned()], Err(("pools.zones", zone)));
        let disk = "pool worker: a disk of 512Mi is too small, at least 1Gi are needed";
        check(|plan| plan.pools[2].size.disk_bytes = 1 << 29, Err(("pools.disk", disk)));
        let cpu = "pool worker: cpu is 0; leave it out for no limit";
        check(|plan| plan.pools[2].size.cpu_millis = Some(0), Err(("pools.cpu", cpu)));
        let label = |key: &str| {
            let key = key.to_owned();
            move |plan: &mut Plan| drop(plan.pools[2].labels.insert(key, "x".to_owned()))
        };
        check(label("example.com/gpu"), Ok(()));
        check(label("node.kubernetes.io/gpu"), Ok(()));
        let guarded = |key: &str| {
            format!(
                "pool worker: label `{key}` is in a namespace that is not for users; use one of your own, such as example.com/"
            )
        };
        for key in ["node-role.kubernetes.io/gpu", "kubernetes.io/os", "keelson.dev/pool", "x.k8s.io/y"] {
            check(label(key), Err(("pools.labels", &guarded(key))));
        }
        let twice = "pool worker: taint `gpu` stands twice with one effect, or is one of more than 16";
        let taints = [taint("gpu", TaintEffect::NoSchedule), taint("gpu", TaintEffect::NoSchedule)];
        check(|plan| plan.pools[2].taints = taints.to_vec(), Err(("pools.taints", twice)));
        let taints = [taint("gpu", TaintEffect::NoSchedule), taint("gpu", TaintEffect::NoExecute)];
        check(|plan| plan.pools[2].taints = taints.to_vec(), Ok(()));
    }
    #[test]
    fn what_a_cluster_lives_by_outlives_the_loss_of_a_zone() {
        let zones: Vec<String> = ["zone-a", "zone-b", "zone-c"].map(str::to_owned).into();
        let ha = Plan::built_in().into_iter().find(|plan| plan.name.0 == "ha").unwrap();
        let named = |pool: usize, count: usize, zones: &[String]| {
            let mut plan = Plan { name: PlanName("mine".to_owned()), ..ha.clone() };
            plan.pools[pool].zones = zones[..count].to_vec();
            plan.check(zones).map_err(|error| error.to_string())
        };
        let words = |role: &str, named: usize, needed: usize| {
            Err(format!(
                "machines with the role {role} stand in {named} of 3 zones, and the loss of one would be that of the \
                 cluster: name {needed} at least, or none"
            ))
        };
        assert_eq!(named(0, 2, &zones), words("etcd", 2, 3));
        assert_eq!(named(0, 3, &zones), Ok(()));
        assert_eq!(named(1, 1, &zones), words("master", 1, 2));
        assert_eq!(named(1, 2, &zones), Ok(()));
        assert_eq!(named(2, 1, &zones), Ok(()), "workers stand where their users want them");
        assert_eq!(named(0, 2, &zones[..2]), Ok(()), "there are no more");
    }
}
