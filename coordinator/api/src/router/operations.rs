//! `/v1/operations`.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use keelson_model::OperationId;
use serde::Deserialize;

use super::extract::{self, ListParams, Params, split_verb};
use super::{Api, respond};
use crate::catalogue::Code;
use crate::problem::{Problem, ProblemView};
use crate::types::{ListView, OperationStateView, OperationView};

/// Longest wait of one request, in seconds: below what proxies allow. Clients ask again.
pub const WAIT_S_MAX: u32 = 60;
/// Wait when the caller does not say, in seconds.
const WAIT_S_DEFAULT: u32 = 30;
/// Least time between two looks at an operation that is waited for, however often the fleet changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Operations, newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations",
    params(("page_token" = Option<String>, Query, description = "nextPageToken of the page before"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent"),
           ("cluster" = Option<String>, Query, description = "Only operations on this cluster")),
    responses((status = 200, body = ListView<OperationView>), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(params): Params<ListParams>,
) -> Result<Response, Problem> {
    let page = api.fleet.operations(params.cluster()?, params.page()?).await?;
    let next = page.next.as_deref().map(extract::encode_token);
    respond::document(&ListView::new("Operation", page, next))
}

/// How long to wait.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitParams {
    #[serde(rename = "timeoutS")]
    timeout_s: Option<u32>,
}

/// One operation, with its progress.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "Id of the operation")),
    responses((status = 200, body = OperationView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(segment): Path<String>,
    Params(params): Params<WaitParams>,
) -> Result<Response, Problem> {
    match split_verb(&segment) {
        (id, None) if params.timeout_s.is_none() => {
            respond::document(&api.fleet.operation(OperationId(id.to_owned())).await?)
        }
        (_, None) => Err(Problem::new(Code::ParameterInvalid, "only `:wait` takes timeoutS")),
        (id, Some("wait")) => wait(&api, id, params.timeout_s.unwrap_or(WAIT_S_DEFAULT)).await,
        (_, Some(verb)) => Err(no_verb(verb)),
    }
}

fn no_verb(verb: &str) -> Problem {
    Problem::new(Code::RouteNotFound, format!("operations have no verb `{verb}` for this method"))
}

/// Waits until the operation has ended or needs a person, or the time is up; then gives it as it is.
#[utoipa::path(get, path = "/v1/operations/{id}:wait", tag = "operations",
    params(("id" = String, Path, description = "Id of the operation"),
           ("timeoutS" = Option<u32>, Query, description = "How long, 0 to 60 seconds, 30 when absent")),
    responses((status = 200, body = OperationView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
async fn wait(api: &Api, id: &str, timeout_s: u32) -> Result<Response, Problem> {
    if timeout_s > WAIT_S_MAX {
        return Err(Problem::new(Code::ParameterInvalid, format!("timeoutS must be at most {WAIT_S_MAX}")));
    }
    let mut revision = api.fleet.revision();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(u64::from(timeout_s));
    loop {
        revision.mark_unchanged();
        let operation = api.fleet.operation(OperationId(id.to_owned())).await?;
        let ended = operation.done || operation.state == OperationStateView::Blocked;
        if ended || tokio::time::Instant::now() >= deadline {
            return respond::document(&operation);
        }
        tokio::select! {
            changed = revision.changed() => match changed {
                Ok(()) => tokio::time::sleep(LOOK_INTERVAL).await,
                // The coordinator is stopping: nothing will change any more.
                Err(_) => return Err(Problem::from(Code::ShuttingDown).retry_after_s(5)),
            },
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

/// What can be done with one operation: `POST /v1/operations/{id}:cancel`.
pub(super) async fn act(State(api): State<Api>, Path(segment): Path<String>) -> Result<Response, Problem> {
    match split_verb(&segment) {
        (id, Some("cancel")) => cancel(&api, id).await,
        (_, Some(verb)) => Err(no_verb(verb)),
        (_, None) => {
            Err(Problem::new(Code::MethodNotAllowed, "an operation does not take POST without a verb"))
        }
    }
}

/// Cancels an operation. Repeating it changes nothing.
#[utoipa::path(post, path = "/v1/operations/{id}:cancel", tag = "operations",
    params(("id" = String, Path, description = "Id of the operation")),
    responses((status = 200, body = OperationView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
async fn cancel(api: &Api, id: &str) -> Result<Response, Problem> {
    respond::document(&api.fleet.cancel_operation(OperationId(id.to_owned())).await?)
}
