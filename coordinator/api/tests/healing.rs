//! What clients can rely on about health, repair and drains.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use keelson_api::fake::Broken;
use keelson_api::types::Timestamp;
use keelson_model::kubernetes::{BudgetSeen, DrainState, PodLeft, PodOwner, PodWait};
use keelson_model::{Evidence, HeartbeatSeen, Hold, LeaseSeen, PeersSeen, PowerSeen, Scope, Verdict};
use serde_json::{Value, json};
use support::World;

fn hung(hold: Option<Hold>) -> Broken {
    let evidence = Evidence {
        heartbeat: HeartbeatSeen::Ago { ms: 21_000 },
        peers: PeersSeen { reached: 0, refused: 0, silent: 3 },
        power: PowerSeen::On,
        lease: LeaseSeen::Stale,
        zone_heard: 2,
        zone_others: 2,
    };
    Broken { verdict: Verdict::Hung, evidence, hold }
}

fn meltdown() -> Hold {
    Hold::Meltdown { scope: Scope::Cluster, broken: 2, total: 4, allowed: 1 }
}

fn quorum() -> Hold {
    Hold::Quorum { voters: 3, working: 1, needed: 2 }
}

async fn repair(world: &World, id: &str, body: Value) -> support::Answer {
    world.ask("POST", &format!("/v1/machines/{id}:repair"), &[], &body.to_string()).await
}

#[tokio::test]
async fn a_machine_that_is_not_well_says_why_and_what_holds_its_repair() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let well = world.get("/v1/machines/demo-worker-2").await.json();
    assert_eq!(well["verdict"], json!({ "word": "well", "name": "well", "text": "well" }));
    for field in ["faultClass", "evidence", "incident", "acting", "hold", "acts", "fenced", "leaving"] {
        assert!(well[field].is_null(), "{field}");
    }
    world.fleet.break_machine("demo-worker-2", hung(Some(meltdown())));
    let machine = world.get("/v1/machines/demo-worker-2").await.json();
    assert_eq!(
        (machine["verdict"]["word"].clone(), machine["faultClass"].clone()),
        (json!("hung"), json!("os"))
    );
    assert_eq!(machine["evidence"]["heartbeatMs"], 21_000);
    assert_eq!(
        (machine["evidence"]["power"].clone(), machine["evidence"]["lease"].clone()),
        (json!("on"), json!("stale"))
    );
    assert!(machine["evidence"]["text"].as_str().unwrap().contains("3 get no answer"));
    assert_eq!(
        (machine["incident"]["number"].clone(), machine["hold"]["guard"].clone()),
        (json!(1), json!("meltdown"))
    );
    let cluster = world.get("/v1/clusters/demo").await.json();
    assert_eq!(cluster["status"]["state"], "degraded");
    let not_well = &cluster["status"]["notWell"][0];
    assert_eq!(
        (not_well["machine"].clone(), not_well["faultClass"].clone()),
        (json!("demo-worker-2"), json!("os"))
    );
    assert!(
        not_well["text"]
            .as_str()
            .unwrap()
            .starts_with("hung, or out of everybody's reach; not repaired: 2 of 4")
    );
    let status = world.get("/v1/status").await.json();
    assert_eq!(status["notWell"][0], *not_well);
    assert_eq!(status["repair"]["counts"], json!({ "notWell": 1, "incidents": 1, "acting": 0, "held": 1 }));
}

