//! Path, query, headers and body made into typed values, with a problem document for whatever is wrong.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keelson_protocol::{ClusterName, MachineId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::catalogue::Code;
use crate::fleet::{Idempotency, IfMatch};
use crate::problem::Problem;
use crate::query::{ClusterOrder, ClusterQuery, MachineQuery, TEXT_BYTES_MAX};
use crate::selector::{Selector, SelectorError};
use crate::types::{API_VERSION, ClusterState, MachineState, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, PageRequest};

/// Longest `Idempotency-Key`, in characters: twice what any client library makes.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 128;

/// Most entity tags in one `If-Match`.
const ENTITY_TAGS_MAX: usize = 16;

/// Splits `op-1:wait` into `op-1` and `wait`. Names never hold a colon.
#[must_use]
pub fn split_verb(segment: &str) -> (&str, Option<&str>) {
    segment.split_once(':').map_or((segment, None), |(name, verb)| (name, Some(verb)))
}

/// The query, of which no parameter may be unknown.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let wrong = |error: axum::extract::rejection::QueryRejection| {
            Problem::new(Code::ParameterInvalid, "a query parameter is not valid").because(error.body_text())
        };
        Query::try_from_uri(&parts.uri).map(|Query(params)| Self(params)).map_err(wrong)
    }
}

/// A JSON body, of which no field may be unknown, with the digest that tells it from another.
pub(super) struct Json<T> {
    /// The body.
    pub(super) value: T,
    /// SHA-256 of method, path with query, and body.
    pub(super) sha256: [u8; 32],
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
        let merge_patch = essence == Some("application/merge-patch+json") && request.method() == "PATCH";
        if essence != Some("application/json") && !merge_patch {
            return Err(Problem::from(Code::MediaTypeUnsupported));
        }
        let mut digest = Sha256::new();
        digest.update(request.method().as_str());
        digest.update([0]);
        digest.update(request.uri().to_string());
        digest.update([0]);
        let body = Bytes::from_request(request, state).await.map_err(body_problem)?;
        digest.update(&body);
        Ok(Self { value: parse(&body)?, sha256: digest.finalize().into() })
    }
}

fn body_problem(rejection: axum::extract::rejection::BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let limit = format!("at most {} bytes are allowed", super::BODY_BYTES_MAX);
        return Problem::from(Code::BodyTooLarge).because(limit);
    }
    Problem::new(Code::RequestMalformed, "the body could not be read").because(rejection.body_text())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
        match unknown {
            Some((field, _)) => Problem::new(Code::FieldUnknown, format!("the field `{field}` is not known"))
                .field(path, message.clone()),
            None => Problem::new(Code::RequestMalformed, "the body is not what this address takes")
                .because(&message)
                .field(path, message.clone()),
        }
    })?;
    json.end().map_err(|error| {
        Problem::new(Code::RequestMalformed, "something follows the JSON document").because(error)
    })?;
    Ok(value)
}

/// Checks that a body is of the kind that an address takes, where it says so.
pub(super) fn check_document(
    api_version: Option<&str>,
    kind: Option<&str>,
    kind_expected: &str,
) -> Result<(), Problem> {
    for (field, given, expected) in [("apiVersion", api_version, API_VERSION), ("kind", kind, kind_expected)]
    {
        if given.is_some_and(|given| given != expected) {
            let why = format!("this address takes {expected}");
            return Err(Problem::new(Code::RequestMalformed, why.clone()).field(field, why));
        }
    }
    Ok(())
}

/// The parameters of every list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    page_token: Option<String>,
    page_size: Option<usize>,
    /// Only what belongs to this cluster; not every list takes it.
    cluster: Option<String>,
}

/// The parameters of the list of clusters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterListParams {
    page_token: Option<String>,
    page_size: Option<usize>,
    selector: Option<String>,
    state: Option<String>,
    text: Option<String>,
    order_by: Option<String>,
}

/// The parameters of the list of machines.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineListParams {
    page_token: Option<String>,
    page_size: Option<usize>,
    cluster: Option<String>,
    selector: Option<String>,
    state: Option<String>,
    text: Option<String>,
}

impl ListParams {
    /// The page that is asked for.
    pub(super) fn page(&self) -> Result<PageRequest, Problem> {
        page(self.page_token.as_deref(), self.page_size)
    }

