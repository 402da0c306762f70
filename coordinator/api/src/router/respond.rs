//! Answers: documents with their entity tag, accepted operations, problems.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::convert::document_etag;
use crate::problem::Problem;
use crate::types::{ClusterView, OperationView};

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = problem(&self, None);
        response.extensions_mut().insert(self);
        response
    }
}

/// A problem document; `path` is what was asked for.
pub(super) fn problem(problem: &Problem, path: Option<&str>) -> Response {
    let mut view = problem.view();
    // Codes of the command line have no status; sent by mistake, they are an error of this program.
    view.status = if view.status == 0 { 500 } else { view.status };
    view.instance = view.instance.or_else(|| path.map(str::to_owned));
    let status = StatusCode::from_u16(view.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&view).expect("a problem has only string keys");
    let kind = HeaderValue::from_static("application/problem+json");
    let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
    if let Some(seconds) = view.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A document whose entity tag is made of its content.
pub(super) fn document<T: Serialize>(document: &T) -> Result<Response, Problem> {
    let body = to_json(document)?;
    let tag = document_etag(&body);
    Ok(json(StatusCode::OK, body, &tag))
}

/// A cluster, whose entity tag follows only what was asked for, so that a heartbeat does not stop a change.
pub(super) fn cluster(cluster: &ClusterView) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, to_json(cluster)?, &cluster.meta.etag))
}

/// 202 with the operation that does the work.
pub(super) fn accepted(operation: &OperationView) -> Result<Response, Problem> {
    let body = to_json(operation)?;
    let tag = document_etag(&body);
    let mut response = json(StatusCode::ACCEPTED, body, &tag);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/{}", operation.name)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

fn to_json<T: Serialize>(document: &T) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(document).map_err(Problem::internal)
}

fn json(status: StatusCode, body: Vec<u8>, tag: &str) -> Response {
    let kind = HeaderValue::from_static("application/json");
    let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
    tag_with(&mut response, tag);
    response
}

fn tag_with(response: &mut Response, tag: &str) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
}
