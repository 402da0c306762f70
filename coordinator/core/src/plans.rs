//! Plans that users make and change, and the clusters that follow them.
//!
//! A change is refused as a whole when one of the clusters that use the plan could not follow it, or would lose data or
//! its API by it. Nothing of this is tried out on a cluster: each is planned to the end first.

use std::collections::BTreeSet;
use std::fmt;

use keelson_model::{ClusterSpec, FleetEvent, Plan, PlanName, PlanSpecError, PoolLoss, Severity};
use keelson_protocol::{ClusterName, MachineId};

use crate::command::Preview;
use crate::effect::Effect;
use crate::limits::PLANS_MAX;
use crate::row::Row;
use crate::state::{Cluster, CoordinatorCore, Now};

/// Why a plan was not taken, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefused {
    /// It breaks a rule.
    #[error(transparent)]
    Invalid(#[from] PlanSpecError),
    /// It comes with the coordinator.
    #[error("plan {name} is built in and stays as it is")]
    BuiltIn {
        /// Its name.
        name: PlanName,
    },
    /// No such plan.
    #[error("plan {name} does not exist; there are {known}")]
    NoPlan {
        /// Asked for.
        name: PlanName,
        /// Names of all plans.
        known: String,
    },
    /// Clusters follow it.
    #[error("plan {name} is used by {}", names(clusters))]
    InUse {
        /// Its name.
        name: PlanName,
        /// Who follows it.
        clusters: Vec<ClusterName>,
    },
    /// Clusters would be harmed.
    #[error("plan {name} cannot change like this: clusters that use it would be harmed")]
    Harms {
        /// Its name.
        name: PlanName,
        /// Which, and how.
        harms: Vec<Harm>,
    },
    /// There are too many plans.
    #[error("there are {PLANS_MAX} plans already, as many as can be")]
    TooMany,
}

/// How a change of a plan would harm a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Harm {
    /// The cluster.
    pub cluster: ClusterName,
    /// How.
    pub how: HarmKind,
}

/// What would happen to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HarmKind {
    /// It would lose something.
    Loses(PoolLoss),
    /// It could not follow.
    Impossible(String),
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            HarmKind::Loses(loss) => write!(f, "cluster {}: {loss}", self.cluster),
            HarmKind::Impossible(why) => write!(f, "cluster {} cannot follow: {why}", self.cluster),
        }
    }
}

fn names(clusters: &[ClusterName]) -> String {
    clusters.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(", ")
}

/// What applying a plan changes, or would change.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanChange {
    /// The plan as it was; `None` when it is new.
    pub before: Option<Plan>,
    /// The plan as it will be.
    pub after: Plan,
    /// What it comes to for each cluster that uses it; empty when the plan does not change.
    pub clusters: Vec<(ClusterName, Preview)>,
}

impl PlanChange {
    /// Whether the plan was like this before.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.before.as_ref() == Some(&self.after)
    }
}

