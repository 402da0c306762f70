//! Version, status, plans, releases, errors, health and metrics.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{ListParams, Params};
use super::{Api, respond};
use crate::catalogue::Code;
use crate::problem::{Problem, ProblemView};
use crate::types::{
    API_VERSION, HealthView, ListView, Page, PageRequest, ReleaseView, StatusView, VersionView,
};

/// Who answers.
#[utoipa::path(get, path = "/v1/version", tag = "installation",
    responses((status = 200, body = VersionView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn version(State(api): State<Api>) -> Result<Response, Problem> {
    respond::document(&api.fleet.version().await?)
}

/// The fleet on one screen.
#[utoipa::path(get, path = "/v1/status", tag = "installation",
    responses((status = 200, body = StatusView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn status(State(api): State<Api>) -> Result<Response, Problem> {
    respond::document(&api.fleet.status().await?)
}

/// Releases that clusters can run.
#[utoipa::path(get, path = "/v1/releases", tag = "installation",
    params(("page_token" = Option<String>, Query, description = "nextPageToken of the page before"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent")),
    responses((status = 200, body = ListView<ReleaseView>), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn releases(
    State(api): State<Api>,
    Params(params): Params<ListParams>,
) -> Result<Response, Problem> {
    params.without_cluster()?;
    let mut releases = api.fleet.releases().await?;
    releases.sort_by(|a, b| a.name.cmp(&b.name));
    small_list("Release", &releases, &params.page()?, |release| release.name.clone())
}

/// One release.
#[utoipa::path(get, path = "/v1/releases/{name}", tag = "installation",
    params(("name" = String, Path, description = "Name of the release")),
    responses((status = 200, body = ReleaseView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn release(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    let found = api.fleet.releases().await?.into_iter().find(|release| release.name == name);
    let missing = || Problem::new(Code::ReleaseNotFound, format!("there is no release `{name}`"));
    respond::document(&found.ok_or_else(missing)?)
}

pub(super) fn small_list<T: Serialize + Clone>(
    kind: &str,
    all: &[T],
    request: &PageRequest,
    key: impl Fn(&T) -> String,
) -> Result<Response, Problem> {
    let page = Page::upwards(all, request, key, T::clone);
    let next = page.next.as_deref().map(super::extract::encode_token);
    respond::document(&ListView::new(kind, page, next))
}

/// Whether the process answers at all: 200 as long as it does.
#[utoipa::path(get, path = "/healthz", tag = "monitoring", responses((status = 200, body = HealthView)))]
pub(super) async fn healthz(State(api): State<Api>) -> Result<Response, Problem> {
    respond::document(&api.fleet.health().await?)
}

/// Whether the coordinator can do its work: 503 when it cannot, with the reasons.
#[utoipa::path(get, path = "/readyz", tag = "monitoring",
    responses((status = 200, body = HealthView), (status = 503, body = HealthView)))]
pub(super) async fn readyz(State(api): State<Api>) -> Result<Response, Problem> {
    let health = api.fleet.health().await?;
    let mut response = respond::document(&health)?;
    if !health.ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "monitoring",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let text = api.fleet.metrics().await?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// An entry of the error catalogue.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorEntryView {
    /// Always `keelson/v1`.
    api_version: &'static str,
    /// Always `ErrorEntry`.
    kind: &'static str,
    /// The code.
    code: &'static str,
    /// What it is.
    title: &'static str,
    /// Why it comes up.
    cause: &'static str,
    /// What to do.
    remedy: &'static str,
    /// A command to try.
    example: &'static str,
}

/// An entry of the error catalogue; the `type` of a problem document points here.
#[utoipa::path(get, path = "/v1/errors/{code}", tag = "installation",
    params(("code" = String, Path, description = "The code, for example KEEL-2201")),
    responses((status = 200, body = ErrorEntryView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn error_entry(Path(code): Path<String>) -> Result<Response, Problem> {
    let unknown = || Problem::new(Code::RouteNotFound, "the catalogue of this version has no such code");
    let entry = code.parse::<Code>().map_err(|_| unknown())?.entry();
    respond::document(&ErrorEntryView {
        api_version: API_VERSION,
        kind: "ErrorEntry",
        code: entry.name,
        title: entry.title,
        cause: entry.cause,
        remedy: entry.remedy,
        example: entry.example,
    })
}
