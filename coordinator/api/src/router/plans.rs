//! `/v1/plans`.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use keelson_model::PlanName;

use super::clusters::ChangeParams;
use super::extract::{self, Json, ListParams, Params};
use super::installation::small_list;
use super::{Api, respond};
use crate::auth::Caller;
use crate::catalogue::Code;
use crate::plans::{plan_from_body, plan_invalid};
use crate::problem::{Problem, ProblemView};
use crate::types::{ListView, PlanBody, PlanChangeView, PlanView};

/// Plans that clusters can follow.
#[utoipa::path(get, path = "/v1/plans", tag = "installation",
    params(("page_token" = Option<String>, Query, description = "nextPageToken of the page before"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent")),
    responses((status = 200, body = ListView<PlanView>), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn plans(
    State(api): State<Api>,
    Params(params): Params<ListParams>,
) -> Result<Response, Problem> {
    params.without_cluster()?;
    let mut plans = api.fleet.plans().await?;
    plans.sort_by(|a, b| a.name.cmp(&b.name));
    small_list("Plan", &plans, &params.page()?, |plan| plan.name.clone())
}

/// One plan. Its ETag, given in If-Match, makes sure that no other change is overwritten.
#[utoipa::path(get, path = "/v1/plans/{name}", tag = "installation",
    params(("name" = String, Path, description = "Name of the plan")),
    responses((status = 200, body = PlanView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn plan(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    let found = api.fleet.plans().await?.into_iter().find(|plan| plan.name == name);
    let missing = || Problem::new(Code::PlanNotFound, format!("there is no plan `{name}`"));
    respond::document(&found.ok_or_else(missing)?)
}

/// Makes or changes a plan. Clusters that use it follow; a change that would harm one of them is refused as a whole.
/// Quantities are those of Kubernetes. A plan that is like this already is left alone. With `dryRun=true` nothing is done.
#[utoipa::path(put, path = "/v1/plans/{name}", tag = "installation", request_body = PlanBody,
    params(("name" = String, Path, description = "Name of the plan"),
           ("dryRun" = Option<bool>, Query, description = "Only say what would be done"),
           ("If-Match" = Option<String>, Header, description = "ETag of the plan that is changed; any when absent"),
           ("If-None-Match" = Option<String>, Header, description = "With *: only when there is no such plan")),
    responses((status = 200, body = PlanChangeView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn apply(
    State(api): State<Api>,
    Path(name): Path<String>,
    Params(params): Params<ChangeParams>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Json<PlanBody>,
) -> Result<Response, Problem> {
    let if_match = extract::if_match_or_none(&headers)?;
    let mut body = body.value;
    extract::check_document(body.api_version.as_deref(), body.kind.as_deref(), "Plan")?;
    if body.name.as_ref().is_some_and(|own| *own != name) {
        return Err(plan_invalid("name", format!("the address names plan `{name}`")));
    }
    body.name = Some(name);
    let plan = plan_from_body(body)?;
    if params.dry_run {
        return respond::document(&api.fleet.preview_plan(plan).await?);
    }
    respond::document(&api.fleet.apply_plan(plan, if_match, caller).await?)
}

/// Removes a plan that no cluster uses.
#[utoipa::path(delete, path = "/v1/plans/{name}", tag = "installation",
    params(("name" = String, Path, description = "Name of the plan")),
    responses((status = 200, body = PlanChangeView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    respond::document(&api.fleet.delete_plan(PlanName(name), caller).await?)
}