#[tokio::test]
async fn repair_is_paused_and_resumed_by_somebody_for_a_reason() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.add_ready("edge", "tiny");
    let body = json!({ "cluster": "demo", "reason": "the switch is exchanged" }).to_string();
    let paused = world.ask("POST", "/v1/repair:pause", &[], &body).await.json();
    assert_eq!(paused["paused"][0]["cluster"], "demo");
    let demo = world.get("/v1/clusters/demo").await.json();
    let pause = &demo["status"]["repairPaused"];
    assert_eq!((pause["scope"].clone(), pause["by"].clone()), (json!("cluster"), json!("admin")));
    assert_eq!(pause["reason"], "the switch is exchanged");
    assert!(world.get("/v1/clusters/edge").await.json()["status"]["repairPaused"].is_null());
    world.fleet.break_machine("demo-worker-2", hung(None));
    let machine = world.get("/v1/machines/demo-worker-2").await.json();
    assert_eq!(
        (machine["hold"]["guard"].clone(), machine["hold"]["needsPerson"].clone()),
        (json!("paused"), json!(true))
    );
    world.ask("POST", "/v1/repair:pause", &[], "{}").await;
    assert_eq!(world.get("/v1/clusters/edge").await.json()["status"]["repairPaused"]["scope"], "fleet");
    assert_eq!(world.get("/v1/repair").await.json()["paused"].as_array().unwrap().len(), 2);
    world.ask("POST", "/v1/repair:resume", &[], "{}").await;
    let resumed = world.ask("POST", "/v1/repair:resume", &[], r#"{"cluster":"demo"}"#).await.json();
    assert_eq!(resumed["paused"], json!([]));
    let events = world.get("/v1/events").await.json();
    let causes: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|e| e["cause"].as_str().unwrap()).collect();
    assert!(causes.contains(&"admin asked for it: the switch is exchanged"), "{causes:?}");
    world.ask("POST", "/v1/repair:pause", &[], r#"{"cluster":"none"}"#).await.problem(404, "KEEL-2201");
    let two_lines = json!({ "reason": "a\nb" }).to_string();
    world.ask("POST", "/v1/repair:pause", &[], &two_lines).await.problem(400, "KEEL-2003");
    world.ask("POST", "/v1/repair:pause", &[], r#"{"clusters":"demo"}"#).await.problem(400, "KEEL-2004");
    world.ask("POST", "/v1/repair:stop", &[], "{}").await.problem(404, "KEEL-2008");
}

#[tokio::test]
async fn a_repair_passes_the_guards_or_is_refused_with_what_would_go_on() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.break_machine("demo-worker-2", hung(Some(meltdown())));
    let held =
        repair(&world, "demo-worker-2", json!({ "action": "power-cycle" })).await.problem(409, "KEEL-2305");
    assert!(held["remedy"].as_str().unwrap().ends_with("--action power-cycle --override"), "{held}");
    assert!(held["causes"][0].as_str().unwrap().starts_with("the hold ends when fewer machines are broken"));
    let path = "/v1/machines/demo-worker-2:repair?dryRun=true";
    let body = json!({ "action": "power-cycle", "override": true });
    let preview = world.ask("POST", path, &[], &body.to_string()).await.json();
    assert_eq!(
        (preview["begun"].clone(), preview["against"]["guard"].clone()),
        (json!(false), json!("meltdown"))
    );
    assert!(world.get("/v1/machines/demo-worker-2").await.json()["acting"].is_null());
    let begun = repair(&world, "demo-worker-2", body.clone()).await.json();
    assert_eq!((begun["begun"].clone(), begun["incident"]["number"].clone()), (json!(true), json!(1)));
    let machine = world.get("/v1/machines/demo-worker-2").await.json();
    assert_eq!(
        (machine["acting"].clone(), machine["acts"][0]["action"].clone()),
        (json!("power-cycle"), json!("power-cycle"))
    );
    repair(&world, "demo-worker-2", body).await.problem(409, "KEEL-2304");
    repair(&world, "demo-worker-1", json!({ "action": "power-on" })).await.problem(409, "KEEL-2306");
    repair(&world, "none", json!({ "action": "rebuild" })).await.problem(404, "KEEL-2301");
    repair(&world, "demo-worker-1", json!({ "action": "kick" })).await.problem(400, "KEEL-2003");
    let confirm = json!({ "action": "rebuild", "confirm": "demo" });
    repair(&world, "demo-worker-1", confirm).await.problem(400, "KEEL-2003");
    world.ask("POST", "/v1/machines/demo-worker-1", &[], "{}").await.problem(405, "KEEL-2009");
    world.ask("POST", "/v1/machines/demo-worker-1:fly", &[], "{}").await.problem(404, "KEEL-2008");
}

#[tokio::test]
async fn the_quorum_is_given_up_only_by_its_clusters_name() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    world.fleet.break_machine("demo-etcd-2", hung(Some(quorum())));
    let with = |confirm: Option<&str>| json!({ "action": "recreate", "override": true, "confirm": confirm });
    let wrong = "`prod` is not the name of the machine's cluster, `demo`";
    for (confirm, told) in [(None, Value::Null), (Some("prod"), json!(wrong))] {
        let held = repair(&world, "demo-etcd-2", with(confirm)).await.problem(409, "KEEL-2305");
        assert!(held["remedy"].as_str().unwrap().ends_with("--override --confirm-loss-of demo"), "{held}");
        assert!(held["causes"][1].as_str().unwrap().contains("no quorum"), "{held}");
        assert_eq!(held["causes"][2], told);
    }
    let begun = repair(&world, "demo-etcd-2", with(Some("demo"))).await.json();
    assert_eq!(begun["etcdMember"], "demo-etcd-2");
    assert!(begun["what"][1].as_str().unwrap().contains("etcd member demo-etcd-2 loses its data"), "{begun}");
}

