//! `/v1/repair`, and repairs of single machines.

use axum::Extension;
use axum::extract::{FromRequest, Path, Request, State};
use axum::response::Response;

use super::clusters::ChangeParams;
use super::extract::{self, Json, Params, split_verb};
use super::{Api, respond};
use crate::auth::Caller;
use crate::care::action_from_view;
use crate::catalogue::Code;
use crate::fleet::{Against, Pause, RepairWish};
use crate::problem::{Problem, ProblemView};
use crate::types::{PauseBody, RepairBody, RepairOptionsView, RepairStatusView, RepairView};

/// Longest reason for a pause, in characters: it stands in events and on one line of a screen.
const REASON_CHARS_MAX: usize = 256;

/// How repair stands: where it is paused, and which machines are not well.
#[utoipa::path(get, path = "/v1/repair", tag = "repair",
    responses((status = 200, body = RepairStatusView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn status(State(api): State<Api>) -> Result<Response, Problem> {
    respond::document(&api.fleet.repair_status().await?)
}

/// Pauses repair of one cluster or of everything, until it is resumed. Faults are found and told all the same.
#[utoipa::path(post, path = "/v1/repair:pause", tag = "repair", request_body = PauseBody,
    responses((status = 200, body = RepairStatusView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn pause(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Json<PauseBody>,
) -> Result<Response, Problem> {
    respond::document(&api.fleet.pause_repair(pause_of(body.value)?, caller).await?)
}

/// Resumes repair. That it is not paused is success.
#[utoipa::path(post, path = "/v1/repair:resume", tag = "repair", request_body = PauseBody,
    responses((status = 200, body = RepairStatusView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn resume(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Json<PauseBody>,
) -> Result<Response, Problem> {
    respond::document(&api.fleet.resume_repair(pause_of(body.value)?, caller).await?)
}

fn pause_of(body: PauseBody) -> Result<Pause, Problem> {
    let cluster = body.cluster.as_deref().map(extract::cluster_name).transpose()?;
    let bad = |text: &String| text.chars().count() > REASON_CHARS_MAX || text.chars().any(char::is_control);
    if body.reason.as_ref().is_some_and(bad) {
        let why = format!("a reason is one line of at most {REASON_CHARS_MAX} characters");
        return Err(Problem::new(Code::RequestMalformed, why.clone()).field("reason", why));
    }
    Ok(Pause { cluster, reason: body.reason.filter(|text| !text.trim().is_empty()) })
}

/// Which repairs of a machine are possible now, and which guard holds each of the others.
#[utoipa::path(get, path = "/v1/machines/{id}/repairs", tag = "repair",
    params(("id" = String, Path, description = "Id of the machine")),
    responses((status = 200, body = RepairOptionsView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn options(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    respond::document(&api.fleet.repair_options(extract::machine_id(&id)?).await?)
}

/// What can be done with one machine: `POST /v1/machines/{id}:repair`.
pub(super) async fn act(
    State(api): State<Api>,
    Path(segment): Path<String>,
    Params(params): Params<ChangeParams>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    match split_verb(&segment) {
        (id, Some("repair")) => {
            let body = Json::from_request(request, &()).await?;
            repair(&api, id, params.dry_run, body.value, caller).await
        }
        (_, Some(verb)) => Err(Problem::new(Code::RouteNotFound, format!("machines have no verb `{verb}`"))),
        (_, None) => Err(Problem::new(Code::MethodNotAllowed, "a machine does not take POST without a verb")),
    }
}

/// Repairs a machine. The guards `starting`, `meltdown`, `busy`, `quorum`, `apiServer`, `oldRecord` and `impossible` hold a person too; a
/// pause, the cool-down and the number of repairs in an hour do not. With `dryRun=true` nothing is done. Asked again while the
/// repair is under way, it is refused as busy, so it is never made twice.
#[utoipa::path(post, path = "/v1/machines/{id}:repair", tag = "repair", request_body = RepairBody,
    params(("id" = String, Path, description = "Id of the machine"),
           ("dryRun" = Option<bool>, Query, description = "Only say what would be done")),
    responses((status = 200, body = RepairView), (status = "default", body = ProblemView,
        content_type = "application/problem+json")))]
pub(super) async fn repair(
    api: &Api,
    id: &str,
    dry_run: bool,
    body: RepairBody,
    caller: Caller,
) -> Result<Response, Problem> {
    let id = extract::machine_id(id)?;
    let against = match (body.over, body.confirm) {
        (false, None) => Against::Nothing,
        (true, None) => Against::Guards,
        (true, Some(typed)) => Against::Quorum { typed },
        (false, Some(_)) => {
            let why = "confirm goes against a guard, and needs override as well";
            return Err(Problem::new(Code::RequestMalformed, why).field("confirm", why));
        }
    };
    let wish = RepairWish { action: action_from_view(body.action), against };
    let answer = if dry_run {
        api.fleet.preview_repair(id, wish).await?
    } else {
        api.fleet.repair_machine(id, wish, caller).await?
    };
    respond::document(&answer)
}
