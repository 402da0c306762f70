//! Every pool of a live cluster gets another size and its old one again, and machines of its control plane are made anew, while
//! a client writes; a worker that may not go; and two people who ask at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use serde_json::{Value, json};

/// Sizes one after the other.
const GROW: [(&str, u16); 5] = [("etcd", 3), ("master", 3), ("etcd", 5), ("master", 5), ("worker", 3)];
/// The first ones of each pool again.
const SHRINK: [(&str, u16); 3] = [("master", 1), ("etcd", 1), ("worker", 2)];
/// Made anew, with blank disks, in between.
const REPLACED: [&str; 2] = ["demo-etcd-2", "demo-master-2"];
/// The member that goes first, because its zone has two and its number is the highest.
const FIRST_TO_GO: &str = "demo-etcd-5";
/// Keys and certificates of a machine.
const PKI: &str = "/var/lib/keelson/pki";
/// Zones of the local provider.
const ZONES: usize = 3;
/// How often the client writes.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// What all objects of the client are called, with their number behind it.
const NAME: &str = "keelson-scaling-";

#[test]
fn etcd_masters_and_workers_grow_and_shrink_while_a_client_writes() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let over = AtomicBool::new(false);
    let (scaled, written) = std::thread::scope(|scope| {
        let client = scope.spawn(|| write_until(&installation, &over));
        let scaled = grow_and_shrink(&installation);
        over.store(true, Ordering::Relaxed);
        (scaled, client.join())
    });
    scaled?;
    let written = written.map_err(|_| anyhow::anyhow!("the client panicked"))?;
    ensure!(written.len() > 20, "only {} writes were taken", written.len());
    let found = objects(&installation)?;
    let lost: Vec<&String> = written.difference(&found).collect();
    ensure!(lost.is_empty(), "writes that were acknowledged are lost: {lost:?}");
    let all: Vec<&str> = found.iter().map(String::as_str).collect();
    installation.kubectl(&[&["delete", "--wait=false"], all.as_slice()].concat())?;
    installation.wait_ready("demo")
}

fn grow_and_shrink(installation: &Installation) -> Result<()> {
    GROW.iter().try_for_each(|(pool, count)| scale(installation, pool, *count))?;
    REPLACED.iter().try_for_each(|machine| make_anew(installation, machine))?;
    make_leader(installation, FIRST_TO_GO)?;
    SHRINK.iter().try_for_each(|(pool, count)| scale(installation, pool, *count))?;
    // It has not left without handing over.
    let events = installation.keelson_json(&["events", "--cluster", "demo", "--limit", "500"])?;
    let items = events["items"].as_array().context("the list of events has no items")?;
    let goes = |event: &Value| event["reason"] == "EtcdMemberRemoved" && event["machine"] == FIRST_TO_GO;
    let gone = items.iter().rposition(goes).with_context(|| format!("it has not left etcd: {events}"))?;
    let moved = items[..gone].iter().any(|event| event["reason"] == "EtcdLeaderMoved");
    ensure!(moved, "{FIRST_TO_GO} led and has not handed over: {events}");
    Ok(())
}

