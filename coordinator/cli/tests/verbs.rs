//! What every verb prints, compared with golden files.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;

use keelson_api::fake::Fault;
use support::{Outcome, World, golden};

/// Runs command lines one after the other and writes down everything that came.
async fn record(world: &World, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let outcome: Outcome = world.keelson(line).run().await;
        let _ = writeln!(text, "$ keelson {line}\n[exit {}]", outcome.exit.number());
        for (stream, content) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
            if !content.is_empty() {
                let _ = writeln!(text, "--- {stream}\n{content}");
            }
        }
    }
    text
}

#[tokio::test]
async fn empty_lists() {
    let world = World::new().await;
    let lines =
        ["cluster list", "machine list", "operation list", "events", "cluster list -o json", "status"];
    golden("empty.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn catalogue() {
    let world = World::new().await;
    let lines = [
        "plan list",
        "plans list -o name",
        "plan show small",
        "plan show small -o json",
        "plan show none",
        "release list",
        "release list -o wide",
        "release show 1.37.2",
        "release show 1.37.2 -o yaml",
        "version",
        "version -o json",
        "version --client",
    ];
    golden("catalogue.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn clusters_that_are_ready() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.add_ready("edge", "tiny");
    let lines = [
        "cluster list",
        "clusters ls -o wide",
        "cluster list --no-headers",
        "cluster list -o name",
        "cluster show demo",
        "cluster show demo --all",
        "cluster show demo --explain",
        "cluster show demo -o name",
        "cluster show edge -o json",
        "cluster show edge -o yaml",
        "cluster show none",
        "cluster show none -o json",
        "machine list",
        "machine list --cluster edge -o wide",
        "machine show edge-node-1",
        "machine show edge-node-1 -o json",
        "machine logs edge-node-1 --unit kubelet.service --lines 3",
        "machine show none",
        "operation list",
        "operation list -o wide",
        "operation show op-1",
        "operation show op-1 -o json",
        "operation cancel op-1",
        "events --cluster edge",
        "events --cluster edge -o wide",
        "events --cluster edge -o json --limit 1",
        "status",
        "status -o json",
    ];
    golden("ready.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn making_a_cluster() {
    let world = World::new().await;
    let lines = [
        "cluster create demo --dry-run",
        "cluster create demo --workers 3 --dry-run --exit-code -o json",
        "cluster create demo --plan huge",
        "cluster create Demo",
        "cluster create demo --release 9.9 -o json",
        "cluster create demo --plan tiny --workers 3",
        "cluster create demo --expose web=80",
        "cluster create demo --expose web=30080 --no-wait",
        "cluster show demo",
        "cluster show demo --explain",
        "operation show op-1",
        "cluster create demo",
        "cluster create next --plan tiny",
        "cluster create last --plan tiny --wait --progress plain",
    ];
    golden("create.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn removing_a_cluster() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let lines = [
        "cluster delete demo",
        "cluster delete demo --dry-run",
        "cluster update demo --deletion-protection on",
        "cluster delete demo --yes",
        "cluster update demo --deletion-protection off -o json",
        "cluster delete demo --yes --wait --progress none",
        "cluster delete demo --yes",
    ];
    golden("delete.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn trouble() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.fault(Some(Fault::Silent));
    let silent = [
        "cluster show demo",
        "cluster show demo --explain",
        "machine show demo-worker-2",
        "cluster list -o wide",
    ];
    let mut text = record(&world, &silent).await;
    world.fleet.fault(Some(Fault::Blocked));
    text += &record(
        &world,
        &[
            "cluster create more --plan tiny --wait --progress none",
            "cluster show more --explain",
            "status",
            "operation watch op-2 -o json --progress none",
        ],
    )
    .await;
    world.fleet.fault(Some(Fault::Fails("no image for 1.37.2".to_owned())));
    text += &record(&world, &["operation watch op-2 --progress none", "operation show op-2"]).await;
    golden("trouble.txt", &text);
}

#[tokio::test]
async fn help_and_codes() {
    let world = World::new().await;
    let lines = [
        "",
        "help exit-codes",
        "help cluster create",
        "explain KEEL-2201",
        "explain 2203 -o json",
        "explain KEEL-0000",
        "clustr list",
        "cluster lst",
        "cluster list --colour",
        "cluster list --colour -o json",
        "cluster create",
        "cluster create a --wait --no-wait",
    ];
    golden("help.txt", &record(&world, &lines).await);
}

/// Commands in what was printed, after `keelson ` up to where the sentence goes on.
fn commands(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("$ ") && !line.starts_with("Usage"));
    let parts = lines.flat_map(|line| line.split("keelson ").skip(1));
    let ends: &[char] = &['`', ';', ',', '"'];
    parts.map(|part| part.split(ends).next().unwrap_or_default().trim().to_owned()).collect()
}

#[tokio::test]
async fn every_command_that_is_printed_can_be_typed() {
    let world = World::new().await;
    let mut checked = 0;
    for name in ["empty.txt", "create.txt", "ready.txt", "delete.txt", "trouble.txt"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        for command in commands(&std::fs::read_to_string(path).unwrap()) {
            let outcome = world.keelson(&format!("{command} --help")).run().await;
            assert_eq!(outcome.exit.number(), 0, "{name} prints `keelson {command}`: {}", outcome.stderr);
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}
