//! `/v1/events`: the record of events as a list, and as one stream that can be resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::extract::{self, Params};
use super::{Api, respond};
use crate::catalogue::Code;
use crate::fleet::{EventBatch, EventQuery, EventRange, OfIncident};
use crate::problem::{Problem, ProblemView};
use crate::types::{EventView, ListView, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Page, SeverityView};

/// Events that a stream reads at once.
const BATCH: usize = 500;
/// Least time between two looks of one stream, however often the fleet changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a stream without events says that it lives: below the idle limits of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    after: Option<u64>,
    page_size: Option<usize>,
    cluster: Option<String>,
    machine: Option<String>,
    incident: Option<String>,
    #[serde(rename = "severity")]
    severity_min: Option<SeverityView>,
}

/// What a `reset` of the stream carries: events between were lost to the reader; it should read everything again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reset {
    oldest: u64,
    newest: u64,
}

/// Events. With `Accept: text/event-stream` it is a stream: each event has its id, `Last-Event-ID` or `after` resumes
/// after it, and an event `reset` says that what came after it is no longer kept. Otherwise it is a list: the oldest
/// after `after`, or the newest when that is absent.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("after" = Option<u64>, Query, description = "Only events with an id above this"),
           ("page_size" = Option<usize>, Query, description = "1 to 500, 100 when absent; lists only"),
           ("cluster" = Option<String>, Query, description = "Only events of this cluster"),
           ("machine" = Option<String>, Query, description = "Only events of this machine"),
           ("incident" = Option<String>, Query,
            description = "Only events of the incident of this number; `any` for those of all incidents"),
           ("severity" = Option<SeverityView>, Query, description = "Only this severe or more"),
           ("Last-Event-ID" = Option<u64>, Header, description = "Resume after this event; streams only")),
    responses((status = 200, body = ListView<EventView>),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(api): State<Api>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query(&params)?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accept.contains("text/event-stream") {
        return list(&api, query).await;
    }
    let resume = match headers.get("last-event-id") {
        None => params.after,
        Some(value) => Some(value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Problem::new(Code::ParameterInvalid, "Last-Event-ID is not the id of an event")
        })?),
    };
    stream_events(&api, query, resume).await
}

fn query(params: &EventParams) -> Result<EventQuery, Problem> {
    let limit = params.page_size.unwrap_or(PAGE_SIZE_DEFAULT);
    if !(1..=PAGE_SIZE_MAX).contains(&limit) {
        let why = format!("page_size {limit} is not possible: choose 1 to {PAGE_SIZE_MAX}");
        return Err(Problem::new(Code::ParameterInvalid, why));
    }
    Ok(EventQuery {
        range: params.after.map_or(EventRange::Newest, EventRange::After),
        limit,
        cluster: params.cluster.as_deref().map(extract::cluster_name).transpose()?,
        machine: params.machine.as_deref().map(extract::machine_id).transpose()?,
        incident: params.incident.as_deref().map_or(Ok(OfIncident::Whatever), of_incident)?,
        severity_min: params.severity_min.unwrap_or(SeverityView::Info),
    })
}

fn of_incident(text: &str) -> Result<OfIncident, Problem> {
    if text == "any" {
        return Ok(OfIncident::Any);
    }
    let wrong = |_| Problem::new(Code::ParameterInvalid, "incident is neither a number nor `any`");
    text.parse().map(OfIncident::Number).map_err(wrong)
}

async fn list(api: &Api, query: EventQuery) -> Result<Response, Problem> {
    let batch = api.fleet.events(query).await?;
    let total = batch.items.len();
    let page = Page { items: batch.items, next: None, total };
    respond::document(&ListView::new("Event", page, None))
}

/// Where a stream is.
struct Reader {
    api: Api,
    query: EventQuery,
    after: u64,
    revision: watch::Receiver<u64>,
    ready: VecDeque<Event>,
    first: bool,
}

async fn stream_events(api: &Api, mut query: EventQuery, resume: Option<u64>) -> Result<Response, Problem> {
    let revision = api.fleet.revision();
    let after = match resume {
        Some(after) => after,
        None => {
            let probe = EventQuery { range: EventRange::Newest, limit: 1, ..query.clone() };
            api.fleet.events(probe).await?.newest
        }
    };
    query.limit = BATCH;
    let ready = VecDeque::new();
    let reader = Reader { api: api.clone(), query, after, revision, ready, first: true };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl Reader {
    /// The next event of the stream; `None` ends it, and the client connects again.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.first {
                self.first = false;
            } else {
                self.revision.changed().await.ok()?;
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            self.revision.mark_unchanged();
            self.query.range = EventRange::After(self.after);
            let batch = self.api.fleet.events(self.query.clone()).await.ok()?;
            self.take(batch);
        }
    }

    fn take(&mut self, batch: EventBatch) {
        let lost = self.after + 1 < batch.oldest || self.after > batch.newest;
        if lost {
            let reset = Reset { oldest: batch.oldest, newest: batch.newest };
            self.after = batch.newest;
            let event = Event::default().event("reset").id(batch.newest.to_string());
            self.ready.extend(event.json_data(reset));
            return;
        }
        let full = batch.items.len() >= self.query.limit;
        for item in &batch.items {
            self.after = item.id;
            self.ready.extend(Event::default().event("event").id(item.id.to_string()).json_data(item));
        }
        // A full batch may have more behind it; look again at once.
        if full {
            self.first = true;
        } else {
            self.after = self.after.max(batch.newest);
        }
    }
}
