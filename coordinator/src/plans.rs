//! Plans and sizes of pools for the API: the core's answers made into documents and problems.

use keelson_api::convert::preview;
use keelson_api::plans::{
    SpecSource, plan_built_in, plan_change_view, plan_harms, plan_in_use, plan_refused, spec_refused,
};
use keelson_api::types::PlanChangeView;
use keelson_api::{Code, Problem};
use keelson_coordinator_core::{CommandError, PlanChange, PlanRefused, Preview};
use keelson_protocol::ClusterName;

use crate::fleet::problem;

/// What a change of a plan comes to.
pub(crate) fn change_view(change: &PlanChange) -> PlanChangeView {
    let cluster = |(name, planned): &(ClusterName, Preview)| {
        preview(name, &planned.diff, Some(planned.blueprint.generation))
    };
    plan_change_view(change.before.as_ref(), &change.after, change.clusters.iter().map(cluster).collect())
}

/// Why a plan was refused.
pub(crate) fn plan_problem(error: &PlanRefused) -> Problem {
    match error {
        PlanRefused::Invalid(error) => plan_refused(error),
        PlanRefused::BuiltIn { name } => plan_built_in(name),
        PlanRefused::NoPlan { name, known } => {
            Problem::new(Code::PlanNotFound, format!("there is no plan `{name}`"))
                .remedy(format!("choose one of: {known}"))
        }
        PlanRefused::InUse { name, clusters } => {
            plan_in_use(name, &clusters.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        PlanRefused::Harms { name, harms } => {
            plan_harms(name, &harms.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        PlanRefused::TooMany => Problem::new(Code::PlansTooMany, error.to_string()),
    }
}

/// Why another size of a pool was refused: the fields are those of that request.
pub(crate) fn scale_problem(error: &CommandError) -> Problem {
    match error {
        CommandError::Spec(error) => spec_refused(error, SpecSource::Scale),
        CommandError::Invalid { why } => Problem::spec_invalid("count", why),
        other => problem(other),
    }
}
