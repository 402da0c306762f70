//! `/v1/machines`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::extract::{self, MachineListParams, Params};
use super::{Api, respond};
use crate::catalogue::Code;
use crate::fleet::{Follow, LogsRequest};
use crate::problem::{Problem, ProblemView};
use crate::types::{ListView, MachineView};

/// Lines of a log when the caller does not say.
const LINES_DEFAULT: u32 = 200;
/// Most lines of a log: some 20 MB.
const LINES_MAX: u32 = 100_000;

/// Machines, in order of their ids.
#[utoipa::path(get, path = "/v1/machines", tag = "machines",
    params(("page_token" = Option<String>, Query, description = "nextPageToken of the page before"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent"),
           ("cluster" = Option<String>, Query, description = "Only machines of this cluster"),
           ("selector" = Option<String>, Query,
            description = "Label selector over the labels of the machine's cluster and the keys cluster, pool, role, zone"),
           ("state" = Option<String>, Query, description = "Only in these states, with commas between them"),
           ("text" = Option<String>, Query, description = "Only with this in their id")),
    responses((status = 200, body = ListView<MachineView>), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(params): Params<MachineListParams>,
) -> Result<Response, Problem> {
    let page = api.fleet.machines(params.query()?).await?;
    let next = page.next.as_deref().map(extract::encode_token);
    respond::document(&ListView::new("Machine", page, next))
}

/// One machine.
#[utoipa::path(get, path = "/v1/machines/{id}", tag = "machines",
    params(("id" = String, Path, description = "Id of the machine")),
    responses((status = 200, body = MachineView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    respond::document(&api.fleet.machine(extract::machine_id(&id)?).await?)
}

/// Which lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogParams {
    unit: Option<String>,
    lines: Option<u32>,
    #[serde(default)]
    follow: bool,
}

/// The journal of a machine as text.
#[utoipa::path(get, path = "/v1/machines/{id}/logs", tag = "machines",
    params(("id" = String, Path, description = "Id of the machine"),
           ("unit" = Option<String>, Query, description = "Only this unit"),
           ("lines" = Option<u32>, Query, description = "How many of the last lines, 0 to 100000, 200 when absent"),
           ("follow" = Option<bool>, Query, description = "Whether to go on with new lines")),
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
pub(super) async fn logs(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, Problem> {
    let lines = params.lines.unwrap_or(LINES_DEFAULT);
    if lines > LINES_MAX {
        return Err(Problem::new(Code::ParameterInvalid, format!("lines must be at most {LINES_MAX}")));
    }
    if params.unit.as_deref().is_some_and(|unit| !is_unit_name(unit)) {
        return Err(Problem::new(Code::ParameterInvalid, "unit is not the name of a systemd unit"));
    }
    let follow = if params.follow { Follow::Yes } else { Follow::No };
    let request = LogsRequest { unit: params.unit, lines, follow };
    let stream = api.fleet.machine_logs(extract::machine_id(&id)?, request).await?;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(stream)).into_response())
}

fn is_unit_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:\\".contains(&byte);
    !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && text.bytes().all(allowed)
}
