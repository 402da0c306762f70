//! What is printed about machines that are not well, about repair, and about drains that do not go on.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use keelson_api::fake::{BEGIN, Broken, Fault};
use keelson_cli::ExitCode;
use keelson_model::kubernetes::{BudgetSeen, DrainState, PodLeft, PodOwner, PodWait};
use keelson_model::{Evidence, HeartbeatSeen, Hold, LeaseSeen, PeersSeen, PowerSeen, Scope, Verdict};
use support::{World, golden, record};

fn hung(hold: Option<Hold>) -> Broken {
    let evidence = Evidence {
        heartbeat: HeartbeatSeen::Ago { ms: 21_300 },
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

/// What a drain leaves that a disruption budget blocks for ever, with a pod that ends by itself.
fn blocked() -> DrainState {
    let pod = |namespace: &str, pod: &str, owner: &str, why| PodLeft {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        owner: Some(PodOwner { kind: "Deployment".to_owned(), name: owner.to_owned() }),
        why,
    };
    let budget = BudgetSeen {
        name: "web".to_owned(),
        allowed: 0,
        healthy: 2,
        wanted: 2,
        expected: 2,
        message: "Cannot evict pod".to_owned(),
    };
    let ending = PodWait::Ending { finalizers: Vec::new() };
    let left = vec![
        pod("shop", "cart-5c9d8-x2x9k", "cart", ending),
        pod("shop", "web-7d4b9-qqv6t", "web", PodWait::Budget(budget)),
    ];
    DrainState::new(left, 1)
}

#[tokio::test]
async fn why_a_machine_is_not_well_and_what_holds_its_repair() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let mut text = record(&world, &["why demo", "why demo-worker-2", "repair status", "why nobody"]).await;
    world.fleet.break_machine("demo-worker-2", hung(Some(meltdown())));
    let lines = [
        "why demo-worker-2",
        "why machine/demo-worker-2 -o json",
        "why demo",
        "why cluster/demo -o json",
        "why cluster/demo-worker-2",
        "why machine/demo",
        "why pod/x",
        "machine list",
        "machine show demo-worker-2",
        "cluster show demo",
        "cluster show demo --explain",
        "status",
        "repair status",
        "repair status -o json",
        "events --incident 1",
        "events --incident 9",
    ];
    text += &record(&world, &lines).await;
    golden("why.txt", &text);
}

#[tokio::test]
async fn a_drain_that_a_disruption_budget_blocks() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.block_drain("demo-worker-2", Some(blocked()));
    let lines = [
        "cluster scale demo --pool worker --count 1 --drain-timeout 20m",
        "cluster scale demo --pool worker --count 1 --drain-timeout 25h --yes",
        "cluster scale demo --pool worker --count 1 --drain-timeout soon --yes",
        "cluster scale demo --pool worker --count 1 --drain-timeout 20m --yes --no-wait",
        "why demo",
        "why demo-worker-2",
        "machine show demo-worker-2",
        "cluster show demo",
        "cluster update demo --drain-then wait",
        "why demo-worker-2",
        "cluster update demo --drain-timeout 0s --drain-then force",
    ];
    golden("drain.txt", &record(&world, &lines).await);
    let back = world.keelson("cluster scale demo --pool worker --count 3 --dry-run").run().await;
    let preview = back.ends(ExitCode::Done).stdout;
    assert!(
        preview.contains("one machine of pool worker leaves already, and does not come back"),
        "{preview}"
    );
}

#[tokio::test]
async fn repair_is_paused_and_resumed() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.break_machine("demo-worker-2", hung(None));
    let mut text = String::new();
    let pause =
        world.keelson_words(&["repair", "pause", "--cluster", "demo", "--reason", "the switch is exchanged"]);
    text += &pause.run().await.ends(ExitCode::Done).stdout;
    let lines = [
        "repair pause",
        "repair status",
        "status",
        "cluster show demo",
        "why demo-worker-2",
        "repair resume",
        "repair resume --cluster demo",
        "repair resume -o json",
        "repair pause --cluster none",
        "repair",
        "events --limit 4 -o custom-columns=REASON:.reason,CLUSTER:.cluster,CAUSE:.cause",
    ];
    text += &record(&world, &lines).await;
    golden("pause.txt", &text);
}

