//! What differs between two states of a plan, and what a cluster that follows it would lose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::plan::{Plan, PoolName, PoolPlan, Role, Taint};
use crate::quantity::{bytes_text, cpu_text};

/// What a cluster would lose in a pool whose plan changes, so that the change is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// Machines that hold the cluster's state, or are its way in, would all go.
    Vanishes {
        /// What they do.
        roles: BTreeSet<Role>,
    },
    /// Machines that stand cannot become others.
    RolesChange {
        /// What they do.
        before: BTreeSet<Role>,
        /// What they would do.
        after: BTreeSet<Role>,
    },
    /// What is on a disk would no longer fit.
    DiskShrinks {
        /// How large it is, in bytes.
        before: u64,
        /// How large it would be, in bytes.
        after: u64,
    },
}

/// What a cluster would lose, and in which pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLoss {
    /// The pool.
    pub pool: PoolName,
    /// What would be lost.
    pub loss: Loss,
}

impl fmt::Display for PoolLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {} ", self.pool)?;
        match &self.loss {
            Loss::Vanishes { roles } if roles.contains(&Role::Etcd) => {
                write!(f, "would vanish, and with its machines the cluster's etcd data")
            }
            Loss::Vanishes { .. } => {
                write!(f, "would vanish, and with its machines the cluster's API servers")
            }
            Loss::RolesChange { before, after } => {
                let (before, after) = (role_words(before), role_words(after));
                write!(f, "would change from {before} to {after}, and its machines lose what they hold")
            }
            Loss::DiskShrinks { before, after } => {
                let (before, after) = (bytes_text(*before), bytes_text(*after));
                write!(f, "would get disks of {after} instead of {before}, too small for what is on them")
            }
        }
    }
}

impl Plan {
    /// What a cluster that has machines in the pools `standing` would lose if it followed this plan instead of `before`.
    #[must_use]
    pub fn losses(&self, before: &Self, standing: &BTreeSet<PoolName>) -> Vec<PoolLoss> {
        let stands = before.pools.iter().filter(|pool| standing.contains(&pool.name));
        let loss = |old: &PoolPlan| match self.pool(&old.name) {
            None => {
                let vital = old.roles.iter().any(|role| *role != Role::Worker);
                vital.then(|| Loss::Vanishes { roles: old.roles.clone() })
            }
            Some(new) if new.roles != old.roles => {
                Some(Loss::RolesChange { before: old.roles.clone(), after: new.roles.clone() })
            }
            Some(new) if new.size.disk_bytes < old.size.disk_bytes => {
                Some(Loss::DiskShrinks { before: old.size.disk_bytes, after: new.size.disk_bytes })
            }
            Some(_) => None,
        };
        stands.filter_map(|old| Some(PoolLoss { pool: old.name.clone(), loss: loss(old)? })).collect()
    }

    /// What differs from `before`, one sentence a difference; everything for a plan that is new.
    #[must_use]
    pub fn differences(&self, before: Option<&Self>) -> Vec<String> {
        let mut all = Vec::new();
        if before.is_some_and(|before| before.description != self.description) {
            all.push(format!("description: {}", self.description));
        }
        for pool in &self.pools {
            match before.and_then(|before| before.pool(&pool.name)) {
                None => {
                    let (name, count, roles) = (&pool.name, pool.count, role_words(&pool.roles));
                    all.push(format!("pool {name} is new: {count} with {roles}"));
                }
                Some(old) => pool_differences(old, pool, &mut all),
            }
        }
        for gone in before.iter().flat_map(|before| &before.pools) {
            if self.pool(&gone.name).is_none() {
                all.push(format!("pool {} vanishes", gone.name));
            }
        }
        if all.is_empty() && before.is_some_and(|before| before != self) {
            all.push("the pools stand in another order".to_owned());
        }
        all
    }
}

