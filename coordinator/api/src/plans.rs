//! Plans on their way in and out: documents made into model types, refusals made into problems.

use keelson_model::quantity::{bytes_text, cpu_text, parse_bytes, parse_cpu_millis};
use keelson_model::{
    Plan, PlanName, PlanSpecError, PoolName, PoolPlan, QuantityError, Role, Size, SpecError, Taint,
    TaintEffect,
};

use crate::catalogue::Code;
use crate::convert::document_etag;
use crate::problem::Problem;
use crate::types::{
    PlanBody, PlanChangeView, PlanOutcome, PlanPreview, PlanView, PoolBody, PoolView, TaintBody,
    TaintEffectView, api_version,
};

/// Most reasons of one refusal that are told one by one.
const REASONS_MAX: usize = 16;

/// Makes a plan of a document. Its own rules are checked where the zones are known.
///
/// # Errors
/// [`Code::PlanInvalid`] with the field that is wrong.
pub fn plan_from_body(body: PlanBody) -> Result<Plan, Problem> {
    let name = body.name.ok_or_else(|| plan_invalid("name", "a plan has a name"))?;
    let pools = body.pools.into_iter().enumerate();
    Ok(Plan {
        name: PlanName(name),
        description: body.description,
        pools: pools
            .map(|(index, pool)| pool_from_body(&format!("pools[{index}]"), pool))
            .collect::<Result<_, _>>()?,
    })
}

fn pool_from_body(path: &str, pool: PoolBody) -> Result<PoolPlan, Problem> {
    // The field says where for programs, the sentence for people.
    let wrong = |field: &str, why: String| {
        let what = format!("pool {}: {field}: {why}", pool.name);
        Problem::new(Code::PlanInvalid, what.clone()).field(format!("{path}.{field}"), what)
    };
    let roles = pool.roles.iter().map(|role| {
        let known = [Role::Etcd, Role::Master, Role::Worker];
        known.into_iter().find(|known| known.to_string() == *role).ok_or_else(|| {
            wrong("roles", format!("there is no role `{role}`: choose of etcd, master, worker"))
        })
    });
    let roles = roles.collect::<Result<_, _>>()?;
    let cpu = amount(pool.cpu.as_deref(), pool.cpu_millis, parse_cpu_millis, cpu_text)
        .map_err(|why| wrong("cpu", why))?;
    let memory = amount(pool.memory.as_deref(), pool.memory_bytes, parse_bytes, bytes_text)
        .map_err(|why| wrong("memory", why))?;
    let disk = amount(pool.disk.as_deref(), pool.disk_bytes, parse_bytes, bytes_text)
        .map_err(|why| wrong("disk", why))?;
    let missing = || wrong("disk", "it is missing; write a size, for example 20Gi".to_owned());
    let disk_bytes = disk.ok_or_else(missing)?;
    Ok(PoolPlan {
        roles,
        name: PoolName(pool.name),
        count: pool.count,
        size: Size { cpu_millis: cpu, memory_bytes: memory, disk_bytes },
        zones: pool.zones,
        labels: pool.labels,
        taints: pool.taints.into_iter().map(taint_from_body).collect(),
    })
}

fn taint_from_body(taint: TaintBody) -> Taint {
    Taint { key: taint.key, value: taint.value, effect: taint.effect.into() }
}

impl From<TaintEffectView> for TaintEffect {
    fn from(effect: TaintEffectView) -> Self {
        match effect {
            TaintEffectView::NoSchedule => Self::NoSchedule,
            TaintEffectView::PreferNoSchedule => Self::PreferNoSchedule,
            TaintEffectView::NoExecute => Self::NoExecute,
        }
    }
}

fn taint_view(taint: &Taint) -> TaintBody {
    let effect = match taint.effect {
        TaintEffect::NoSchedule => TaintEffectView::NoSchedule,
        TaintEffect::PreferNoSchedule => TaintEffectView::PreferNoSchedule,
        TaintEffect::NoExecute => TaintEffectView::NoExecute,
    };
    TaintBody { key: taint.key.clone(), value: taint.value.clone(), effect }
}

/// An amount that stands there as text, as a number, or as both. Both have to agree: a document that was read from us
/// holds both, and an edit of one of them must not be lost.
fn amount<T: Copy + PartialEq>(
    text: Option<&str>,
    number: Option<T>,
    parse: impl Fn(&str) -> Result<T, QuantityError>,
    write: impl Fn(T) -> String,
) -> Result<Option<T>, String> {
    let parsed = text.map(parse).transpose().map_err(|error| error.to_string())?;
    match (parsed, number) {
        (Some(parsed), Some(number)) if parsed != number => {
            let (text, other) = (write(parsed), write(number));
            Err(format!("it is given twice, as {text} and as {other}; leave the number out"))
        }
        (parsed, number) => Ok(parsed.or(number)),
    }
}

/// A plan as clients see it.
#[must_use]
pub fn plan_view(plan: &Plan, built_in: bool) -> PlanView {
    PlanView {
        api_version: api_version(),
        kind: "Plan".to_owned(),
        name: plan.name.to_string(),
        description: plan.description.clone(),
        pools: plan.pools.iter().map(pool_view).collect(),
        workers_sizable: plan.worker_pool().is_some(),
        built_in,
    }
}

