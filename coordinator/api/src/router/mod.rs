//! The routes of `/v1`, and what all of them have in common.
//!
//! Requests pass, from outside in: [`finish`] (problem documents, log line), the time limit, authentication, and a
//! handler that turns path, query, headers and body into typed values and calls one method of [`Fleet`].

mod clusters;
mod events;
mod extract;
mod installation;
mod machines;
mod openapi;
mod operations;
mod plans;
mod repair;
mod respond;
mod shell;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::auth::AuthConfig;
use crate::catalogue::Code;
use crate::fleet::Fleet;
use crate::problem::Problem;
use crate::serve::Peer;

pub use extract::{IDEMPOTENCY_KEY_CHARS_MAX, split_verb};
pub use openapi::openapi_json;
pub use operations::WAIT_S_MAX;
pub use shell::SHELL_PROTOCOL;

/// Largest body of a request, in bytes: a spec with all its exposed services has some 8 KiB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a request may take until its answer begins. A transaction of the store takes milliseconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What a handler works with.
#[derive(Clone)]
pub(crate) struct Api {
    /// Whatever the API shows and changes.
    pub(crate) fleet: Arc<dyn Fleet>,
    /// Who may.
    auth: Arc<AuthConfig>,
}

/// The whole API on top of `fleet`.
pub fn router(fleet: Arc<dyn Fleet>, auth: AuthConfig) -> Router {
    let api = Api { fleet, auth: Arc::new(auth) };
    let guarded = v1_routes().route_layer(middleware::from_fn_with_state(api.clone(), authenticate));
    let local = Router::new()
        .route("/healthz", get(installation::healthz))
        .route("/readyz", get(installation::readyz))
        .route("/metrics", get(installation::metrics))
        .route_layer(middleware::from_fn_with_state(api.clone(), local_or_authenticated));
    let open = Router::new()
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/errors/{code}", get(installation::error_entry));
    Router::new()
        .merge(guarded)
        .merge(local)
        .merge(open)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(limit_time))
        .layer(middleware::from_fn(finish))
        .with_state(api)
}

fn v1_routes() -> Router<Api> {
    Router::new()
        .route("/v1/version", get(installation::version))
        .route("/v1/status", get(installation::status))
        .route("/v1/clusters", get(clusters::list).post(clusters::create))
        .route(
            "/v1/clusters/{name}",
            get(clusters::show).patch(clusters::patch).delete(clusters::delete).post(clusters::act),
        )
        .route("/v1/machines", get(machines::list))
        .route("/v1/machines/{id}", get(machines::show).post(repair::act))
        .route("/v1/machines/{id}/repairs", get(repair::options))
        .route("/v1/machines/{id}/logs", get(machines::logs))
        .route("/v1/machines/{id}/shell", post(shell::shell))
        .route("/v1/repair", get(repair::status))
        .route("/v1/repair:pause", post(repair::pause))
        .route("/v1/repair:resume", post(repair::resume))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show).post(operations::act))
        .route("/v1/plans", get(plans::plans))
        .route("/v1/plans/{name}", get(plans::plan).put(plans::apply).delete(plans::delete))
        .route("/v1/releases", get(installation::releases))
        .route("/v1/releases/{name}", get(installation::release))
        .route("/v1/events", get(events::events))
}

async fn not_found(uri: Uri) -> Problem {
    Problem::new(Code::RouteNotFound, format!("there is nothing at {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

/// Lets only known callers pass, and tells the handler who it is.
async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(header) = header else {
        return unauthenticated("the request has no token");
    };
    let Some(caller) = api.auth.caller(header).cloned() else {
        return unauthenticated("the token is not known");
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn unauthenticated(why: &str) -> Response {
    let mut response = Problem::new(Code::Unauthenticated, why).into_response();
    let scheme = axum::http::HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    response
}

/// Lets callers on this machine pass without a token, so that a local monitor needs no secret.
async fn local_or_authenticated(api: State<Api>, request: Request, next: Next) -> Response {
    let local = request.extensions().get::<Peer>().is_some_and(|Peer(address)| address.ip().is_loopback());
    if local { next.run(request).await } else { authenticate(api, request, next).await }
}

/// Ends requests whose answer does not begin in time.
async fn limit_time(request: Request, next: Next) -> Response {
    let waits = request.uri().path().ends_with(":wait");
    let extra = if waits { Duration::from_secs(u64::from(WAIT_S_MAX)) } else { Duration::ZERO };
    match tokio::time::timeout(REQUEST_TIMEOUT + extra, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::from(Code::RequestTimedOut).retry_after_s(5).into_response(),
    }
}

/// Gives problem documents their path, and every answer the headers and the log line that all have in common. The
/// query is never logged: it may hold what a user typed.
async fn finish(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let headers = response.headers().clone();
        response = respond::problem(&problem, Some(&path));
        for (name, value) in &headers {
            response.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, axum::http::HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, axum::http::HeaderValue::from_static("no-store"));
    }
    tracing::debug!(%method, path, status = response.status().as_u16(), "API request");
    response
}