fn make_anew(installation: &Installation, machine: &str) -> Result<()> {
    let incarnation = || -> Result<u64> {
        let shown = installation.keelson_json(&["machine", "show", machine])?;
        shown["incarnation"].as_u64().with_context(|| format!("no incarnation: {shown}"))
    };
    let before = incarnation()?;
    let words = ["machine", "repair", machine, "--action", "recreate", "--yes", "--wait"];
    let output = installation.keelson(&words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{machine} was not made anew: {said}");
    ensure!(incarnation()? > before, "{machine} is the same as before");
    installation.wait_ready("demo")
}

/// Lets an etcd member lead, with etcd's own client on its machine.
fn make_leader(installation: &Installation, machine: &str) -> Result<()> {
    let etcdctl = |words: &str| {
        let tls =
            format!("--cacert={PKI}/etcd-ca.crt --cert={PKI}/etcd-server.crt --key={PKI}/etcd-server.key");
        let client = "$(echo /opt/keelson/releases/*/bin/etcdctl)";
        installation.on_machine(machine, &["sh", "-c", &format!("{client} {tls} {words}")])
    };
    // Id, state, name, address for peers, address for clients, whether it learns.
    let list = etcdctl("member list")?;
    let members: Vec<Vec<&str>> = list.lines().map(|line| line.split(", ").collect()).collect();
    let all: Vec<&str> = members.iter().filter_map(|fields| fields.get(4).copied()).collect();
    let own = members.iter().find(|fields| fields.get(2).is_some_and(|name| name.starts_with(machine)));
    let own = own.with_context(|| format!("{machine} is no member: {list}"))?[0];
    etcdctl(&format!("--endpoints={} move-leader {own}", all.join(","))).map(drop)
}

fn scale(installation: &Installation, pool: &str, count: u16) -> Result<()> {
    let size = count.to_string();
    let words = ["cluster", "scale", "demo", "--pool", pool, "--count", &size, "--yes", "--wait"];
    let output = installation.keelson(&words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pool {pool} did not come to {count}: {said}");
    let shown = installation.show("demo")?;
    let pools = shown["status"]["pools"].as_array().context("the cluster has no pools")?;
    ensure!(pools.iter().any(|of| of["name"] == pool && of["machines"] == count), "{pools:?}");
    let listed = installation.keelson_json(&["machine", "list", "--cluster", "demo"])?;
    let machines = listed["items"].as_array().context("the cluster has no machines")?;
    let of_pool = machines.iter().filter(|machine| machine["pool"] == pool);
    let zones: Vec<&str> = of_pool.filter_map(|machine| machine["zone"].as_str()).collect();
    let fullest = zones.iter().map(|zone| zones.iter().filter(|other| *other == zone).count()).max();
    let even = usize::from(count).div_ceil(ZONES);
    ensure!(fullest == Some(even), "pool {pool} is not spread over the zones: {zones:?}");
    Ok(())
}

/// Makes numbered objects, and says which ones were acknowledged. A write that fails is no loss.
fn write_until(installation: &Installation, over: &AtomicBool) -> BTreeSet<String> {
    let mut written = BTreeSet::new();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{NAME}{number}");
        if installation.kubectl(&["create", "configmap", &name]).is_ok() {
            written.insert(format!("configmap/{name}"));
        }
        std::thread::sleep(WRITE_EVERY);
    }
    written
}

/// The client's objects that are there.
fn objects(installation: &Installation) -> Result<BTreeSet<String>> {
    let names = installation.kubectl(&["get", "configmaps", "--output", "name"])?;
    Ok(names.lines().filter(|name| name.contains(NAME)).map(str::to_owned).collect())
}

/// What a worker runs that may not go: one pod, held by a budget that can never be met.
const HELD: &str = "keelson-held";
/// For how long it is seen that the pod stays.
const HELD_FOR: Duration = Duration::from_secs(15);

#[test]
fn a_worker_whose_pods_no_budget_lets_go_says_so_and_goes_when_it_may() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before = workers(&installation)?;
    scale(&installation, "worker", u16::try_from(before.len() + 1)?)?;
    let added = workers(&installation)?.difference(&before).next().cloned().context("no worker was added")?;
    let held = hold_pod_on(&installation, &added)
        .and_then(|()| leaves_only_when_it_may(&installation, &added, before.len()));
    for kind in ["poddisruptionbudget", "deployment"] {
        installation.kubectl(&["delete", kind, HELD, "--ignore-not-found", "--wait=false"])?;
    }
    held?;
    wait_for("the worker to go", || {
        ensure!(workers(&installation)? == before, "{:?}", workers(&installation)?);
        Ok(())
    })?;
    installation.wait_ready("demo")
}