    /// The cluster whose items are asked for.
    pub(super) fn cluster(&self) -> Result<Option<ClusterName>, Problem> {
        self.cluster.as_deref().map(cluster_name).transpose()
    }

    /// Refuses the parameter on lists that do not take it.
    pub(super) fn without_cluster(&self) -> Result<(), Problem> {
        match self.cluster {
            Some(_) => Err(Problem::new(Code::ParameterInvalid, "this list does not take `cluster`")),
            None => Ok(()),
        }
    }
}

impl ClusterListParams {
    /// What is asked for.
    pub(super) fn query(&self) -> Result<ClusterQuery, Problem> {
        let order =
            self.order_by.as_deref().map(str::parse::<ClusterOrder>).transpose().map_err(|error| {
                Problem::new(Code::ParameterInvalid, error.to_string())
                    .field("order_by", "this order is not known")
                    .remedy("choose name, created or state, with `-` in front for the other way round")
            })?;
        let order = order.unwrap_or_default();
        let mut page = page(self.page_token.as_deref(), self.page_size)?;
        // A key of one order means nothing in another: the list would begin anywhere.
        if let Some(after) = &mut page.after {
            let key = after.strip_prefix(&order_prefix(order)).ok_or_else(foreign_token)?;
            *after = key.to_owned();
        }
        let (selector, text) = (selector(self.selector.as_deref())?, text(self.text.as_deref())?);
        let states = states(self.state.as_deref(), &ClusterState::ALL)?;
        Ok(ClusterQuery { selector, states, text, order, page })
    }
}

impl MachineListParams {
    /// What is asked for.
    pub(super) fn query(&self) -> Result<MachineQuery, Problem> {
        Ok(MachineQuery {
            cluster: self.cluster.as_deref().map(cluster_name).transpose()?,
            selector: selector(self.selector.as_deref())?,
            states: states(self.state.as_deref(), &MachineState::ALL)?,
            text: text(self.text.as_deref())?,
            page: page(self.page_token.as_deref(), self.page_size)?,
        })
    }
}

fn page(token: Option<&str>, size: Option<usize>) -> Result<PageRequest, Problem> {
    let limit = size.unwrap_or(PAGE_SIZE_DEFAULT);
    if !(1..=PAGE_SIZE_MAX).contains(&limit) {
        let why = format!("page_size {limit} is not possible: choose 1 to {PAGE_SIZE_MAX}");
        return Err(Problem::new(Code::ParameterInvalid, why));
    }
    Ok(PageRequest { after: token.map(decode_token).transpose()?, limit })
}

fn selector(text: Option<&str>) -> Result<Selector, Problem> {
    text.unwrap_or_default().parse().map_err(|error: SelectorError| {
        Problem::new(Code::ParameterInvalid, "the selector cannot be read")
            .field("selector", error.to_string())
            .remedy(
                "write it as Kubernetes does: env=prod, tier!=web, zone in (a,b), team notin (x), gpu, !old",
            )
    })
}

fn text(text: Option<&str>) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.len() > TEXT_BYTES_MAX => {
            let why = format!("text has more than {TEXT_BYTES_MAX} bytes; no name is that long");
            Err(Problem::new(Code::ParameterInvalid, why.clone()).field("text", why))
        }
        text => Ok(text.map(str::to_owned)),
    }
}

/// States with commas between them.
fn states<S: ToString + Copy>(text: Option<&str>, all: &[S]) -> Result<Vec<S>, Problem> {
    let known = |word: &str| {
        all.iter().find(|state| state.to_string() == word).copied().ok_or_else(|| {
            let words: Vec<String> = all.iter().map(ToString::to_string).collect();
            Problem::new(Code::ParameterInvalid, format!("the state `{word}` is not known"))
                .field("state", "this state is not known")
                .remedy(format!("choose of: {}", words.join(", ")))
        })
    };
    text.map_or_else(|| Ok(Vec::new()), |text| text.split(',').map(|word| known(word.trim())).collect())
}

/// Makes the token of a page of clusters, which holds for this order only.
pub(super) fn encode_cluster_token(order: ClusterOrder, key: &str) -> String {
    encode_token(&format!("{}{key}", order_prefix(order)))
}