fn pool_differences(old: &PoolPlan, new: &PoolPlan, all: &mut Vec<String>) {
    let name = &new.name;
    if old.count != new.count {
        all.push(format!("pool {name}: count from {} to {}", old.count, new.count));
    }
    // Machines that stand stay as they are; only a new machine is made like its plan.
    let cpu = |pool: &PoolPlan| pool.size.cpu_millis.map_or_else(unlimited, cpu_text);
    let memory = |pool: &PoolPlan| pool.size.memory_bytes.map_or_else(unlimited, bytes_text);
    let zones =
        |pool: &PoolPlan| if pool.zones.is_empty() { "all".to_owned() } else { pool.zones.join(", ") };
    for (what, before, after) in [
        ("roles", role_words(&old.roles), role_words(&new.roles)),
        ("cpu", cpu(old), cpu(new)),
        ("memory", memory(old), memory(new)),
        ("disk", bytes_text(old.size.disk_bytes), bytes_text(new.size.disk_bytes)),
        ("zones", zones(old), zones(new)),
        ("labels", label_words(&old.labels), label_words(&new.labels)),
        ("taints", taint_words(&old.taints), taint_words(&new.taints)),
    ] {
        if before != after {
            all.push(format!("pool {name}: {what} from {before} to {after}, for new machines"));
        }
    }
}

fn unlimited() -> String {
    "unlimited".to_owned()
}

fn role_words(roles: &BTreeSet<Role>) -> String {
    roles.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

fn label_words(labels: &BTreeMap<String, String>) -> String {
    let words: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(",") }
}

fn taint_words(taints: &[Taint]) -> String {
    let words: Vec<String> = taints.iter().map(ToString::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Plan {
        Plan::built_in().into_iter().find(|plan| plan.name.0 == "small").unwrap()
    }

    fn standing(pools: &[&str]) -> BTreeSet<PoolName> {
        pools.iter().map(|pool| PoolName((*pool).to_owned())).collect()
    }

    fn check(change: impl FnOnce(&mut Plan), stands: &[&str], losses: &[&str], differences: &[&str]) {
        let (before, mut after) = (small(), small());
        change(&mut after);
        let lost: Vec<String> =
            after.losses(&before, &standing(stands)).iter().map(ToString::to_string).collect();
        assert_eq!(lost, losses);
        assert_eq!(after.differences(Some(&before)), differences);
    }

    #[test]
    fn what_would_be_lost_is_named() {
        let all = &["etcd", "master", "worker"];
        check(|_| {}, all, &[], &[]);
        check(|plan| plan.pools[2].count = 3, all, &[], &["pool worker: count from 2 to 3"]);
        check(|plan| drop(plan.pools.pop()), all, &[], &["pool worker vanishes"]);
        let etcd = "pool etcd would vanish, and with its machines the cluster's etcd data";
        check(|plan| drop(plan.pools.remove(0)), all, &[etcd], &["pool etcd vanishes"]);
        check(|plan| drop(plan.pools.remove(0)), &["worker"], &[], &["pool etcd vanishes"]);
        let master = "pool master would vanish, and with its machines the cluster's API servers";
        check(|plan| drop(plan.pools.remove(1)), all, &[master], &["pool master vanishes"]);
        check(
            |plan| plan.pools[2].size.disk_bytes = 10 << 30,
            all,
            &["pool worker would get disks of 10Gi instead of 20Gi, too small for what is on them"],
            &["pool worker: disk from 20Gi to 10Gi, for new machines"],
        );
        check(
            |plan| plan.pools[1].roles.extend([Role::Worker]),
            all,
            &["pool master would change from master to master+worker, and its machines lose what they hold"],
            &["pool master: roles from master to master+worker, for new machines"],
        );
        check(|plan| plan.pools.swap(0, 1), all, &[], &["the pools stand in another order"]);
    }

    #[test]
    fn a_new_plan_is_told_in_full() {
        let new = [
            "pool etcd is new: 1 with etcd",
            "pool master is new: 1 with master",
            "pool worker is new: 2 with worker",
        ];
        assert_eq!(small().differences(None), new);
    }
}