#[tokio::test]
async fn each_pause_is_ended_by_the_command_that_is_shown_with_it() {
    let world = World::new().await;
    for cluster in ["demo", "other"] {
        world.fleet.add_ready(cluster, "small");
        world.fleet.break_machine(&format!("{cluster}-worker-2"), hung(None));
        world.keelson(&format!("repair pause --cluster {cluster}")).run().await.ends(ExitCode::Done);
    }
    let status = world.keelson("repair status").run().await.ends(ExitCode::Done).stdout;
    for cluster in ["demo", "other"] {
        let command = format!("`keelson repair resume --cluster {cluster}`");
        assert!(status.contains(&format!("ends when somebody runs {command}")), "{status}");
        for line in [format!("why {cluster}-worker-2"), format!("cluster show {cluster} --explain")] {
            let shown = world.keelson(&line).run().await.ends(ExitCode::Done).stdout;
            assert!(shown.contains(&command), "{line}: {shown}");
        }
    }
}

#[tokio::test]
async fn a_machine_is_repaired_by_hand() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    world.fleet.break_machine("demo-worker-2", hung(Some(meltdown())));
    world.fleet.break_machine("demo-etcd-2", hung(Some(quorum())));
    let lines = [
        "machine repair demo-worker-1 --action power-on",
        "machine repair demo-worker-1 --action kick",
        "machine repair demo-worker-1 --action rebuild --confirm-loss-of demo",
        "machine repair demo-worker-9 --action rebuild",
        "machine repair demo-worker-2 --action power-cycle",
        "machine repair demo-worker-2 --action power-cycle --override --dry-run",
        "machine repair demo-worker-2 --action power-cycle --override",
        "machine repair demo-worker-2 --action power-cycle --override --yes",
        "machine repair demo-worker-2 --action rebuild --yes",
        "why demo-worker-2",
        "machine repair demo-etcd-2 --action recreate --override",
        "machine repair demo-etcd-2 --action recreate --override --confirm-loss-of prod",
        "machine repair demo-etcd-2 --action recreate --override --confirm-loss-of demo --dry-run",
        "machine repair demo-etcd-2 --action recreate --override --confirm-loss-of demo --yes --wait --progress plain",
        "why demo-etcd-2",
        "machine repair demo-worker-1 --action rebuild --yes --wait --progress none -o name",
    ];
    golden("repair.txt", &record(&world, &lines).await);
}

#[tokio::test]
async fn a_coordinator_that_has_just_started_is_waited_for_and_not_overridden() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    world.fleet.break_machine("demo-worker-2", hung(Some(Hold::Starting { until: BEGIN })));
    let line = "machine repair demo-worker-2 --action rebuild --yes --no-wait";
    for flags in ["", " --override", " --override --confirm-loss-of demo"] {
        let held = world.keelson(&format!("{line}{flags}")).run().await.ends(ExitCode::Refused);
        assert!(held.stderr.contains("the coordinator has just started"), "{}", held.stderr);
        assert!(!held.stderr.contains("--override"), "{}", held.stderr);
    }
    let why = world.keelson("why demo-worker-2").run().await.ends(ExitCode::Done).stdout;
    assert!(why.contains("held by guard starting") && !why.contains("--override"), "{why}");
}

#[tokio::test]
async fn the_command_that_ends_the_hold_of_an_only_copy_is_one_that_is_taken() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let only = Hold::Impossible { why: "it holds the only copy of the cluster's state".to_owned() };
    world.fleet.break_machine("demo-etcd-1", hung(Some(only)));
    let why = world.keelson("why demo-etcd-1").run().await.ends(ExitCode::Done).stdout;
    let (_, end) = why.split_once("a person decides that its state is lost: `keelson ").unwrap();
    let (command, _) = end.split_once('`').unwrap();
    let preview = world.keelson(&format!("{command} --dry-run")).run().await.ends(ExitCode::Done).stdout;
    assert!(preview.contains("everything that cluster demo knows is lost"), "{preview}");
    world.keelson(&format!("{command} --yes --no-wait")).run().await.ends(ExitCode::Done);
}

#[tokio::test]
async fn a_repair_that_is_not_due_yet_is_told_with_its_time_and_with_the_command_that_does_not_wait() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    world.fleet.break_machine("demo-master-1", Broken { verdict: Verdict::AgentDown, ..hung(None) });
    let why = world.keelson("why demo-master-1").run().await.ends(ExitCode::Done).stdout;
    let command = "keelson machine repair demo-master-1 --action power-cycle";
    assert!(
        why.contains("  nothing yet; power-cycle in 3m20s, if it goes on like this and no guard holds it\n"),
        "{why}"
    );
    assert!(why.contains(&format!("      without that wait: {command}\n")), "{why}");
}

