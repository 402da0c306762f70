//! The description of the API, generated from the handlers.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{clusters, events, installation, machines, operations, plans, repair, shell};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keelson",
        description = "Fleets of Kubernetes clusters. Changes answer 202 with an operation; errors are problem \
                       documents (RFC 9457) with a stable code. Unknown fields of requests are refused, unknown \
                       fields of answers should be ignored. Times are RFC 3339 in UTC.",
        version = "v1"
    ),
    paths(
        installation::version, installation::status, plans::plans, plans::plan, plans::apply, plans::delete,
        installation::releases, installation::release, installation::error_entry,
        installation::healthz, installation::readyz, installation::metrics,
        clusters::list, clusters::show, clusters::create, clusters::patch, clusters::delete, clusters::scale, clusters::kubeconfig,
        machines::list, machines::show, machines::logs, shell::shell,
        repair::status, repair::pause, repair::resume, repair::options, repair::repair,
        operations::list, operations::show, operations::wait, operations::cancel,
        events::events,
    ),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The OpenAPI document, as it is committed at `docs/openapi.json`.
///
/// # Panics
/// Never: the description is a constant of this build, and a test makes it.
#[must_use]
pub fn openapi_json() -> String {
    let mut json = Description::openapi().to_pretty_json().expect("the description is serializable");
    json.push('\n');
    json
}

/// Serves the document.
pub(super) async fn document() -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], openapi_json()).into_response()
}
