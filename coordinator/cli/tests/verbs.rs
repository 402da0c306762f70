//! What every verb prints, compared with golden files.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;
use std::task::{Context, Poll, Waker};

use keelson_api::Fleet;
use keelson_api::auth::Caller;
use keelson_api::fake::Fault;
use keelson_api::fleet::IfMatch;
use keelson_api::plans::plan_from_body;
use keelson_cli::ExitCode;
use support::{World, golden, record};

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
        "plan delete small",
        "plan delete none",
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
        "cluster create demo --pool worker=3 --pool worker=5",
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

/// Three clusters with labels.
async fn labelled() -> World {
    let world = World::new().await;
    world.fleet.add_labelled("one", "tiny", &[("env", "prod"), ("example.com/team", "web")]);
    world.fleet.add_labelled("two", "tiny", &[("env", "dev")]);
    world.fleet.add_labelled("three", "tiny", &[("env", "dev"), ("old", "")]);
    world
}

#[tokio::test]
async fn labels_and_selectors() {
    let world = labelled().await;
    let lines = [
        "cluster list -l env=dev",
        "cluster list -l env=none",
        "cluster list -l env=dev,!old -o name",
        "cluster list --text o --state ready -o name",
        "cluster list --state red",
        "cluster list -l env=a=b",
        "cluster list -o wide",
        "cluster show -l env=dev",
        "cluster show -l env=none",
        "cluster show one -l env=dev",
        "cluster show one",
        "cluster delete --selector= --yes",
        "machine list -l env=dev,role=worker -o name",
        "machine show -l cluster=one -o name",
        "machine show -l zone=none",
        "cluster update one --label env=test --label example.com/team- --deletion-protection off",
        "cluster update one --label env-",
        "cluster update one --label a/=x",
        "cluster update one",
        "cluster update one --label env",
        "cluster create four --plan tiny --label env=prod --label gpu= --no-wait -o name",
        "cluster show four -o jsonpath={.spec.labels}",
        "cluster kubeconfig -l env=dev",
        "cluster kubeconfig -l env=dev --print",
        "cluster kubeconfig -l old --print -o name",
        "cluster delete -l env=dev",
        "cluster delete -l env=dev --yes",
        "cluster delete -l env=dev --yes --count 3",
        "cluster delete -l env=dev --count 2",
        "cluster delete -l env=dev --dry-run",
        "cluster delete one --count 2 --yes",
        "cluster update three --deletion-protection on",
        "cluster delete -l env=dev --yes --count 2",
        "cluster update three --deletion-protection off",
        "cluster delete -l env=dev --yes --count 2 --no-wait",
        "cluster delete -l env=dev --yes --count 2 --wait --progress none -o name",
        "cluster list -o name",
    ];
    golden("labels.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn formats() {
    let world = labelled().await;
    let lines = [
        "cluster list -o jsonpath={.items[*].spec.name}",
        r#"cluster list -o jsonpath={range@.items[*]}"#,
        r#"machine list -o jsonpath={.items[?(@.cluster=="two")].id}{"\n"}"#,
        "cluster show one -o custom-columns=NAME:.spec.name,TEAM:.spec.labels.example\\.com/team,NONE:.none",
        "cluster list -o custom-columns=NAME:spec.name,ENV:.spec.labels.env --sort-by .spec.labels.env",
        "cluster list -o custom-columns=NAME:spec.name --no-headers --sort-by={.spec.name}",
        "cluster list --sort-by .none",
        "cluster list --sort-by .a[",
        "operation list --sort-by .cluster -o name",
        "plan list -o jsonpath={.items[*].name}",
        "release list -o custom-columns=NAME:.name --sort-by .name",
        "events -o custom-columns=REASON:.reason --sort-by .id --limit 2",
        "version --client -o jsonpath={.client.api}",
        "explain KEEL-2201 -o jsonpath={.exitCode}",
        "cluster list -o jsonpath={.items[*",
        "cluster list -o custom-columns=NAME",
        "cluster list -o xml",
        "cluster show none -o jsonpath={.x}",
    ];
    let mut text = record(&world, &lines).await;
    let template = "-ojsonpath={range .items[*]}{.spec.name}{\"\\t\"}{.status.state}{\"\\n\"}{end}";
    let run = world.keelson_words(&["cluster", "list", template]).run().await;
    let _ = writeln!(text, "$ keelson cluster list {template}\n{}", run.stdout);
    golden("formats.txt", &text);
}

#[tokio::test]
async fn pools_get_other_sizes() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let lines = [
        "cluster scale demo --pool worker --count 3 --dry-run",
        "cluster scale demo --pool worker --count 3 --wait --progress plain",
        "cluster show demo",
        "cluster scale demo --pool worker --count 3 --dry-run --exit-code",
        "cluster scale demo --pool worker --count 1 --dry-run --exit-code",
        "cluster scale demo --pool worker --count 1",
        "cluster scale demo --pool worker --count 1 --yes",
        "cluster show demo",
        "operation show op-3",
        "operation list",
        "operation watch op-3 --progress none",
        "cluster scale demo --pool etcd --count 3 --no-wait -o json",
        "cluster scale demo --pool gpu --count 3",
        "cluster scale demo --pool etcd --count 2",
        "cluster scale demo --pool worker --count 0",
        "cluster scale demo --pool worker --count -1",
        "cluster scale none --pool worker --count 2",
        "cluster delete demo --yes --no-wait -o name",
        "cluster scale demo --pool worker --count 2",
        "cluster create next --pool worker=1 --pool etcd=3 --dry-run",
        "cluster create next --pool gpu=1",
        "cluster create next --pool worker=1 --workers 3",
        "cluster create next --pool worker",
    ];
    golden("scale.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn machines_that_would_go_are_confirmed_by_name() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let line = "cluster scale demo --pool worker --count 1";
    let wrong = world.keelson(line).on_terminal("dem\n").run().await.ends(ExitCode::Usage);
    assert!(wrong.stderr.contains("(demo-worker-2); pods are moved first"), "{}", wrong.stderr);
    assert_eq!(world.fleet.operation_count(), 1);
    world.keelson(&format!("{line} --dry-run")).on_terminal("").run().await.ends(ExitCode::Done);
    let right = world.keelson(line).on_terminal("demo\n").run().await.ends(ExitCode::Done);
    assert!(right.stdout.contains("pool worker from 2 to 1"), "{}", right.stdout);
    let more = world.keelson("cluster scale demo --pool worker --count 4").on_terminal("").run().await;
    more.ends(ExitCode::Done);
}

const WEB: &str = "\
apiVersion: keelson/v1
kind: Plan
name: web
description: Web servers of one team
pools:
- name: etcd
  roles: [etcd]
  count: 1
  disk: 20Gi
- name: master
  roles: [master]
  count: 1
  cpu: 2
  memory: 4Gi
  disk: 20Gi
- name: worker
  roles: [worker]
  count: 2
  cpu: 500m
  memory: 2Gi
  disk: 40G
  zones: [zone-a, zone-b]
  labels: {example.com/tier: web}
  taints:
  - {key: example.com/web, value: only, effect: NoSchedule}
";

/// What a reader copies from the documents.
#[tokio::test]
async fn the_plan_of_the_documents_is_one() {
    let page = include_str!("../../../docs/plans.md");
    let plan = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let world = World::new().await;
    let applied = world.keelson("plan apply -f -").stdin(plan).run().await.ends(ExitCode::Done);
    assert!(applied.stdout.contains("web"), "{}", applied.stdout);
    let shown = world.keelson("plan show web -o yaml").run().await.ends(ExitCode::Done);
    let again = world.keelson("plan apply -f - --dry-run --exit-code").stdin(&shown.stdout).run().await;
    again.ends(ExitCode::Done);
    world.keelson("cluster create shop --plan web --wait --progress none").run().await.ends(ExitCode::Done);
}

#[tokio::test]
async fn plans_are_applied_from_files() {
    let world = World::new().await;
    let file = |name: &str, text: &str| std::fs::write(world.home.path().join(name), text).unwrap();
    file("web.yaml", WEB);
    file("two.yaml", &format!("---\n{WEB}---\n{}", WEB.replace("name: web", "name: shop")));
    file("more.yaml", &WEB.replace("count: 2", "count: 3").replace("2Gi", "3Gi"));
    file("less.yaml", &WEB.replace("count: 2", "count: 1"));
    file("harm.yaml", &WEB.replace("- name: etcd", "- name: state").replace("disk: 40G", "disk: 30G"));
    file("even.yaml", &WEB.replacen("count: 1", "count: 2", 1));
    file("typo.yaml", &WEB.replace("memory: 4Gi", "memmory: 4Gi"));
    file("unit.yaml", &WEB.replace("4Gi", "4GB"));
    file("twice.yaml", &format!("{WEB}---\n{WEB}"));
    file("kind.yaml", &WEB.replace("kind: Plan", "kind: Pod"));
    file("small.yaml", &WEB.replace("name: web", "name: small"));
    file(
        "one-bad.yaml",
        &format!("{WEB}---\n{}", WEB.replace("name: web", "name: shop").replace("count: 2", "count: 0")),
    );
    file("empty.yaml", "---\n");
    let home = world.home.path().to_str().unwrap().to_owned();
    let lines = [
        "plan apply -f HOME/web.yaml --dry-run --exit-code",
        "plan apply -f HOME/web.yaml",
        "plan apply -f HOME/web.yaml",
        "plan apply -f HOME/web.yaml --dry-run --exit-code",
        "plan show web",
        "plan apply -f HOME/two.yaml",
        "plan list",
        "cluster create demo --plan web --wait --progress none",
        "plan apply -f HOME/more.yaml --dry-run",
        "plan apply -f HOME/more.yaml -o json",
        "operation show op-1 -o name",
        "operation show op-1 -o name",
        "operation show op-1 -o name",
        "cluster show demo",
        "plan apply -f HOME/less.yaml --dry-run",
        "plan apply -f HOME/less.yaml",
        "plan apply -f HOME/less.yaml --yes",
        "cluster show demo",
        "plan apply -f HOME/harm.yaml",
        "plan apply -f HOME/even.yaml",
        "plan apply -f HOME/typo.yaml",
        "plan apply -f HOME/unit.yaml",
        "plan apply -f HOME/one-bad.yaml",
        "plan apply -f HOME/twice.yaml",
        "plan apply -f HOME/kind.yaml",
        "plan apply -f HOME/small.yaml",
        "plan apply -f HOME/empty.yaml",
        "plan apply -f HOME/none.yaml",
        "plan delete web",
        "plan delete shop",
        "events --limit 2 -o custom-columns=REASON:.reason,CAUSE:.cause,OUTCOME:.outcome",
    ];
    let mut text = String::new();
    for line in lines {
        text += &record(&world, &[&line.replace("HOME", &home)]).await;
    }
    golden("plans.txt", &world.stable(&text));
}

#[tokio::test]
async fn a_plan_that_another_operator_changed_meanwhile_is_left_alone() {
    let world = World::new().await;
    world.keelson("plan apply -f -").stdin(WEB).run().await.ends(ExitCode::Done);
    world.fleet.add_ready("demo", "web");
    let less = world.home.path().join("less.yaml");
    std::fs::write(&less, WEB.replace("count: 2", "count: 1")).unwrap();
    let apply = || world.keelson(&format!("plan apply -f {}", less.display())).on_terminal("1\n");
    let fleet = world.fleet.clone();
    let other = WEB.replace("memory: 4Gi", "memory: 8Gi");
    let theirs = plan_from_body(serde_norway::from_str(&other).unwrap()).unwrap();
    let refused = apply().meanwhile(move || {
        let mut answer = fleet.apply_plan(theirs, IfMatch::Any, Caller("somebody".to_owned()));
        let answer = answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Ok(_))));
    });
    let refused = refused.run().await.ends(ExitCode::Conflict);
    assert!(refused.stderr.contains("KEEL-2011"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`keelson plan show web`"), "{}", refused.stderr);
    let shown = world.keelson("plan show web -o yaml").run().await.stdout;
    assert!(shown.contains("memory: 8Gi") && shown.contains("count: 2"), "{shown}");
    apply().run().await.ends(ExitCode::Done);
}

#[tokio::test]
async fn what_was_applied_before_a_plan_that_is_refused_is_told() {
    let world = World::new().await;
    world.keelson("plan apply -f -").stdin(WEB).run().await.ends(ExitCode::Done);
    world.fleet.add_ready("demo", "web");
    let both = world.home.path().join("both.yaml");
    let (first, second) = (WEB.replace("name: web", "name: first"), WEB.replace("count: 2", "count: 1"));
    std::fs::write(&both, format!("{first}---\n{second}")).unwrap();
    let fleet = world.fleet.clone();
    let theirs = WEB.replace("memory: 4Gi", "memory: 8Gi");
    let theirs = plan_from_body(serde_norway::from_str(&theirs).unwrap()).unwrap();
    let apply = world.keelson(&format!("plan apply -f {}", both.display())).on_terminal("1\n");
    let refused = apply.meanwhile(move || {
        let mut answer = fleet.apply_plan(theirs, IfMatch::Any, Caller("somebody".to_owned()));
        let answer = answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Ok(_))));
    });
    let refused = refused.run().await.ends(ExitCode::Conflict);
    assert!(refused.stdout.contains("plan first created"), "{}", refused.stdout);
    assert!(refused.stderr.contains("plans applied before: first"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_plan_that_is_shown_can_be_applied_again() {
    let world = World::new().await;
    world.keelson("plan apply -f -").stdin(WEB).run().await.ends(ExitCode::Done);
    for name in ["web", "small", "ha-stacked", "tiny"] {
        for format in ["yaml", "json"] {
            let shown = world.keelson(&format!("plan show {name} -o {format}")).run().await.stdout;
            let again = world.keelson("plan apply -f - --dry-run --exit-code").stdin(&shown).run().await;
            let again = again.ends(ExitCode::Done);
            assert_eq!(again.stdout, format!("plan {name} is like this already\n"));
        }
    }
}

#[tokio::test]
async fn fields_are_explained() {
    let world = World::new().await;
    let lines = [
        "explain cluster",
        "explain cluster.spec",
        "explain cluster.spec.workers",
        "explain machines.health.state",
        "explain cluster.spec.labels -o json",
        "explain cluster.spec.worker",
        "explain pod.spec",
    ];
    golden("explain.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn verbs_of_pks() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let lines = [
        "help pks",
        "clusters",
        "cluster demo",
        "plans --json",
        "create-cluster next --plan tiny --external-hostname next.example.com",
        "create-cluster next --plan tiny --tags env:prod --non-interactive",
        "tasks",
        "task op-2",
        "cancel-task op-2",
        "cancel-task op-2 --non-interactive",
        "get-credentials demo",
        "get-kubeconfig demo -p secret",
        "delete-cluster demo --non-interactive --wait --progress none",
        "create-cluster wide --plan small --wait --progress none",
        "resize wide --num-nodes 3",
        "resize wide -n 1 --non-interactive --wait --progress none",
    ];
    let mut text = record(&world, &lines).await;
    for line in ["pks clusters --json", "tkgi", "pks status"] {
        let run = world.program(line).run().await;
        let _ = writeln!(text, "$ {line}\n[exit {}]\n{}", run.exit.number(), run.stderr);
    }
    golden("pks.txt", &text);
}

#[tokio::test]
async fn help_and_codes() {
    let world = World::new().await;
    let lines = [
        "",
        "help exit-codes",
        "help cluster create",
        "help cluster delete",
        "help cluster scale",
        "help plan apply",
        "help wait",
        "help why",
        "help machine repair",
        "help repair pause",
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
    for name in [
        "empty.txt",
        "create.txt",
        "ready.txt",
        "delete.txt",
        "trouble.txt",
        "labels.txt",
        "pks.txt",
        "scale.txt",
        "plans.txt",
        "why.txt",
        "drain.txt",
        "pause.txt",
        "repair.txt",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        for command in commands(&std::fs::read_to_string(path).unwrap()) {
            let outcome = world.keelson(&format!("{command} --help")).run().await;
            assert_eq!(outcome.exit.number(), 0, "{name} prints `keelson {command}`: {}", outcome.stderr);
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}