#[tokio::test]
async fn what_is_possible_is_said_before_it_is_tried() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let options = world.get("/v1/machines/demo-etcd-1/repairs").await.json();
    let all = options["actions"].as_array().unwrap();
    let allowed: Vec<&str> =
        all.iter().filter(|o| o["allowed"] == true).map(|o| o["action"].as_str().unwrap()).collect();
    assert_eq!(allowed, ["power-cycle", "rebuild"]);
    assert!(all[0]["why"].as_str().unwrap().contains("has power already"), "{options}");
    assert_eq!(all[3]["hold"]["guard"], "impossible");
    world.get("/v1/machines/none/repairs").await.problem(404, "KEEL-2301");
}

#[tokio::test]
async fn events_of_one_incident_and_of_all_of_them() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.break_machine("demo-worker-1", hung(Some(meltdown())));
    world.fleet.break_machine("demo-worker-2", hung(None));
    let of = async |query: &str| -> Vec<(String, u64)> {
        let list = world.get(&format!("/v1/events?{query}")).await.json();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|e| (e["reason"].as_str().unwrap().to_owned(), e["incident"].as_u64().unwrap())).collect()
    };
    let first = [("FaultFound".to_owned(), 1), ("RepairHeld".to_owned(), 1)];
    assert_eq!(of("incident=1").await, first);
    assert_eq!(of("incident=any&machine=demo-worker-2").await, [("FaultFound".to_owned(), 2)]);
    assert_eq!(of("incident=any").await.len(), 3);
    assert!(of("incident=9").await.is_empty());
    world.get("/v1/events?incident=x").await.problem(400, "KEEL-2013");
}

#[tokio::test]
async fn a_drain_says_which_pod_it_waits_for_and_until_when() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let budget = BudgetSeen {
        name: "web".to_owned(),
        allowed: 0,
        healthy: 2,
        wanted: 2,
        expected: 2,
        message: String::new(),
    };
    let left = PodLeft {
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        owner: Some(PodOwner { kind: "Deployment".to_owned(), name: "web".to_owned() }),
        why: PodWait::Budget(budget),
    };
    world.fleet.block_drain("demo-worker-2", Some(DrainState::new(vec![left], 0)));
    let body = json!({ "pool": "worker", "count": 1, "drain": { "timeoutS": 1200 } }).to_string();
    let any = [("if-match", "*")];
    assert_eq!(world.ask("POST", "/v1/clusters/demo:scale", &any, &body).await.status, 202);
    let machine = world.get("/v1/machines/demo-worker-2").await.json();
    let leaving = &machine["leaving"];
    assert_eq!(
        (leaving["step"].clone(), leaving["pods"][0]["budgets"].clone()),
        (json!("draining"), json!(["web"]))
    );
    assert_eq!(leaving["pods"][0]["owner"], "Deployment web");
    assert_eq!(leaving["pods"][0]["needsPerson"], true);
    let at = |field: &str| serde_json::from_value::<Timestamp>(leaving[field].clone()).unwrap().0.0;
    assert_eq!(at("forcedAt") - at("since"), 1_200_000);
    let drain = world.get("/v1/clusters/demo").await.json()["spec"]["drain"].clone();
    assert_eq!(drain, json!({ "timeoutS": 1200, "then": "force" }));
    let wait = json!({ "spec": { "drain": { "then": "wait" } } }).to_string();
    let changed = world.ask("PATCH", "/v1/clusters/demo", &any, &wait).await.json();
    assert_eq!(changed["spec"]["drain"], json!({ "timeoutS": 1200, "then": "wait" }));
    assert!(world.get("/v1/machines/demo-worker-2").await.json()["leaving"]["forcedAt"].is_null());
    let long = json!({ "spec": { "drain": { "timeoutS": 86_401 } } }).to_string();
    let refused = world.ask("PATCH", "/v1/clusters/demo", &any, &long).await.problem(422, "KEEL-2102");
    assert_eq!(refused["fields"][0]["field"], "spec.drain.timeoutS");
}