fn pool_view(pool: &PoolPlan) -> PoolView {
    PoolView {
        name: pool.name.to_string(),
        roles: pool.roles.iter().map(ToString::to_string).collect(),
        count: pool.count,
        cpu: pool.size.cpu_millis.map(cpu_text),
        memory: pool.size.memory_bytes.map(bytes_text),
        disk: bytes_text(pool.size.disk_bytes),
        cpu_millis: pool.size.cpu_millis,
        memory_bytes: pool.size.memory_bytes,
        disk_bytes: pool.size.disk_bytes,
        zones: pool.zones.clone(),
        labels: pool.labels.clone(),
        taints: pool.taints.iter().map(taint_view).collect(),
    }
}

/// Entity tag of a plan that users made: the one of its document.
#[must_use]
pub fn plan_etag(plan: &Plan) -> String {
    let document = serde_json::to_vec(&plan_view(plan, false)).expect("a plan has only string keys");
    document_etag(&document)
}

/// What applying a plan changes, or would change.
#[must_use]
pub fn plan_change_view(before: Option<&Plan>, after: &Plan, clusters: Vec<PlanPreview>) -> PlanChangeView {
    PlanChangeView {
        api_version: api_version(),
        kind: "PlanChange".to_owned(),
        name: after.name.to_string(),
        outcome: match before {
            None => PlanOutcome::Created,
            Some(before) if before == after => PlanOutcome::Unchanged,
            Some(_) => PlanOutcome::Changed,
        },
        replaces: before.map(plan_etag),
        differences: after.differences(before),
        clusters,
    }
}

/// A plan that is gone.
#[must_use]
pub fn plan_deleted_view(name: &PlanName) -> PlanChangeView {
    PlanChangeView {
        api_version: api_version(),
        kind: "PlanChange".to_owned(),
        name: name.to_string(),
        outcome: PlanOutcome::Deleted,
        replaces: None,
        differences: Vec::new(),
        clusters: Vec::new(),
    }
}

/// A plan is not valid.
#[must_use]
pub fn plan_invalid(field: &str, why: impl std::fmt::Display) -> Problem {
    let why = why.to_string();
    Problem::new(Code::PlanInvalid, why.clone()).field(field, why)
}

/// A plan breaks a rule.
#[must_use]
pub fn plan_refused(error: &PlanSpecError) -> Problem {
    plan_invalid(error.field(), error)
}

/// A plan comes with the coordinator.
#[must_use]
pub fn plan_built_in(name: &PlanName) -> Problem {
    Problem::new(Code::PlanBuiltIn, format!("plan `{name}` is built in and stays as it is"))
        .remedy(format!("use another name; this shows what to begin with: keelson plan show {name} -o yaml"))
}

/// Clusters follow a plan that shall go.
#[must_use]
pub fn plan_in_use(name: &PlanName, clusters: &[String]) -> Problem {
    let problem =
        Problem::new(Code::PlanInUse, format!("plan `{name}` is used by {}", some(clusters).join(", ")));
    problem.remedy("remove these clusters first, or leave the plan")
}

/// A change of a plan would harm clusters; `harms` says which and how.
#[must_use]
pub fn plan_harms(name: &PlanName, harms: &[String]) -> Problem {
    let what = format!("plan `{name}` cannot change like this: clusters that use it would be harmed");
    let problem = some(harms).into_iter().fold(Problem::new(Code::PlanChangeRefused, what), Problem::because);
    problem.remedy(
        "leave these pools as they are and add others, or apply it under another name for new clusters",
    )
}

/// As many of them as a person reads, and how many more there are.
fn some(all: &[String]) -> Vec<String> {
    let mut some: Vec<String> = all.iter().take(REASONS_MAX).cloned().collect();
    if all.len() > REASONS_MAX {
        some.push(format!("and {} more", all.len() - REASONS_MAX));
    }
    some
}

/// Which request a spec came with: the fields have other names in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecSource {
    /// A whole cluster is asked for.
    Cluster,
    /// Another size of one pool is asked for.
    Scale,
}

/// A spec breaks a rule.
#[must_use]
pub fn spec_refused(error: &SpecError, source: SpecSource) -> Problem {
    let field = |of_cluster: &'static str, of_scale: &'static str| match source {
        SpecSource::Cluster => of_cluster,
        SpecSource::Scale => of_scale,
    };
    match error {
        SpecError::DrainTimeout { .. } => {
            Problem::spec_invalid(field("spec.drain.timeoutS", "drain.timeoutS"), error)
        }
        SpecError::NoPool { plan, pool, known } => {
            Problem::new(Code::PoolUnknown, format!("plan `{plan}` has no pool `{pool}`"))
                .field(field("spec.pools", "pool"), format!("choose one of: {known}"))
                .remedy(format!("choose one of: {known}"))
        }
        SpecError::PoolCount { .. } | SpecError::EtcdCount { .. } => {
            Problem::spec_invalid(field("spec.pools", "count"), error)
        }
        SpecError::NoWorkerPool { .. } | SpecError::Workers { .. } | SpecError::WorkersTwice { .. } => {
            Problem::spec_invalid(field("spec.workers", "count"), error)
        }
        SpecError::PodNetworkTooSmall { .. } => {
            Problem::spec_invalid(field("spec.podNetwork", "count"), error)
        }
        SpecError::NetworksOverlap { .. } => Problem::spec_invalid("spec.podNetwork", error),
        SpecError::ServiceNetworkTooSmall { .. } => Problem::spec_invalid("spec.serviceNetwork", error),
        SpecError::Expose { .. } => Problem::spec_invalid("spec.expose", error),
        SpecError::Label { .. } => Problem::spec_invalid("spec.labels", error),
    }
}
