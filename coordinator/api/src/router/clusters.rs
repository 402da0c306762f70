//! `/v1/clusters`.

use std::time::Duration;

use axum::Extension;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use keelson_model::PoolName;
use serde::Deserialize;

use super::extract::{self, ClusterListParams, Json, Params, split_verb};
use super::{Api, respond};
use crate::auth::Caller;
use crate::catalogue::Code;
use crate::convert;
use crate::fleet::{ClusterChange, PoolSize, Protection};
use crate::problem::{Problem, ProblemView};
use crate::types::{
    ClusterPatchBody, ClusterSpecPatch, ClusterView, DrainBody, KubeconfigRequestBody, KubeconfigView,
    ListView, NewClusterBody, OperationView, PlanPreview, ScaleBody,
};

/// Life of a client certificate when the caller does not say, in seconds.
const KUBECONFIG_TTL_S_DEFAULT: u32 = 3_600;
/// Longest and shortest life of a client certificate, in seconds: it cannot be revoked before it ends.
const KUBECONFIG_TTL_S: std::ops::RangeInclusive<u32> = 60..=86_400;

/// Whether a change is only previewed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeParams {
    #[serde(rename = "dryRun", default)]
    pub(super) dry_run: bool,
}

/// Clusters. Labels select them as in Kubernetes; every page follows the one before without a gap.
#[utoipa::path(get, path = "/v1/clusters", tag = "clusters",
    params(("page_token" = Option<String>, Query, description = "nextPageToken of the page before, for the same order_by"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent"),
           ("selector" = Option<String>, Query,
            description = "Label selector: env=prod,tier!=web,zone in (a,b),team notin (x),gpu,!old"),
           ("state" = Option<String>, Query, description = "Only in these states, with commas between them"),
           ("text" = Option<String>, Query, description = "Only with this in their name"),
           ("order_by" = Option<String>, Query,
            description = "name (when absent), created or state; with - in front for the other way round")),
    responses((status = 200, body = ListView<ClusterView>), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(params): Params<ClusterListParams>,
) -> Result<Response, Problem> {
    let query = params.query()?;
    let order = query.order;
    let page = api.fleet.clusters(query).await?;
    let next = page.next.as_deref().map(|key| extract::encode_cluster_token(order, key));
    respond::document(&ListView::new("Cluster", page, next))
}

/// One cluster. Its ETag follows only what was asked for: give it in If-Match to change the cluster.
#[utoipa::path(get, path = "/v1/clusters/{name}", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster")),
    responses((status = 200, body = ClusterView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn show(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    respond::cluster(&api.fleet.cluster(extract::cluster_name(&name)?).await?)
}

/// Makes a cluster. With `dryRun=true` nothing is made, and 200 carries what would be.
#[utoipa::path(post, path = "/v1/clusters", tag = "clusters", request_body = NewClusterBody,
    params(("dryRun" = Option<bool>, Query, description = "Only say what would be done"),
           ("Idempotency-Key" = Option<String>, Header,
            description = "The same key with the same body gives the same operation for 24 hours")),
    responses((status = 202, body = OperationView), (status = 200, body = PlanPreview),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    body: Json<NewClusterBody>,
) -> Result<Response, Problem> {
    extract::check_document(body.value.api_version.as_deref(), body.value.kind.as_deref(), "Cluster")?;
    let idempotency = extract::idempotency(&headers, &caller, body.sha256)?;
    let spec = body.value.spec;
    let default_release = match spec.release {
        Some(_) => String::new(),
        None => default_release(&api).await?,
    };
    let spec = convert::spec_from_body(spec, &default_release)?;
    if params.dry_run {
        return respond::document(&api.fleet.preview_create(spec).await?);
    }
    respond::accepted(&api.fleet.create_cluster(spec, idempotency).await?)
}

async fn default_release(api: &Api) -> Result<String, Problem> {
    let releases = api.fleet.releases().await?;
    let default = releases.into_iter().find(|release| release.default);
    default.map(|release| release.name).ok_or_else(|| {
        Problem::new(Code::ReleaseUnknown, "the installation has no default release")
            .field("spec.release", "name a release")
    })
}

/// Changes a cluster. Only what the body names changes.
#[utoipa::path(patch, path = "/v1/clusters/{name}", tag = "clusters", request_body = ClusterPatchBody,
    params(("name" = String, Path, description = "Name of the cluster"),
           ("If-Match" = String, Header, description = "ETag of the state that was seen, or *")),
    responses((status = 200, body = ClusterView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn patch(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Json<ClusterPatchBody>,
) -> Result<Response, Problem> {
    let name = extract::cluster_name(&name)?;
    let if_match = extract::if_match(&headers)?;
    let ClusterSpecPatch { deletion_protection, labels, drain } = body.value.spec;
    let protection = deletion_protection.map(|on| if on { Protection::On } else { Protection::Off });
    let change =
        ClusterChange { protection, labels, drain: drain.filter(|drain| *drain != DrainBody::default()) };
    if change == ClusterChange::default() {
        let why = "name at least one field of spec";
        return Err(Problem::new(Code::RequestMalformed, why).field("spec", why));
    }
    respond::cluster(&api.fleet.update_cluster(name, if_match, change).await?)
}

/// Removes a cluster with all its machines and their disks.
#[utoipa::path(delete, path = "/v1/clusters/{name}", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster"),
           ("dryRun" = Option<bool>, Query, description = "Only say what would be done"),
           ("If-Match" = String, Header, description = "ETag of the state that was seen, or *")),
    responses((status = 202, body = OperationView), (status = 200, body = PlanPreview),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = extract::cluster_name(&name)?;
    if params.dry_run {
        return respond::document(&api.fleet.preview_delete(name).await?);
    }
    let if_match = extract::if_match(&headers)?;
    respond::accepted(&api.fleet.delete_cluster(name, if_match).await?)
}

/// What can be done with one cluster: `POST /v1/clusters/{name}:kubeconfig`.
pub(super) async fn act(
    State(api): State<Api>,
    Path(segment): Path<String>,
    Params(params): Params<ChangeParams>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    match split_verb(&segment) {
        (name, Some("scale")) => scale(&api, name, &params, request).await,
        (_, Some(_)) if params.dry_run => {
            Err(Problem::new(Code::ParameterInvalid, "this verb does not take dryRun"))
        }
        (name, Some("kubeconfig")) => {
            let body = Json::from_request(request, &()).await?;
            kubeconfig(&api, name, &body.value, caller).await
        }
        (_, Some(verb)) => Err(Problem::new(Code::RouteNotFound, format!("clusters have no verb `{verb}`"))),
        (_, None) => Err(Problem::new(Code::MethodNotAllowed, "a cluster does not take POST without a verb")),
    }
}

/// Gives a pool another size. With `dryRun=true` nothing is done, and 200 carries what it would come to.
#[utoipa::path(post, path = "/v1/clusters/{name}:scale", tag = "clusters", request_body = ScaleBody,
    params(("name" = String, Path, description = "Name of the cluster"),
           ("dryRun" = Option<bool>, Query, description = "Only say what would be done"),
           ("If-Match" = String, Header, description = "ETag of the state that was seen, or *")),
    responses((status = 202, body = OperationView), (status = 200, body = PlanPreview),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
async fn scale(api: &Api, name: &str, params: &ChangeParams, request: Request) -> Result<Response, Problem> {
    let name = extract::cluster_name(name)?;
    let headers = request.headers().clone();
    let ScaleBody { pool, count, drain } = Json::from_request(request, &()).await?.value;
    let size = PoolSize { pool: PoolName(pool), count, drain: drain.unwrap_or_default() };
    if params.dry_run {
        return respond::document(&api.fleet.preview_scale(name, size).await?);
    }
    let if_match = extract::if_match(&headers)?;
    respond::accepted(&api.fleet.scale_cluster(name, if_match, size).await?)
}

/// Issues a kubeconfig with a client certificate of cluster-admin. The answer is secret.
#[utoipa::path(post, path = "/v1/clusters/{name}:kubeconfig", tag = "clusters", request_body = KubeconfigRequestBody,
    params(("name" = String, Path, description = "Name of the cluster")),
    responses((status = 200, body = KubeconfigView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
async fn kubeconfig(
    api: &Api,
    name: &str,
    body: &KubeconfigRequestBody,
    caller: Caller,
) -> Result<Response, Problem> {
    let ttl_s = body.ttl_s.unwrap_or(KUBECONFIG_TTL_S_DEFAULT);
    if !KUBECONFIG_TTL_S.contains(&ttl_s) {
        let (least, most) = (KUBECONFIG_TTL_S.start(), KUBECONFIG_TTL_S.end());
        let why = format!("{ttl_s} seconds are not possible: choose {least} to {most}");
        return Err(Problem::new(Code::ParameterInvalid, why.clone()).field("ttlS", why));
    }
    let name = extract::cluster_name(name)?;
    let view = api.fleet.kubeconfig(name, Duration::from_secs(u64::from(ttl_s)), caller).await?;
    respond::document(&view)
}
