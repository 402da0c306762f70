//! Plans and sizes of pools in the fake: the model's rules decide, so that the fake refuses what a coordinator refuses.

use std::collections::BTreeSet;

use keelson_model::{
    Blueprint, ClusterSpec, Operation, OperationId, OperationKind, Plan, PlanName, PoolName, Severity,
};
use keelson_protocol::ClusterName;

use super::State;
use super::cluster::{FakeCluster, Goal, blueprint, next_blueprint};
use crate::auth::Caller;
use crate::catalogue::Code;
use crate::convert;
use crate::fleet::{IfMatch, PoolSize};
use crate::plans::{
    SpecSource, plan_built_in, plan_change_view, plan_deleted_view, plan_harms, plan_in_use, plan_refused,
    spec_refused,
};
use crate::problem::Problem;
use crate::types::{PlanChangeView, PlanPreview};

/// Zones of the fake infrastructure.
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

impl State {
    /// All plans, those that are built in first.
    pub(super) fn plans(&self) -> impl Iterator<Item = &Plan> {
        self.built_in.iter().chain(self.own_plans.values())
    }

    pub(super) fn plan(&self, name: &PlanName) -> Result<&Plan, Problem> {
        let known: Vec<String> = self.plans().map(|plan| plan.name.to_string()).collect();
        self.plans().find(|plan| plan.name == *name).ok_or_else(|| Problem::plan_unknown(name, &known))
    }

    pub(super) fn is_built_in(&self, name: &PlanName) -> bool {
        self.built_in.iter().any(|plan| plan.name == *name)
    }

    /// The spec and the blueprint that another size comes to.
    pub(super) fn scaled(
        &self,
        name: &ClusterName,
        size: &PoolSize,
    ) -> Result<(ClusterSpec, Blueprint), Problem> {
        let cluster = self.cluster(name)?;
        if cluster.goal == Goal::Gone {
            return Err(Problem::being_deleted(name));
        }
        let mut spec = cluster.spec.clone();
        let plan = self.plan(&spec.plan)?;
        if plan.worker_pool().is_some_and(|pool| pool.name == size.pool) {
            spec.workers = None;
        }
        spec.pools.insert(size.pool.clone(), size.count);
        spec.drain = crate::care::patched_drain(spec.drain, size.drain);
        spec.check(plan, super::infrastructure()).map_err(|error| spec_refused(&error, SpecSource::Scale))?;
        let next = next_blueprint(&cluster.blueprint, &blueprint(&spec, plan));
        Ok((spec, next))
    }

    pub(super) fn preview_scale(&self, name: &ClusterName, size: &PoolSize) -> Result<PlanPreview, Problem> {
        let (_, next) = self.scaled(name, size)?;
        Ok(convert::preview(name, &next.diff(Some(&self.cluster(name)?.blueprint)), Some(next.generation)))
    }

    pub(super) fn scale(
        &mut self,
        name: &ClusterName,
        if_match: &IfMatch,
        size: &PoolSize,
    ) -> Result<OperationId, Problem> {
        let cluster = self.cluster(name)?;
        if let Some(id) = self.scale_under_way(cluster, size) {
            return Ok(id);
        }
        if_match.check(&cluster.etag())?;
        let before = self.count_of(cluster, &size.pool);
        let (spec, next) = self.scaled(name, size)?;
        let detail = format!("{}{before} to {}", detail_begin(&size.pool), size.count);
        let id = self.start_with(OperationKind::ScaleCluster, name, Some(detail));
        let now = self.now;
        if let Some(cluster) = self.clusters.get_mut(name) {
            (cluster.spec, cluster.operation) = (spec, id.clone());
            cluster.move_to(next, now);
        }
        Ok(id)
    }

    /// The operation that is under way for just this size: asking again is no other wish.
    fn scale_under_way(&self, cluster: &FakeCluster, size: &PoolSize) -> Option<OperationId> {
        let (spec, begin) = (&cluster.spec, detail_begin(&size.pool));
        let same = spec.pools.get(&size.pool) == Some(&size.count)
            && crate::care::patched_drain(spec.drain, size.drain) == spec.drain;
        let mut open = self.operations.values().filter(|operation| same && !operation.is_done());
        let detail =
            |operation: &&Operation| operation.detail.as_ref().is_some_and(|it| it.starts_with(&begin));
        let found = open.find(|operation| operation.cluster == spec.name && detail(operation));
        found.map(|operation| operation.id.clone())
    }

