//! What clients can rely on, asked over real TCP and TLS.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use keelson_api::fake::{Fault, SECRET_MARKER, TOKEN};
use keelson_api::frames::{read_frame, write_frame};
use keelson_api::types::ClusterView;
use keelson_protocol::message::ShellFrame;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use support::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn new_cluster(name: &str) -> String {
    json!({ "spec": { "name": name, "plan": "tiny" } }).to_string()
}

#[tokio::test]
async fn nobody_gets_in_without_the_token() {
    let world = World::new().await;
    for path in
        ["/v1/clusters", "/v1/status", "/v1/events", "/v1/machines/x/logs", "/v1/operations/op-1:wait"]
    {
        for token in ["", "Bearer", "Bearer wrong", "Basic dGVzdA==", &format!("Bearer {TOKEN}x")] {
            let answer = world.ask("GET", path, &[("authorization", token)], "").await;
            answer.problem(401, "KEEL-2001");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    world
        .ask("POST", "/v1/clusters", &[("authorization", "Bearer no")], &new_cluster("a"))
        .await
        .problem(401, "KEEL-2001");
    assert_eq!(world.fleet.operation_count(), 0);
}

#[tokio::test]
async fn monitors_on_this_machine_need_no_token() {
    let world = World::new().await;
    let anonymous = [("authorization", "")];
    let metrics = world.ask("GET", "/metrics", &anonymous, "").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    assert!(metrics.text.contains("keelson_clusters 0"));
    assert_eq!(world.ask("GET", "/readyz", &anonymous, "").await.status, 200);
    world.fleet.fault(Some(Fault::StoreFull));
    let ready = world.ask("GET", "/readyz", &anonymous, "").await;
    assert_eq!((ready.status, ready.json()["ready"].clone()), (503, json!(false)));
    assert_eq!(world.ask("GET", "/healthz", &anonymous, "").await.status, 200);
}

#[tokio::test]
async fn a_cluster_is_made_read_and_removed() {
    let world = World::new().await;
    let accepted = world.ask("POST", "/v1/clusters", &[], &new_cluster("demo")).await;
    assert_eq!(accepted.status, 202);
    assert_eq!(accepted.header("location"), "/v1/operations/op-1");
    assert_eq!(accepted.json()["state"], "running");
    let ended = world.get("/v1/operations/op-1:wait?timeoutS=30").await.json();
    // Reading is what moves the fake on, and its revision wakes the wait.
    assert_eq!((ended["done"].clone(), ended["state"].clone()), (json!(true), json!("succeeded")));

    let cluster = world.get("/v1/clusters/demo").await;
    let view: ClusterView = serde_json::from_str(&cluster.text).unwrap();
    assert_eq!(cluster.header("etag"), format!("\"{}\"", view.meta.etag));
    let json = cluster.json();
    assert_eq!(json["status"]["state"], "ready");
    assert_eq!(json["spec"]["release"], "1.37.2", "the default release is filled in");
    let machine = &json["status"]["machines"][0];
    for field in ["id", "role", "state", "address", "zone", "release", "health"] {
        assert!(!machine[field].is_null(), "{field}");
    }
    for field in ["connected", "version", "lastHeartbeatMs"] {
        assert!(!machine["agent"][field].is_null(), "agent.{field}");
    }
    for field in ["type", "status", "reason", "message", "since"] {
        assert!(json["status"]["conditions"][0][field].is_string(), "conditions.{field}");
    }

    let etag = cluster.header("etag").to_owned();
    world.ask("DELETE", "/v1/clusters/demo", &[], "").await.problem(428, "KEEL-2010");
    world.ask("DELETE", "/v1/clusters/demo", &[("if-match", "\"0-0\"")], "").await.problem(412, "KEEL-2011");
    let deleted = world.ask("DELETE", "/v1/clusters/demo", &[("if-match", &etag)], "").await;
    assert_eq!((deleted.status, deleted.json()["action"].clone()), (202, json!("deleteCluster")));
    let again = world.ask("DELETE", "/v1/clusters/demo", &[("if-match", "*")], "").await;
    assert_eq!(again.json()["id"], deleted.json()["id"], "deleting twice is one operation");
    assert_eq!(world.get("/v1/operations/op-2:wait").await.json()["state"], "succeeded");
    world.get("/v1/clusters/demo").await.problem(404, "KEEL-2201");
}

#[tokio::test]
async fn deletion_protection_is_a_change_like_any_other() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let on = json!({ "spec": { "deletionProtection": true } }).to_string();
    world.ask("PATCH", "/v1/clusters/demo", &[], &on).await.problem(428, "KEEL-2010");
    let before = world.get("/v1/clusters/demo").await.header("etag").to_owned();
    let merge = [("if-match", before.as_str()), ("content-type", "application/merge-patch+json")];
    let changed = world.ask("PATCH", "/v1/clusters/demo", &merge, &on).await;
    assert_eq!(changed.json()["spec"]["deletionProtection"], true);
    assert_ne!(changed.header("etag"), before);
    world.ask("PATCH", "/v1/clusters/demo", &merge, &on).await.problem(412, "KEEL-2011");
    world.ask("DELETE", "/v1/clusters/demo", &[("if-match", "*")], "").await.problem(409, "KEEL-2203");
    world.ask("DELETE", "/v1/clusters/demo?dryRun=true", &[], "").await.problem(409, "KEEL-2203");
    let empty = json!({ "spec": {} }).to_string();
    world.ask("PATCH", "/v1/clusters/demo", &[("if-match", "*")], &empty).await.problem(400, "KEEL-2003");
}

#[tokio::test]
async fn a_request_repeated_a_hundred_times_is_one_operation() {
    let world = World::new().await;
    let key = [("idempotency-key", "k-1")];
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        let answer = world.ask("POST", "/v1/clusters", &key, &new_cluster("demo")).await;
        assert_eq!(answer.status, 202);
        ids.insert(answer.json()["id"].to_string());
    }
    assert_eq!((ids.len(), world.fleet.operation_count()), (1, 1));
    world.ask("POST", "/v1/clusters", &key, &new_cluster("other")).await.problem(409, "KEEL-2012");
    world
        .ask("POST", "/v1/clusters", &[("idempotency-key", "k-2")], &new_cluster("demo"))
        .await
        .problem(409, "KEEL-2202");
    world.ask("POST", "/v1/clusters", &[], &new_cluster("demo")).await.problem(409, "KEEL-2202");
    let long = "x".repeat(129);
    world
        .ask("POST", "/v1/clusters", &[("idempotency-key", &long)], &new_cluster("x"))
        .await
        .problem(400, "KEEL-2013");
    assert_eq!(world.fleet.operation_count(), 1);
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason() {
    let world = World::new().await;
    let check = async |body: &str, status: u16, code: &str, field: &str| {
        let answer = world.ask("POST", "/v1/clusters", &[], body).await;
        let problem = answer.problem(status, code);
        let fields = problem["fields"].to_string();
        assert!(field.is_empty() || fields.contains(field), "{field} is not in {fields}");
    };
    check("{", 400, "KEEL-2003", "").await;
    check("[]", 400, "KEEL-2003", "").await;
    check(r#"{"spec":{"name":"a","plan":"tiny"}} x"#, 400, "KEEL-2003", "").await;
    check(r#"{"spec":{"name":"a"}}"#, 400, "KEEL-2003", "spec").await;
    check(r#"{"spec":{"name":"a","plan":"tiny","worker":3}}"#, 400, "KEEL-2004", "worker").await;
    check(r#"{"spec":{"name":"a","plan":"tiny"},"status":{}}"#, 400, "KEEL-2004", "status").await;
    check(r#"{"spec":{"name":"a","plan":"tiny","workers":70000}}"#, 400, "KEEL-2003", "spec.workers").await;
    check(r#"{"kind":"Machine","spec":{"name":"a","plan":"tiny"}}"#, 400, "KEEL-2003", "kind").await;
    check(r#"{"spec":{"name":"A","plan":"tiny"}}"#, 422, "KEEL-2101", "spec.name").await;
    check(r#"{"spec":{"name":"a","plan":"huge"}}"#, 422, "KEEL-2103", "tiny, small").await;
    check(r#"{"spec":{"name":"a","plan":"tiny","release":"9.9"}}"#, 422, "KEEL-2104", "1.36.3").await;
    check(r#"{"spec":{"name":"a","plan":"tiny","workers":3}}"#, 422, "KEEL-2102", "").await;
    check(r#"{"spec":{"name":"a","plan":"tiny","podNetwork":"x"}}"#, 422, "KEEL-2102", "spec.podNetwork")
        .await;
    let large = format!(r#"{{"spec":{{"name":"{}","plan":"tiny"}}}}"#, "a".repeat(70_000));
    check(&large, 413, "KEEL-2005", "").await;
    let text = [("content-type", "text/plain")];
    world.ask("POST", "/v1/clusters", &text, &new_cluster("a")).await.problem(415, "KEEL-2006");
    assert_eq!(world.fleet.operation_count(), 0);
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_known_is_told_apart() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    for (path, code) in [
        ("/v1/nothing", "KEEL-2008"),
        ("/v1/clusters/none", "KEEL-2201"),
        ("/v1/clusters/%2e%2e", "KEEL-2201"),
        ("/v1/machines/none", "KEEL-2301"),
        ("/v1/operations/op-99", "KEEL-2401"),
        ("/v1/operations/op-1:fly", "KEEL-2008"),
        ("/v1/plans/none", "KEEL-2501"),
        ("/v1/releases/none", "KEEL-2502"),
        ("/v1/errors/KEEL-0000", "KEEL-2008"),
    ] {
        world.get(path).await.problem(404, code);
    }
    world.ask("PUT", "/v1/clusters/demo", &[], "").await.problem(405, "KEEL-2009");
    world.ask("POST", "/v1/clusters/demo", &[], "").await.problem(405, "KEEL-2009");
    for path in [
        "/v1/clusters?colour=red",
        "/v1/clusters?page_size=0",
        "/v1/clusters?page_size=501",
        "/v1/clusters?page_token=x",
        "/v1/operations/op-1:wait?timeoutS=61",
        "/v1/machines/demo-node-1/logs?unit=a%20b",
    ] {
        world.get(path).await.problem(400, "KEEL-2013");
    }
    let entry = world.ask("GET", "/v1/errors/KEEL-2201", &[("authorization", "")], "").await;
    assert_eq!((entry.status, entry.json()["title"].clone()), (200, json!("no such cluster")));
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let world = World::new().await;
    for number in 0..7 {
        world.fleet.add_ready(&format!("c{number}"), "tiny");
    }
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = world.get(&format!("/v1/clusters?page_size=3{token}")).await.json();
        assert_eq!((page["kind"].clone(), page["total"].clone()), (json!("ClusterList"), json!(7)));
        names.extend(page["items"].as_array().unwrap().iter().map(|item| item["spec"]["name"].clone()));
        pages += 1;
        match page["nextPageToken"].as_str() {
            Some(next) => token = format!("&page_token={next}"),
            None => break,
        }
    }
    assert_eq!((pages, names.len()), (3, 7));
    let operations = world.get("/v1/operations?page_size=2").await.json();
    assert_eq!(operations["items"][0]["id"], "op-7", "newest first");
    let next = operations["nextPageToken"].as_str().unwrap();
    let second = world.get(&format!("/v1/operations?page_size=2&page_token={next}")).await.json();
    assert_eq!(second["items"][0]["id"], "op-5");
    assert_eq!(world.get("/v1/machines?cluster=c3").await.json()["items"][0]["id"], "c3-node-1");
}

#[tokio::test]
async fn labels_are_patched_and_select() {
    let world = World::new().await;
    let body = json!({ "spec": { "name": "one", "plan": "tiny", "labels": { "env": "prod", "old": "" } } });
    world.ask("POST", "/v1/clusters", &[], &body.to_string()).await;
    world.fleet.add_labelled("two", "small", &[("env", "dev")]);
    let patch = async |labels: Value| {
        let body = json!({ "spec": { "labels": labels } }).to_string();
        world.ask("PATCH", "/v1/clusters/one", &[("if-match", "*")], &body).await
    };
    let changed = patch(json!({ "old": null, "example.com/team": "web", "none": null })).await.json();
    assert_eq!(changed["spec"]["labels"], json!({ "env": "prod", "example.com/team": "web" }));
    let refused = patch(json!({ "-": "x" })).await.problem(422, "KEEL-2102");
    assert_eq!(refused["fields"][0]["field"], "spec.labels");
    let bad = json!({ "spec": { "name": "x", "plan": "tiny", "labels": { "a": "-" } } }).to_string();
    world.ask("POST", "/v1/clusters", &[], &bad).await.problem(422, "KEEL-2102");

    let check = async |query: &str, expected: &str| {
        let items = world.get(&format!("/v1/{query}")).await.json()["items"].clone();
        let name = |item: &Value| item["spec"]["name"].as_str().or(item["id"].as_str()).unwrap().to_owned();
        let names: Vec<String> = items.as_array().unwrap().iter().map(name).collect();
        assert_eq!(names.join(" "), expected, "{query}");
    };
    check("clusters?selector=env%3Dprod", "one").await;
    check("clusters?selector=env+notin+(prod)", "two").await;
    check("clusters?state=creating,failed", "one").await;
    check("clusters?text=w&order_by=-name", "two").await;
    check("machines?selector=env%3Ddev,role%3Dworker", "two-worker-1 two-worker-2").await;
    check("machines?selector=cluster%3Dtwo,role+in+(etcd)", "two-etcd-1").await;
    check("machines?state=creating&text=one", "one-node-1").await;
    assert_eq!(patch(Value::Null).await.json()["spec"]["labels"], Value::Null, "null removes all");
}

#[tokio::test]
async fn filters_that_are_not_known_are_refused_with_a_remedy() {
    let world = World::new().await;
    for (query, says) in [
        ("clusters?state=red", "creating, ready, updating, degraded"),
        ("clusters?order_by=age", "name, created or state"),
        ("clusters?selector=a+b", "env=prod"),
        ("machines?state=red", "planned"),
        ("machines?selector=%3D", "env=prod"),
    ] {
        let problem = world.get(&format!("/v1/{query}")).await.problem(400, "KEEL-2013");
        assert!(problem["remedy"].as_str().unwrap().contains(says), "{problem}");
    }
    world.get(&format!("/v1/clusters?text={}", "x".repeat(254))).await.problem(400, "KEEL-2013");
    world.get("/v1/machines?order_by=name").await.problem(400, "KEEL-2013");
}

#[tokio::test]
async fn pages_in_another_order_do_not_mix() {
    let world = World::new().await;
    for number in 0..5 {
        world.fleet.add_ready(&format!("c{number}"), "tiny");
    }
    let (mut names, mut token) = (String::new(), String::new());
    loop {
        let page = world.get(&format!("/v1/clusters?order_by=-state&page_size=2{token}")).await.json();
        assert_eq!(page["total"], 5);
        page["items"].as_array().unwrap().iter().for_each(|i| names += i["spec"]["name"].as_str().unwrap());
        let Some(next) = page["nextPageToken"].as_str() else { break };
        token = format!("&page_token={next}");
        world.get(&format!("/v1/clusters?order_by=state{token}")).await.problem(400, "KEEL-2013");
    }
    assert_eq!(names, "c4c3c2c1c0");
}

#[tokio::test]
async fn access_leaves_an_event_without_a_secret() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let body = json!({ "ttlS": 600 }).to_string();
    let kubeconfig = world.ask("POST", "/v1/clusters/demo:kubeconfig", &[], &body).await.json();
    let upgrade = [("connection", "upgrade"), ("upgrade", "keelson-shell")];
    let command = json!({ "command": ["echo", SECRET_MARKER], "terminal": "x", "rows": 1, "columns": 1 });
    world.raw("POST", "/v1/machines/demo-node-1/shell", &upgrade, &command.to_string()).await;
    let events = world.get("/v1/events?cluster=demo").await;
    assert!(!events.text.contains(SECRET_MARKER));
    let events = events.json()["items"].clone();
    let find = |reason: &str| {
        let found = events.as_array().unwrap().iter().find(|event| event["reason"] == reason);
        let event = found.unwrap_or_else(|| panic!("no {reason}: {events}"));
        assert_eq!(event["cause"], "asked for by admin");
        event["outcome"].as_str().unwrap().to_owned()
    };
    assert!(find("KubeconfigIssued").ends_with(kubeconfig["expires"].as_str().unwrap()));
    assert_eq!(find("ShellOpened"), "echo on demo-node-1");
}

/// Reads server-sent events until `count` of them came.
async fn read_events(response: Response<Incoming>, count: usize) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut body, mut text) = (response.into_body(), String::new());
    while text.matches("\n\n").count() < count {
        let frame = body.frame().await.expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    let field = |block: &str, name: &str| {
        let prefix = format!("{name}: ");
        block.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    };
    let blocks = text.split("\n\n").filter(|block| block.contains("data:"));
    blocks
        .map(|block| {
            (
                format!("{} {}", field(block, "event"), field(block, "id")),
                serde_json::from_str(&field(block, "data")).unwrap(),
            )
        })
        .collect()
}

#[tokio::test]
async fn the_event_stream_resumes_where_it_was() {
    let world = World::new().await;
    world.fleet.add_events("demo", 5);
    let sse = ("accept", "text/event-stream");
    let resumed = world.raw("GET", "/v1/events", &[sse, ("last-event-id", "3")], "").await;
    let reader = tokio::spawn(read_events(resumed, 4));
    // These come while the stream stands.
    world.fleet.add_events("other", 1);
    world.fleet.add_events("demo", 1);
    let ids: Vec<String> = reader.await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["event 4", "event 5", "event 6", "event 7"]);

    let filtered = world.raw("GET", "/v1/events?cluster=other&after=0", &[sse], "").await;
    let events = read_events(filtered, 1).await;
    assert_eq!((events[0].0.as_str(), events[0].1["cluster"].clone()), ("event 6", json!("other")));
    world.ask("GET", "/v1/events", &[sse, ("last-event-id", "x")], "").await.problem(400, "KEEL-2013");
}

#[tokio::test]
async fn a_stream_says_reset_when_events_are_no_longer_kept() {
    let world = World::new().await;
    world.fleet.add_events("demo", 10);
    world.fleet.forget_events(3);
    let sse = ("accept", "text/event-stream");
    for (resume, expected) in [("2", "reset 10"), ("4711", "reset 10"), ("7", "event 8")] {
        let response = world.raw("GET", "/v1/events", &[sse, ("last-event-id", resume)], "").await;
        let events = read_events(response, 1).await;
        assert_eq!(events[0].0, expected, "resumed after {resume}");
    }
    let list = world.get("/v1/events?page_size=2").await.json();
    assert_eq!(list["items"][1]["id"], 10, "a list without `after` is the newest");
    let list = world.get("/v1/events?after=8").await.json();
    assert_eq!(list["items"][0]["id"], 9);
}

#[tokio::test]
async fn a_wait_ends_when_a_person_is_needed() {
    let world = World::new().await;
    world.ask("POST", "/v1/clusters", &[], &new_cluster("demo")).await;
    world.fleet.fault(Some(Fault::Stuck));
    let waited = world.get("/v1/operations/op-1:wait?timeoutS=0").await.json();
    assert_eq!((waited["done"].clone(), waited["state"].clone()), (json!(false), json!("running")));
    assert!(waited["metadata"]["waiting"][0]["endsWhen"].is_string());
    assert_eq!(waited["metadata"]["machines"][0]["status"], "progressing");
    world.fleet.fault(Some(Fault::Blocked));
    let blocked = world.get("/v1/operations/op-1:wait?timeoutS=30").await.json();
    assert_eq!(
        (blocked["state"].clone(), blocked["error"]["code"].clone()),
        (json!("blocked"), json!("KEEL-1012"))
    );
    assert_eq!(blocked["metadata"]["waiting"][0]["needsPerson"], true);
}

#[tokio::test]
async fn a_create_is_cancelled_once_and_leaves_nothing_behind() {
    let world = World::new().await;
    world.ask("POST", "/v1/clusters", &[], &new_cluster("demo")).await;
    for _ in 0..2 {
        let cancelled = world.ask("POST", "/v1/operations/op-1:cancel", &[], "").await;
        assert_eq!((cancelled.status, cancelled.json()["state"].clone()), (200, json!("cancelled")));
        assert_eq!(cancelled.json()["error"]["detail"], "what was made so far is being removed");
    }
    let cluster = world.get("/v1/clusters/demo").await.json()["status"].clone();
    assert_eq!((cluster["state"].clone(), cluster["operation"].clone()), (json!("deleting"), json!("op-2")));
    assert_eq!(world.get("/v1/operations/op-2:wait").await.json()["action"], "deleteCluster");
    world.get("/v1/clusters/demo").await.problem(404, "KEEL-2201");
}

#[tokio::test]
async fn what_cannot_be_cancelled_says_why() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.fault(Some(Fault::Stuck));
    let check = async |id: &str, code: &str, cause: &str| {
        let refused = world.ask("POST", &format!("/v1/operations/{id}:cancel"), &[], "").await;
        let problem = refused.problem(409, code);
        assert!(problem["causes"].to_string().contains(cause), "{problem}");
        assert_ne!(world.get("/v1/clusters/demo").await.json()["status"]["state"], "deleting");
    };
    check("op-1", "KEEL-2402", "").await;
    world.fleet.make_again("demo");
    check("op-2", "KEEL-2403", "its API server has answered").await;
    world.ask("POST", "/v1/clusters/demo:scale", &[("if-match", "*")], &size("worker", 3)).await;
    check("op-3", "KEEL-2403", "scale the pool").await;
    let spec = json!({ "name": "kept", "plan": "tiny", "deletionProtection": true });
    world.ask("POST", "/v1/clusters", &[], &json!({ "spec": spec }).to_string()).await;
    check("op-4", "KEEL-2203", "").await;
    world.fleet.add_ready("gone", "tiny");
    world.ask("DELETE", "/v1/clusters/gone", &[("if-match", "*")], "").await;
    check("op-6", "KEEL-2403", "do not come back").await;
}

#[tokio::test]
async fn previews_change_nothing() {
    let world = World::new().await;
    let preview = world.ask("POST", "/v1/clusters?dryRun=true", &[], &new_cluster("demo")).await;
    assert_eq!((preview.status, preview.json()["changes"][0]["effect"].clone()), (200, json!("create")));
    assert_eq!(world.fleet.operation_count(), 0);
    world.fleet.add_ready("demo", "tiny");
    let preview = world.ask("DELETE", "/v1/clusters/demo?dryRun=true", &[], "").await;
    assert_eq!(preview.json()["changes"][0]["effect"], "delete");
    assert_eq!(world.fleet.operation_count(), 1);
}

fn size(pool: &str, count: u16) -> String {
    json!({ "pool": pool, "count": count }).to_string()
}

#[tokio::test]
async fn a_pool_gets_another_size() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let path = "/v1/clusters/demo:scale";
    let preview = world.ask("POST", &format!("{path}?dryRun=true"), &[], &size("worker", 1)).await;
    let changes = preview.json()["changes"].clone();
    assert_eq!(
        (changes[0]["effect"].clone(), changes[0]["object"].clone()),
        (json!("delete"), json!("demo-worker-2"))
    );
    world.ask("POST", path, &[], &size("worker", 3)).await.problem(428, "KEEL-2010");
    world.ask("POST", path, &[("if-match", "\"0-0\"")], &size("worker", 3)).await.problem(412, "KEEL-2011");
    assert_eq!(world.fleet.operation_count(), 1);
    let accepted = world.ask("POST", path, &[("if-match", "*")], &size("worker", 3)).await;
    assert_eq!((accepted.status, accepted.header("location")), (202, "/v1/operations/op-2"));
    let json = accepted.json();
    assert_eq!(
        (json["action"].clone(), json["detail"].clone()),
        (json!("scaleCluster"), json!("pool worker from 2 to 3"))
    );
    assert_eq!(world.get("/v1/operations/op-2:wait").await.json()["state"], "succeeded");
    let cluster = world.get("/v1/clusters/demo").await.json();
    assert_eq!(cluster["spec"]["pools"], json!({ "worker": 3 }));
    assert_eq!(cluster["status"]["pools"][2], json!({ "name": "worker", "machines": 3, "leaving": 0 }));
}

#[tokio::test]
async fn a_change_that_is_sent_twice_finds_what_the_first_one_began() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.fault(Some(Fault::Stuck));
    let seen = async || world.get("/v1/clusters/demo").await.header("etag").to_owned();
    let scale = async |etag: &str, count: u16| {
        world.ask("POST", "/v1/clusters/demo:scale", &[("if-match", etag)], &size("worker", count)).await
    };
    let etag = seen().await;
    for _ in 0..2 {
        assert_eq!(scale(&etag, 3).await.json()["id"], "op-2");
    }
    scale(&etag, 4).await.problem(412, "KEEL-2011");
    let etag = seen().await;
    for _ in 0..2 {
        let deleted = world.ask("DELETE", "/v1/clusters/demo", &[("if-match", &etag)], "").await;
        assert_eq!(deleted.json()["id"], "op-3");
    }
}

#[tokio::test]
async fn sizes_that_cannot_be_name_field_and_choice() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let check = async |cluster: &str, body: &str, status: u16, code: &str, field: &str| {
        for query in ["", "?dryRun=true"] {
            let path = format!("/v1/clusters/{cluster}:scale{query}");
            let problem = world.ask("POST", &path, &[("if-match", "*")], body).await.problem(status, code);
            let fields = problem["fields"].to_string();
            assert!(fields.contains(field), "{field} is not in {fields}");
        }
    };
    check("none", &size("worker", 3), 404, "KEEL-2201", "").await;
    check("demo", &size("gpu", 3), 422, "KEEL-2106", "choose one of: etcd, master, worker").await;
    check("demo", &size("etcd", 2), 422, "KEEL-2102", "count").await;
    check("demo", &size("worker", 0), 422, "KEEL-2102", "count").await;
    check("demo", &size("worker", 1001), 422, "KEEL-2102", "count").await;
    check("demo", &size("worker", 300), 422, "KEEL-2102", "count").await;
    check("demo", r#"{"pool":"worker"}"#, 400, "KEEL-2003", "count").await;
    check("demo", r#"{"pool":"worker","count":1,"force":true}"#, 400, "KEEL-2004", "force").await;
    world.ask("DELETE", "/v1/clusters/demo", &[("if-match", "*")], "").await;
    check("demo", &size("worker", 3), 409, "KEEL-2204", "").await;
    let body = r#"{"spec":{"name":"a","plan":"small","pools":{"gpu":1}}}"#;
    let unknown = world.ask("POST", "/v1/clusters", &[], body).await.problem(422, "KEEL-2106");
    assert_eq!(unknown["fields"][0]["field"], "spec.pools");
}

/// Plan `small` as its own document shows it, under another name.
async fn small_as(world: &World, name: &str) -> Value {
    let mut plan = world.get("/v1/plans/small").await.json();
    plan["name"] = json!(name);
    plan
}

#[tokio::test]
async fn a_cluster_that_follows_its_plan_has_the_entity_tag_that_it_had() {
    let world = World::new().await;
    let put = async |count: u16| {
        let mut plan = small_as(&world, "web").await;
        plan["pools"][2]["count"] = json!(count);
        let put = world.ask("PUT", "/v1/plans/web", &[("if-match", "*")], &plan.to_string()).await;
        assert_eq!(put.status, 200, "{}", put.text);
    };
    put(2).await;
    world.fleet.add_ready("demo", "web");
    let before = world.get("/v1/clusters/demo").await;
    put(3).await;
    let after = world.get("/v1/clusters/demo").await;
    assert_eq!(after.header("etag"), before.header("etag"));
    let generations = [before, after].map(|answer| answer.json()["meta"]["generation"].clone());
    assert_eq!(generations, [1, 2]);
}

#[tokio::test]
async fn a_plan_is_made_changed_followed_and_removed() {
    let world = World::new().await;
    let mut plan = small_as(&world, "web").await;
    let put = async |path: &str, plan: &Value| world.ask("PUT", path, &[], &plan.to_string()).await;
    assert_eq!(put("/v1/plans/web?dryRun=true", &plan).await.json()["outcome"], "created");
    world.get("/v1/plans/web").await.problem(404, "KEEL-2501");
    assert_eq!(put("/v1/plans/web", &plan).await.json()["outcome"], "created");
    assert_eq!(put("/v1/plans/web", &plan).await.json()["outcome"], "unchanged");
    world.fleet.add_ready("demo", "web");
    plan["pools"][2]["count"] = json!(3);
    plan["pools"][2]["taints"] = json!([{ "key": "gpu", "effect": "NoSchedule" }]);
    let changed = put("/v1/plans/web", &plan).await.json();
    assert_eq!(changed["outcome"], "changed");
    assert_eq!(changed["clusters"][0]["changes"][0]["object"], "demo-worker-3");
    world.fleet.tick();
    let events = world.get("/v1/events").await.json();
    let applied =
        events["items"].as_array().unwrap().iter().rfind(|event| event["reason"] == "PlanApplied").unwrap();
    assert_eq!(applied["cause"], "asked for by admin");
    world.ask("DELETE", "/v1/plans/web", &[], "").await.problem(409, "KEEL-2504");
    plan["pools"][0]["name"] = json!("state");
    let harmed = put("/v1/plans/web", &plan).await.problem(409, "KEEL-2505");
    let why = "cluster demo: pool etcd would vanish, and with its machines the cluster's etcd data";
    assert_eq!(harmed["causes"][0], why);
    plan["pools"][0]["name"] = json!("etcd");
    plan["description"] = json!("for web");
    let put_for = async |header: &'static str, state: &str| {
        world.ask("PUT", "/v1/plans/web", &[(header, state)], &plan.to_string()).await
    };
    put_for("if-none-match", "*").await.problem(412, "KEEL-2011");
    put_for("if-match", "\"0123456789abcdef\"").await.problem(412, "KEEL-2011");
    put_for("if-none-match", "\"0123456789abcdef\"").await.problem(400, "KEEL-2013");
    let seen = put("/v1/plans/web?dryRun=true", &plan).await.json()["replaces"].clone();
    let seen = format!("\"{}\"", seen.as_str().unwrap());
    assert_eq!(world.get("/v1/plans/web").await.header("etag"), seen);
    assert_eq!(put_for("if-match", &seen).await.json()["outcome"], "changed");
    assert_eq!(put_for("if-match", &seen).await.json()["outcome"], "unchanged", "sent a second time");
    put("/v1/plans/other", &small_as(&world, "other").await).await;
    assert_eq!(world.ask("DELETE", "/v1/plans/other", &[], "").await.json()["outcome"], "deleted");
    world.ask("DELETE", "/v1/plans/other", &[], "").await.problem(404, "KEEL-2501");
}

#[tokio::test]
async fn plans_that_cannot_be_name_their_field() {
    let world = World::new().await;
    let check = async |change: &dyn Fn(&mut Value), status: u16, code: &str, field: &str| {
        let mut plan = small_as(&world, "web").await;
        change(&mut plan);
        let problem = world.ask("PUT", "/v1/plans/web", &[], &plan.to_string()).await.problem(status, code);
        assert!(problem["fields"].to_string().contains(field), "{field}: {problem}");
    };
    check(&|plan| plan["kind"] = json!("Cluster"), 400, "KEEL-2003", "kind").await;
    check(&|plan| plan["name"] = json!("other"), 422, "KEEL-2107", "name").await;
    check(&|plan| plan["pools"][0]["cpus"] = json!(2), 400, "KEEL-2004", "cpus").await;
    check(&|plan| plan["pools"][0]["cpu"] = json!("2 cores"), 422, "KEEL-2107", "pools[0].cpu").await;
    check(&|plan| plan["pools"][1]["disk"] = json!("40Gi"), 422, "KEEL-2107", "pools[1].disk").await;
    check(&|plan| plan["pools"][0]["count"] = json!(2), 422, "KEEL-2107", "pools.count").await;
    check(&|plan| plan["pools"][2]["zones"] = json!(["zone-x"]), 422, "KEEL-2107", "pools.zones").await;
    check(&|plan| plan["pools"][2]["roles"] = json!(["wroker"]), 422, "KEEL-2107", "pools[2].roles").await;
    let mut small = small_as(&world, "small").await;
    assert_eq!(
        world.ask("PUT", "/v1/plans/small", &[], &small.to_string()).await.json()["outcome"],
        "unchanged"
    );
    small["pools"][2]["count"] = json!(3);
    world.ask("PUT", "/v1/plans/small", &[], &small.to_string()).await.problem(409, "KEEL-2503");
    world.ask("DELETE", "/v1/plans/small", &[], "").await.problem(409, "KEEL-2503");
}

#[tokio::test]
async fn logs_are_streamed() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let logs = world.get("/v1/machines/demo-node-1/logs?unit=kubelet.service&lines=3&follow=true").await;
    assert_eq!((logs.status, logs.text.as_str()), (200, "demo-node-1 kubelet.service: 3 lines\none more\n"));
    world.ask("POST", "/v1/clusters", &[], &new_cluster("young")).await;
    let away = world.get("/v1/machines/young-node-1/logs").await;
    away.problem(503, "KEEL-2302");
    assert_eq!(away.header("retry-after"), "5");
}

const UPGRADE: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "keelson-shell")];

#[tokio::test]
async fn a_shell_is_an_upgraded_connection() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let body = json!({ "terminal": "xterm", "rows": 24, "columns": 80 }).to_string();
    let path = "/v1/machines/demo-node-1/shell";
    world.ask("POST", path, &[], &body).await.problem(426, "KEEL-2014");
    world.ask("POST", "/v1/machines/none/shell", &UPGRADE, &body).await.problem(404, "KEEL-2301");
    world.ask("POST", path, &UPGRADE, "{}").await.problem(400, "KEEL-2003");

    let response = world.raw("POST", path, &UPGRADE, &body).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut shell = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    assert_eq!(read_frame(&mut shell).await.unwrap(), Some(ShellFrame::Data(b"fake shell\r\n".to_vec())));
    write_frame(&mut shell, &ShellFrame::Data(b"hello".to_vec())).await.unwrap();
    assert_eq!(read_frame(&mut shell).await.unwrap(), Some(ShellFrame::Data(b"hello".to_vec())));
    write_frame(&mut shell, &ShellFrame::Resize { rows: 50, columns: 132 }).await.unwrap();
    assert_eq!(read_frame(&mut shell).await.unwrap(), Some(ShellFrame::Data(b"50x132".to_vec())));
    write_frame(&mut shell, &ShellFrame::Data(b"q".to_vec())).await.unwrap();
    assert_eq!(read_frame(&mut shell).await.unwrap(), Some(ShellFrame::Exit { code: 7 }));
    assert_eq!(read_frame(&mut shell).await.unwrap(), None);
}

#[tokio::test]
async fn only_the_kubeconfig_answer_holds_a_secret() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let path = "/v1/clusters/demo:kubeconfig";
    world.ask("POST", path, &[], r#"{"ttlS":59}"#).await.problem(400, "KEEL-2013");
    world.ask("POST", path, &[], r#"{"ttl":60}"#).await.problem(400, "KEEL-2004");
    let kubeconfig = world.ask("POST", path, &[], r#"{"ttlS":3600}"#).await;
    assert!(kubeconfig.text.contains(SECRET_MARKER));
    assert_eq!(kubeconfig.header("cache-control"), "no-store");
    for path in [
        "/v1/clusters",
        "/v1/clusters/demo",
        "/v1/machines",
        "/v1/operations",
        "/v1/events",
        "/v1/status",
        "/v1/version",
        "/v1/plans",
        "/v1/releases",
        "/metrics",
        "/v1/openapi.json",
        "/v1/clusters/none",
    ] {
        let answer = world.get(path).await;
        assert!(!answer.text.contains(SECRET_MARKER) && !answer.text.contains(TOKEN), "{path}");
    }
    world.ask("POST", "/v1/clusters", &[], &new_cluster("young")).await;
    world.ask("POST", "/v1/clusters/young:kubeconfig", &[], "{}").await.problem(409, "KEEL-2205");
}

#[tokio::test]
async fn every_described_path_is_served() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let document = world.ask("GET", "/v1/openapi.json", &[("authorization", "")], "").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let path = path.replace("{name}", "demo").replace("{code}", "KEEL-2201");
            let id = if path.contains("operations") { "op-1" } else { "demo-node-1" };
            let answer = world.ask(&method, &path.replace("{id}", id), &[], "").await;
            let code = serde_json::from_str::<Value>(&answer.text).unwrap_or_default()["code"].clone();
            assert!(code != "KEEL-2008" && code != "KEEL-2009", "{method} {path}: {}", answer.text);
        }
    }
}

/// A connection that speaks HTTP/2, before its first word.
async fn connect_h2(world: &World) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.server.ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(world.server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let world = World::new().await;
    let (mut silent, mut begun) = (connect_h2(&world).await, connect_h2(&world).await);
    // HTTP/2 and POST both begin so.
    begun.write_all(b"P").await.unwrap();
    // How they are closed does not matter.
    let (mut nothing, mut neither) = (Vec::new(), Vec::new());
    let ends = async { tokio::join!(silent.read_to_end(&mut nothing), begun.read_to_end(&mut neither)) };
    assert!(tokio::time::timeout(Duration::from_secs(60), ends).await.is_ok(), "one stands");
}

#[tokio::test]
async fn http_2_is_spoken_and_shutdown_ends_streams() {
    let world = World::new().await;
    world.fleet.add_events("demo", 1);
    let sse = [("accept", "text/event-stream"), ("last-event-id", "0")];
    let stream = world.raw("GET", "/v1/events", &sse, "").await;
    assert_eq!(read_events(stream, 1).await.len(), 1);

    let stream = connect_h2(&world).await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/v1/version")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Full::<Bytes>::default())
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    let stopped = tokio::time::timeout(Duration::from_secs(20), world.server.stop()).await;
    assert!(stopped.is_ok(), "the server stops though a stream stands");
}