impl CoordinatorCore {
    /// All plans: first those that come with the coordinator, then those of users.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        let own = |plan: &&Plan| !self.plans.contains_key(&plan.name);
        self.settings.plans.iter().filter(own).chain(self.plans.values())
    }

    /// The plan of that name. A user's plan from before a built-in one got its name stays what its clusters follow.
    #[must_use]
    pub fn plan(&self, name: &PlanName) -> Option<&Plan> {
        self.plans.get(name).or_else(|| self.settings.plans.iter().find(|plan| plan.name == *name))
    }

    /// Whether a plan comes with the coordinator.
    #[must_use]
    pub fn is_built_in(&self, name: &PlanName) -> bool {
        !self.plans.contains_key(name) && self.settings.plans.iter().any(|plan| plan.name == *name)
    }

    /// Names of all plans, for people.
    pub(crate) fn plan_names(&self) -> String {
        let names: Vec<String> = self.plans().map(|plan| plan.name.to_string()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// What [`Self::apply_plan`] would do in the end, without doing it.
    ///
    /// # Errors
    /// As [`Self::apply_plan`].
    pub fn preview_plan(&self, plan: &Plan) -> Result<PlanChange, PlanRefused> {
        let before = self.plan(&plan.name).cloned();
        let mut change = PlanChange { before, after: plan.clone(), clusters: Vec::new() };
        if change.is_nothing() {
            return Ok(change);
        }
        self.check_not_built_in(&plan.name)?;
        plan.check(&self.settings.place.zones)?;
        if change.before.is_none() && self.plans.len() >= PLANS_MAX {
            return Err(PlanRefused::TooMany);
        }
        let mut harms = Vec::new();
        for cluster in self.followers(&plan.name).filter(|cluster| cluster.row.wanted) {
            let name = cluster.row.spec.name.clone();
            match self.follow(cluster, change.before.as_ref(), plan) {
                Ok(preview) => change.clusters.push((name, preview)),
                Err(found) => {
                    harms.extend(found.into_iter().map(|how| Harm { cluster: name.clone(), how }));
                }
            }
        }
        if harms.is_empty() { Ok(change) } else { Err(PlanRefused::Harms { name: plan.name.clone(), harms }) }
    }

    /// Takes a plan, new or changed. Clusters that use it follow, step by step. A plan that is there already like this
    /// changes nothing and leaves no trace.
    ///
    /// # Errors
    /// [`PlanRefused`] says why not; nothing is changed then.
    pub fn apply_plan(
        &mut self,
        now: Now,
        plan: Plan,
        caller: &str,
    ) -> Result<(PlanChange, Vec<Effect>), PlanRefused> {
        let change = self.preview_plan(&plan)?;
        if change.is_nothing() {
            return Ok((change, Vec::new()));
        }
        let name = plan.name.clone();
        self.rows.push(Row::Plan(Box::new(plan.clone())));
        self.plans.insert(name.clone(), plan);
        let differences = change.after.differences(change.before.as_ref()).join("; ");
        let event = self.event(now, Severity::Info, "PlanApplied");
        let outcome = format!("plan {name}: {differences}");
        self.note(FleetEvent { cause: format!("asked for by {caller}"), outcome, ..event });
        for (cluster, preview) in &change.clusters {
            self.note_follower(now, cluster, &name, caller, preview);
            self.plan_soon(cluster);
        }
        self.reconcile(now);
        Ok((change, self.take_effects()))
    }

    /// Removes a plan that no cluster uses.
    ///
    /// # Errors
    /// [`PlanRefused`] says why not; nothing is changed then.
    pub fn delete_plan(
        &mut self,
        now: Now,
        name: &PlanName,
        caller: &str,
    ) -> Result<Vec<Effect>, PlanRefused> {
        self.check_not_built_in(name)?;
        if !self.plans.contains_key(name) {
            return Err(PlanRefused::NoPlan { name: name.clone(), known: self.plan_names() });
        }
        // A cluster on its way out is planned with its plan until it is gone.
        let clusters: Vec<ClusterName> =
            self.followers(name).map(|cluster| cluster.row.spec.name.clone()).collect();
        if !clusters.is_empty() {
            return Err(PlanRefused::InUse { name: name.clone(), clusters });
        }
        self.plans.remove(name);
        self.rows.push(Row::RemovePlan(name.clone()));
        let event = self.event(now, Severity::Info, "PlanDeleted");
        let outcome = format!("plan {name} is gone");
        self.note(FleetEvent { cause: format!("asked for by {caller}"), outcome, ..event });
        Ok(self.take_effects())
    }

    fn check_not_built_in(&self, name: &PlanName) -> Result<(), PlanRefused> {
        if self.is_built_in(name) { Err(PlanRefused::BuiltIn { name: name.clone() }) } else { Ok(()) }
    }

    /// Clusters that use a plan, also those on their way out.
    fn followers(&self, plan: &PlanName) -> impl Iterator<Item = &Cluster> {
        self.clusters.values().filter(move |cluster| cluster.row.spec.plan == *plan)
    }

    /// What `plan` comes to for a cluster, or all that speaks against it.
    fn follow(
        &self,
        cluster: &Cluster,
        before: Option<&Plan>,
        plan: &Plan,
    ) -> Result<Preview, Vec<HarmKind>> {
        let (spec, parent): (&ClusterSpec, _) = (&cluster.row.spec, &cluster.row.blueprint);
        let standing: BTreeSet<_> = parent.machines.values().map(|machine| machine.pool.clone()).collect();
        let losses = before.map(|before| plan.losses(before, &standing)).unwrap_or_default();
        if !losses.is_empty() {
            return Err(losses.into_iter().map(HarmKind::Loses).collect());
        }
        let impossible = |why| vec![HarmKind::Impossible(why)];
        let blueprint = self.follow_to_the_end(plan, spec, parent).map_err(impossible)?;
        if let Some((machine, holder)) = self.name_of_another(&spec.name, blueprint.machines.keys()) {
            return Err(impossible(format!(
                "machine {machine} of cluster {holder} has a name that it needs"
            )));
        }
        Ok(Preview::of_change(blueprint, parent))
    }

    /// A machine of another cluster that has one of these names, and whose it is.
    pub(crate) fn name_of_another<'m>(
        &self,
        cluster: &ClusterName,
        mut machines: impl Iterator<Item = &'m MachineId>,
    ) -> Option<(&'m MachineId, &ClusterName)> {
        machines.find_map(|id| {
            let holder = &self.machines.get(id)?.row.cluster;
            (holder != cluster).then_some((id, holder))
        })
    }

    fn note_follower(
        &mut self,
        now: Now,
        cluster: &ClusterName,
        plan: &PlanName,
        caller: &str,
        preview: &Preview,
    ) {
        let changes = &preview.diff.changes;
        if changes.is_empty() {
            return;
        }
        let words: Vec<String> =
            changes.iter().map(|change| format!("{}{}", change.effect.sign(), change.object)).collect();
        let event = self.event(now, Severity::Info, "PlanFollowed");
        self.note(FleetEvent {
            cluster: Some(cluster.clone()),
            cause: format!("plan {plan} was changed by {caller}"),
            outcome: words.join(" "),
            ..event
        });
    }
}
