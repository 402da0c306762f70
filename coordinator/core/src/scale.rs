//! Changing the sizes of a cluster's pools.

use keelson_model::{ClusterSpec, DrainSpec, Operation, OperationKind, OperationState, PoolName};
use keelson_protocol::ClusterName;

use crate::command::{Accepted, CommandError, Preview};
use crate::row::Row;
use crate::state::{CoordinatorCore, Now};

/// A request for another size of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePool {
    /// The cluster.
    pub cluster: ClusterName,
    /// The pool.
    pub pool: PoolName,
    /// How many machines it shall have.
    pub count: u16,
    /// How pods leave machines that go, from now on; as before when absent.
    pub drain: Option<DrainSpec>,
}

impl CoordinatorCore {
    /// What `scale` would do in the end, without doing it.
    ///
    /// # Errors
    /// As [`Self::scale_pool`].
    pub fn preview_scale(&self, request: &ScalePool) -> Result<Preview, CommandError> {
        let spec = self.scaled_spec(request)?;
        let parent = &self.cluster_of(&request.cluster)?.row.blueprint;
        let blueprint = self.plan_to_the_end(&spec, parent).map_err(|why| CommandError::Invalid { why })?;
        if let Some((machine, holder)) = self.name_of_another(&spec.name, blueprint.machines.keys()) {
            let pool = &request.pool;
            let why = format!("machine {machine} of cluster {holder} has a name that pool {pool} needs");
            return Err(CommandError::Invalid { why });
        }
        Ok(Preview::of_change(blueprint, parent))
    }

    /// Accepts a request for another size of a pool. A newer one takes the place of one for the same pool that is under
    /// way; one for the same size leads to the operation that is under way.
    ///
    /// # Errors
    /// [`CommandError`] says what is wrong with the request; nothing is changed then.
    pub fn scale_pool(&mut self, now: Now, request: &ScalePool) -> Result<Accepted, CommandError> {
        let preview = self.preview_scale(request)?;
        let spec = self.scaled_spec(request)?;
        let name = &request.cluster;
        if let Some(operation) = self.scale_under_way(request).cloned() {
            self.retry_refused(name);
            self.reconcile(now);
            return Ok(Accepted { operation, preview, effects: self.take_effects() });
        }
        let before = spec_count(self, name, &request.pool);
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.row.spec = spec;
            let row = Row::Cluster(Box::new(cluster.row.clone()));
            self.rows.push(row);
        }
        let detail = format!("{}{before} to {}", detail_begin(&request.pool), request.count);
        let operation = self.begin(now, OperationKind::ScaleCluster, name.clone(), Some(detail), None);
        self.end_older_scales(now, &operation, &request.pool);
        self.retry_refused(name);
        self.plan_soon(name);
        self.reconcile(now);
        Ok(Accepted { operation, preview, effects: self.take_effects() })
    }

    /// The operation that is under way for just what is asked for: asking again is no other wish.
    #[must_use]
    pub fn scale_under_way(&self, request: &ScalePool) -> Option<&Operation> {
        let cluster = self.clusters.get(&request.cluster)?;
        let same = cluster.row.spec.pools.get(&request.pool) == Some(&request.count)
            && request.drain.is_none_or(|drain| drain == cluster.row.spec.drain);
        self.scales_of(&request.cluster, &request.pool).find(|_| same)
    }

    /// Open operations that give a pool another size.
    fn scales_of(&self, name: &ClusterName, pool: &PoolName) -> impl Iterator<Item = &Operation> {
        let begin = detail_begin(pool);
        self.open_operations(name).filter(|operation| operation.kind == OperationKind::ScaleCluster).filter(
            move |operation| operation.detail.as_ref().is_some_and(|detail| detail.starts_with(&begin)),
        )
    }

    fn cluster_of(&self, name: &ClusterName) -> Result<&crate::state::Cluster, CommandError> {
        self.clusters.get(name).ok_or_else(|| CommandError::NoCluster { name: name.clone() })
    }

    fn scaled_spec(&self, request: &ScalePool) -> Result<ClusterSpec, CommandError> {
        let cluster = self.cluster_of(&request.cluster)?;
        if !cluster.row.wanted {
            return Err(CommandError::BeingDeleted { name: request.cluster.clone() });
        }
        let mut spec = cluster.row.spec.clone();
        let plan = self.plan(&spec.plan).ok_or_else(|| self.unknown_plan(&spec))?;
        if plan.worker_pool().is_some_and(|pool| pool.name == request.pool) {
            spec.workers = None;
        }
        spec.pools.insert(request.pool.clone(), request.count);
        spec.drain = request.drain.unwrap_or(spec.drain);
        spec.check(plan, self.settings.place.network)?;
        Ok(spec)
    }

    /// Another pool's size is another wish, and perhaps another person's: both hold.
    fn end_older_scales(&mut self, now: Now, newest: &Operation, pool: &PoolName) {
        let open = self.scales_of(&newest.cluster, pool).filter(|operation| operation.id != newest.id);
        let older: Vec<Operation> = open.cloned().collect();
        for operation in older {
            let left = format!("{} asked for another size", newest.id);
            let state = OperationState::Cancelled { at: now.wall, left };
            self.save_operation(Operation { state, ..operation });
        }
    }
}

/// How the detail of an operation that sizes a pool begins. It is also how such an operation knows its pool; names hold
/// no space.
fn detail_begin(pool: &PoolName) -> String {
    format!("pool {pool} from ")
}

fn spec_count(core: &CoordinatorCore, name: &ClusterName, pool: &PoolName) -> u16 {
    let count = || {
        let spec = &core.clusters.get(name)?.row.spec;
        let plan = core.plan(&spec.plan)?;
        Some(spec.count(plan, plan.pool(pool)?))
    };
    count().unwrap_or_default()
}