fn order_prefix(order: ClusterOrder) -> String {
    format!("{order}:")
}

/// Makes an opaque page token of a key.
pub(super) fn encode_token(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1:{key}"))
}

fn decode_token(token: &str) -> Result<String, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let key = bytes.as_deref().and_then(|text| text.strip_prefix("1:"));
    key.map(str::to_owned).ok_or_else(foreign_token)
}

fn foreign_token() -> Problem {
    Problem::new(Code::ParameterInvalid, "page_token was not made by this server for this list and order")
        .remedy("give nextPageToken of the page before, unchanged; or read the list from its beginning")
}

/// The name of a cluster in a path: no cluster can have a name that is not valid, so it does not exist.
pub(super) fn cluster_name(text: &str) -> Result<ClusterName, Problem> {
    ClusterName::new(text).map_err(|error| Problem::cluster_not_found(&text).because(error))
}

/// The id of a machine in a path.
pub(super) fn machine_id(text: &str) -> Result<MachineId, Problem> {
    MachineId::new(text).map_err(|error| Problem::machine_not_found(&text).because(error))
}

/// The state for which a change was made; a change without one is refused.
pub(super) fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Err(Problem::from(Code::PreconditionMissing));
    };
    let wrong = || Problem::new(Code::ParameterInvalid, "If-Match is not a list of entity tags");
    let text = value.to_str().map_err(|_| wrong())?.trim();
    if text == "*" {
        return Ok(IfMatch::Any);
    }
    let mut tags = Vec::new();
    for tag in text.split(',').take(ENTITY_TAGS_MAX) {
        let tag = tag.trim();
        // If-Match compares strongly (RFC 9110, section 13.1.1): a weak tag never matches.
        if tag.starts_with("W/") {
            continue;
        }
        let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(wrong)?;
        tags.push(tag.to_owned());
    }
    Ok(IfMatch::OneOf(tags))
}

/// The state for which a change was made, where one need not be named: the request says how something shall be.
pub(super) fn if_match_or_none(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    match (headers.contains_key(header::IF_MATCH), headers.get(header::IF_NONE_MATCH)) {
        (true, None) => if_match(headers),
        (false, None) => Ok(IfMatch::Any),
        (false, Some(value)) if value == "*" => Ok(IfMatch::Absent),
        _ => Err(Problem::new(Code::ParameterInvalid, "If-None-Match is `*`, or absent beside If-Match")),
    }
}

/// What tells a repeated request from a new one, when the caller gave a key.
pub(super) fn idempotency(
    headers: &HeaderMap,
    caller: &Caller,
    body_sha256: [u8; 32],
) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX {
        let why = format!("Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} ASCII characters");
        return Err(Problem::new(Code::ParameterInvalid, why));
    }
    Ok(Some(Idempotency { key: key.to_owned(), caller: caller.0.clone(), body_sha256 }))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(value: &'static str, expected: Result<IfMatch, Code>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_static(value));
        assert_eq!(if_match(&headers).map_err(|problem| problem.code()), expected, "{value}");
    }

    #[test]
    fn entity_tags_are_read_as_rfc_9110_says() {
        let tags = |tags: &[&str]| Ok(IfMatch::OneOf(tags.iter().map(|tag| (*tag).to_owned()).collect()));
        check("*", Ok(IfMatch::Any));
        check("\"3-ab\"", tags(&["3-ab"]));
        check("\"a\", \"b\"", tags(&["a", "b"]));
        check("W/\"a\"", tags(&[]));
        check("a", Err(Code::ParameterInvalid));
        assert_eq!(if_match(&HeaderMap::new()).unwrap_err().code(), Code::PreconditionMissing);
    }

    #[test]
    fn page_tokens_come_back_and_foreign_ones_do_not() {
        assert_eq!(decode_token(&encode_token("demo")).unwrap(), "demo");
        for foreign in ["", "demo", "!!", &URL_SAFE_NO_PAD.encode("2:demo")] {
            assert_eq!(decode_token(foreign).unwrap_err().code(), Code::ParameterInvalid, "{foreign}");
        }
    }

    #[test]
    fn verbs_are_split_from_names() {
        assert_eq!(split_verb("op-1"), ("op-1", None));
        assert_eq!(split_verb("op-1:wait"), ("op-1", Some("wait")));
    }
}