/// Runs a pod on a worker, under a budget that wants it healthy at any time.
fn hold_pod_on(installation: &Installation, worker: &str) -> Result<()> {
    let backend = ["get", "deployment", "backend", "--namespace", "demo", "--output", "json"];
    let backend: Value = serde_json::from_str(&installation.kubectl(&backend)?)?;
    let mut pod = backend["spec"]["template"]["spec"].clone();
    pod["nodeSelector"] = json!({ "kubernetes.io/hostname": worker });
    let labels = json!({ "app": HELD });
    let selector = json!({ "matchLabels": labels });
    let template = json!({ "metadata": { "labels": labels }, "spec": pod });
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": HELD },
            "spec": { "replicas": 1, "selector": selector, "template": template },
        },
        {
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": HELD },
            "spec": { "minAvailable": 1, "selector": selector },
        },
    ] });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("held.json");
    std::fs::write(&path, objects.to_string())?;
    installation.kubectl(&["apply", "--filename", path.to_str().context("the path is no text")?])?;
    installation.kubectl(&["rollout", "status", "deployment", HELD, "--timeout", "120s"]).map(drop)
}

/// Asks for one worker less, and sees that it stays as long as the budget holds its pod, and says so.
fn leaves_only_when_it_may(installation: &Installation, worker: &str, count: usize) -> Result<()> {
    let size = count.to_string();
    let words = ["cluster", "scale", "demo", "--pool", "worker", "--count", &size, "--yes"];
    let output = installation.keelson(&words)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = [
        format!("of Deployment {HELD}"),
        format!("disruption budget {HELD} wants 1 of 1 pods healthy, 1 are, so it never allows one to go"),
    ];
    wait_for("the reason why it stays", || {
        let why = installation.keelson(&["why", worker])?;
        let why = String::from_utf8_lossy(&why.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(expected.iter().all(|words| why.contains(words.as_str())), "{why}");
        Ok(())
    })?;
    std::thread::sleep(HELD_FOR);
    let selector = format!("app={HELD}");
    let pods = installation.kubectl(&["get", "pods", "--selector", &selector, "--output", "name"])?;
    ensure!(pods.lines().count() == 1, "the pod was taken although its budget holds it: {pods:?}");
    ensure!(workers(installation)?.contains(worker), "the worker went although a budget holds its pod");
    Ok(())
}

#[test]
fn of_two_people_who_scale_at_once_one_is_granted_and_the_other_told() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before = u16::try_from(workers(&installation)?.len())?;
    let ask = |count: u16| {
        let size = count.to_string();
        let words = ["cluster", "scale", "demo", "--pool", "worker", "--count", &size, "--yes"];
        Ok::<_, anyhow::Error>((count, installation.keelson(&words)?))
    };
    let answers = std::thread::scope(|scope| {
        let asked = [before + 1, before + 2].map(|count| scope.spawn(move || ask(count)));
        asked.map(|asked| asked.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    });
    let mut granted = BTreeSet::new();
    for answer in answers {
        let (count, output) = answer?;
        let said = String::from_utf8_lossy(&output.stderr);
        // One that came when the other had been granted has seen its size, and asked for another one.
        ensure!(output.status.success() || said.contains("KEEL-2011"), "{count} workers: {said}");
        granted.extend(output.status.success().then_some(usize::from(count)));
    }
    wait_for("a size that was granted", || {
        let now = workers(&installation)?.len();
        ensure!(granted.contains(&now), "{now} workers, and granted was {granted:?}");
        Ok(())
    })?;
    installation.wait_ready("demo")?;
    scale(&installation, "worker", before)
}

/// Names of the cluster's workers.
fn workers(installation: &Installation) -> Result<BTreeSet<String>> {
    let listed = installation.keelson_json(&["machine", "list", "--cluster", "demo"])?;
    let machines = listed["items"].as_array().context("the cluster has no machines")?;
    let workers = machines.iter().filter(|machine| machine["pool"] == "worker");
    Ok(workers.filter_map(|machine| machine["id"].as_str()).map(str::to_owned).collect())
}