    fn count_of(&self, cluster: &FakeCluster, pool: &PoolName) -> u16 {
        let plan = self.plan(&cluster.spec.plan).ok();
        plan.and_then(|plan| Some(cluster.spec.count(plan, plan.pool(pool)?))).unwrap_or_default()
    }

    pub(super) fn preview_plan(&self, plan: &Plan) -> Result<PlanChangeView, Problem> {
        let before = self.plan(&plan.name).ok();
        if before == Some(plan) {
            return Ok(plan_change_view(before, plan, Vec::new()));
        }
        if self.is_built_in(&plan.name) {
            return Err(plan_built_in(&plan.name));
        }
        plan.check(&ZONES.map(str::to_owned)).map_err(|error| plan_refused(&error))?;
        let (mut harms, mut previews) = (Vec::new(), Vec::new());
        for cluster in self.followers(&plan.name).filter(|cluster| cluster.goal == Goal::Ready) {
            let name = &cluster.spec.name;
            let machines = cluster.blueprint.machines.values();
            let standing: BTreeSet<PoolName> = machines.map(|machine| machine.pool.clone()).collect();
            let losses = before.map(|before| plan.losses(before, &standing)).unwrap_or_default();
            harms.extend(losses.iter().map(|loss| format!("cluster {name}: {loss}")));
            if let Err(why) = cluster.spec.check(plan, super::infrastructure()) {
                harms.push(format!("cluster {name} cannot follow: {why}"));
                continue;
            }
            let next = next_blueprint(&cluster.blueprint, &blueprint(&cluster.spec, plan));
            previews.push(convert::preview(
                name,
                &next.diff(Some(&cluster.blueprint)),
                Some(next.generation),
            ));
        }
        if harms.is_empty() {
            Ok(plan_change_view(before, plan, previews))
        } else {
            Err(plan_harms(&plan.name, &harms))
        }
    }

    pub(super) fn apply_plan(
        &mut self,
        plan: Plan,
        if_match: &IfMatch,
        caller: &Caller,
    ) -> Result<PlanChangeView, Problem> {
        if_match.check_plan(self.plan(&plan.name).ok(), &plan)?;
        let view = self.preview_plan(&plan)?;
        if self.plan(&plan.name).ok() == Some(&plan) {
            return Ok(view);
        }
        let (name, now) = (plan.name.clone(), self.now);
        let followers: Vec<ClusterName> =
            self.followers(&name).map(|cluster| cluster.spec.name.clone()).collect();
        for follower in followers {
            if let Some(cluster) =
                self.clusters.get_mut(&follower).filter(|cluster| cluster.goal == Goal::Ready)
            {
                let next = next_blueprint(&cluster.blueprint, &blueprint(&cluster.spec, &plan));
                cluster.move_to(next, now);
            }
        }
        self.own_plans.insert(name.clone(), plan);
        let outcome = format!("plan {name}: {}", view.differences.join("; "));
        self.note_on(None, &caller.0, Severity::Info, "PlanApplied", &outcome);
        Ok(view)
    }

    pub(super) fn delete_plan(
        &mut self,
        name: &PlanName,
        caller: &Caller,
    ) -> Result<PlanChangeView, Problem> {
        if self.is_built_in(name) {
            return Err(plan_built_in(name));
        }
        if !self.own_plans.contains_key(name) {
            return Err(Problem::new(Code::PlanNotFound, format!("there is no plan `{name}`")));
        }
        let users: Vec<String> = self.followers(name).map(|cluster| cluster.spec.name.to_string()).collect();
        if !users.is_empty() {
            return Err(plan_in_use(name, &users));
        }
        self.own_plans.remove(name);
        self.note_on(None, &caller.0, Severity::Info, "PlanDeleted", &format!("plan {name} is gone"));
        Ok(plan_deleted_view(name))
    }

    fn followers(&self, plan: &PlanName) -> impl Iterator<Item = &FakeCluster> {
        self.clusters.values().filter(move |cluster| cluster.spec.plan == *plan)
    }
}

/// How the detail of an operation begins that gives `pool` another size.
fn detail_begin(pool: &PoolName) -> String {
    format!("pool {pool} from ")
}
