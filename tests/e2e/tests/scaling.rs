//! Every pool of a live cluster gets another size and its old one again, while a client writes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_e2e::Installation;

/// Sizes one after the other; the last one of each pool is the first one again.
const SIZES: [(&str, u16); 7] =
    [("etcd", 3), ("master", 3), ("etcd", 5), ("worker", 3), ("master", 1), ("etcd", 1), ("worker", 2)];
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
        let scaled = SIZES.iter().try_for_each(|(pool, count)| scale(&installation, pool, *count));
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