#[tokio::test]
async fn who_takes_the_power_of_the_only_api_server_is_told_that_it_does_not_answer_meanwhile() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let line = "machine repair demo-master-1 --action power-cycle --dry-run";
    let preview = world.keelson(line).run().await.ends(ExitCode::Done).stdout;
    assert!(preview.contains("the API of cluster demo does not answer meanwhile"), "{preview}");
}

#[tokio::test]
async fn what_an_override_costs_is_said_before_it_is_offered() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    world.fleet.break_machine("demo-worker-2", hung(Some(meltdown())));
    let check = async |id: &str, others: &str| {
        let line = format!("machine repair {id} --action rebuild --yes --no-wait");
        let held = world.keelson(&line).run().await.ends(ExitCode::Refused);
        let cost = format!(
            "going on all the same takes its power away at once, and with it any pods, while {others}"
        );
        assert!(held.stderr.contains(&cost) && held.stderr.contains("--override"), "{}", held.stderr);
    };
    check("demo-worker-2", "other machines of the cluster are broken").await;
    world.fleet.fault(Some(Fault::Stuck));
    let other = "machine repair demo-worker-1 --action power-cycle --yes --no-wait";
    world.keelson(other).run().await.ends(ExitCode::Done);
    check("demo-worker-3", "another machine of the cluster is being worked on").await;
}

#[tokio::test]
async fn a_repair_is_confirmed_by_the_machines_id_after_what_it_does_was_said() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    let line = "machine repair demo-etcd-1 --action recreate";
    let wrong = world.keelson(line).on_terminal("demo\n").run().await.ends(ExitCode::Usage);
    for told in ["it is removed with its disk", "etcd member demo-etcd-1 is taken out"] {
        assert!(wrong.stderr.contains(told), "{}", wrong.stderr);
    }
    world.keelson(line).run().await.ends(ExitCode::Usage);
    let right = world.keelson(line).on_terminal("demo-etcd-1\n").run().await.ends(ExitCode::Done);
    assert!(right.stdout.contains("machine demo-etcd-1 is well (recreate)"), "{}", right.stdout);
    assert!(right.stderr.contains("waiting until it is well"), "{}", right.stderr);
}

#[tokio::test]
async fn a_repair_that_does_not_end_is_left_after_its_time_and_at_a_new_hold() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    let line = "machine repair demo-worker-1 --action power-cycle --yes --progress none";
    world.fleet.fault(Some(Fault::Stuck));
    let late = world.keelson(&format!("{line} --wait=1s")).run().await.ends(ExitCode::Timeout);
    assert!(late.stderr.contains("keelson why demo-worker-1"), "{}", late.stderr);
    let left = world.keelson("machine repair demo-worker-2 --action power-cycle --yes --wait").interrupted();
    // Another machine is being worked on.
    left.run().await.ends(ExitCode::Refused);
    world.fleet.fault(None);
    world.fleet.break_machine("demo-worker-1", hung(Some(quorum())));
    let held = world.keelson("why demo-worker-1").run().await.ends(ExitCode::Done);
    assert!(held.stdout.contains("held by guard quorum"), "{}", held.stdout);
}

#[tokio::test]
async fn a_repair_that_was_called_off_is_not_said_to_be_done() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    // One that was done before, so that its end is not taken for that of the next one.
    let line = "machine repair demo-worker-1 --action power-cycle --yes --wait --progress none";
    world.keelson(line).run().await.ends(ExitCode::Done);
    world.fleet.fault(Some(Fault::CallsOff("another machine is being worked on".to_owned())));
    let off = world.keelson(line).run().await.ends(ExitCode::Conflict);
    for told in [
        "power-cycle of machine demo-worker-1 was called off",
        "another machine is being worked on",
        "KEEL-1022",
    ] {
        assert!(off.stderr.contains(told), "{}", off.stderr);
    }
    assert_eq!(off.stdout, "");
    world.fleet.fault(None);
    world.keelson(line).run().await.ends(ExitCode::Done);
}

/// Such a machine runs on with the system that the rebuild was to replace.
#[tokio::test]
async fn a_rebuild_that_was_given_up_is_not_said_to_be_done() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "ha");
    world.fleet.fault(Some(Fault::GivesUp("its host is broken".to_owned())));
    let line =
        |action| format!("machine repair demo-worker-1 --action {action} --yes --wait --progress none");
    let given_up = world.keelson(&line("rebuild")).run().await.ends(ExitCode::Conflict);
    for told in ["rebuild of machine demo-worker-1 was given up", "its host is broken"] {
        assert!(given_up.stderr.contains(told), "{}", given_up.stderr);
    }
    // Power that came late is what a power cycle was to bring.
    world.keelson(&line("power-cycle")).run().await.ends(ExitCode::Done);
}
