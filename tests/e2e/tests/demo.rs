//! The demo cluster as its users see it, and what happens when its parts are killed.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use keelson_providers::local::faults::{Cut, Side, Ways};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Tells one boot of a machine from another: when its init began.
const BOOT: [&str; 4] = ["systemctl", "show", "--value", "--property=UserspaceTimestampMonotonic"];

#[test]
fn kubernetes_shows_roles_zones_and_taints() -> Result<()> {
    let installation = Installation::open()?;
    // The coordinator gives nodes their roles when it has seen them.
    wait_for("nodes with their roles", || {
        let nodes: serde_json::Value =
            serde_json::from_str(&installation.kubectl(&["get", "nodes", "--output", "json"])?)?;
        let nodes = nodes["items"].as_array().context("no nodes")?;
        ensure!(nodes.len() == 3, "{} nodes", nodes.len());
        for node in nodes {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let labels = &node["metadata"]["labels"];
            ensure!(labels["topology.kubernetes.io/zone"].is_string(), "{name} has no zone");
            let master = name.contains("master");
            let role = if master {
                "node-role.kubernetes.io/control-plane"
            } else {
                "node-role.kubernetes.io/worker"
            };
            ensure!(labels[role].is_string(), "{name} has no role label");
            let taints = node["spec"]["taints"].to_string();
            ensure!(taints.contains("node-role.kubernetes.io/control-plane") == master, "{name}: {taints}");
        }
        Ok(())
    })
}

#[test]
fn kubectl_reaches_into_pods() -> Result<()> {
    let installation = Installation::open()?;
    installation.ask_web()?;
    // A kubelet that was killed by a test before answers, and knows its pods a moment later.
    wait_for("the log of the backend", || {
        let log = installation.kubectl(&["--namespace=demo", "logs", "deployment/backend"])?;
        ensure!(log.contains("backend listening"), "{log}");
        Ok(())
    })?;
    // The image holds one program and no shell: that exec finds nothing proves that it reached the container.
    let exec = installation.kubectl(&["--namespace=demo", "exec", "deployment/backend", "--", "/nothing"]);
    let said = format!("{:#}", exec.expect_err("there is no such program"));
    ensure!(said.contains("no such file"), "{said}");
    Ok(())
}

#[test]
fn a_cluster_check_tries_everything_and_leaves_nothing() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let report = installation.keelson_json(&["cluster", "check", "demo"])?;
    let checks = report["checks"].as_array().context("no checks")?;
    ensure!(report["passed"] == true && checks.len() == 13, "{report}");
    ensure!(checks.iter().all(|check| check["outcome"] == "passed"), "{report}");
    no_check_namespace(&installation)
}

#[test]
fn a_cluster_check_says_what_does_not_work_and_what_to_do() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let scale = |replicas: &str| {
        let scale = ["--namespace=kube-system", "scale", "deployment/coredns", replicas];
        installation.kubectl(&scale).map(drop)
    };
    scale("--replicas=0")?;
    let slices = ["--namespace=kube-system", "get", "endpointslices", "--output", "jsonpath={..ready}"];
    let gone = wait_for("CoreDNS to be gone", || {
        ensure!(!installation.kubectl(&slices)?.contains("true"));
        Ok(())
    });
    let told = wait_for("the cluster to be called degraded", || {
        let status = installation.show("demo")?["status"].clone();
        ensure!(status["state"] == "degraded", "{}", status["state"]);
        Ok(())
    });
    let output = installation.keelson(&["cluster", "check", "demo"]);
    scale("--replicas=2")?;
    gone.and(told)?;
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{}: {text}", output.status);
    let failed: Vec<&str> = text.lines().filter(|line| line.contains(" failed ")).collect();
    ensure!(failed.len() == 1 && failed[0].contains("dns"), "{text}");
    ensure!(text.contains("  do this: see whether CoreDNS runs"), "{text}");
    ensure!(text.contains("12 of 13 checks passed"), "{text}");
    no_check_namespace(&installation)?;
    wait_for("everything to work again", || {
        installation.keelson_json(&["cluster", "check", "demo"]).map(drop)
    })
}

#[test]
fn a_cluster_that_is_called_ready_passes_its_check_at_once() -> Result<()> {
    let installation = Installation::open()?;
    let run = |words: &[&str]| {
        let output = installation.keelson(words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words:?}: {text}");
        Ok(())
    };
    let checked = run(&["cluster", "create", "eager", "--plan", "tiny", "--wait"])
        .and_then(|()| run(&["cluster", "check", "eager"]));
    run(&["cluster", "delete", "eager", "--yes", "--wait"])?;
    checked
}

#[test]
fn an_interrupted_cluster_check_removes_what_it_made() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let mut child =
        installation.keelson_command(&["cluster", "check", "demo"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let made = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("keelson-check-")));
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait()?;
    ensure!(made.is_some(), "it made no namespace");
    ensure!(status.code() == Some(130), "{status}: {rest:?}");
    ensure!(rest.iter().any(|line| line.contains("not tried: interrupted")), "{rest:?}");
    no_check_namespace(&installation)
}

fn no_check_namespace(installation: &Installation) -> Result<()> {
    let left =
        installation.kubectl(&["get", "namespaces", "--selector=keelson.internal/check", "--output=name"])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

#[test]
fn show_has_every_promised_field() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let document = installation.show("demo")?;
    let status = &document["status"];
    ensure!(
        status["name"] == "demo" && status["state"] == "ready" && status["release"] == "1.37.2",
        "{status}"
    );
    ensure!(status["endpoint"].as_str().is_some_and(|url| url.starts_with("https://127.0.0.1:")));
    let machines = status["machines"].as_array().context("no machines")?;
    ensure!(machines.len() == 4);
    for machine in machines {
        for field in ["id", "role", "state", "address", "zone", "release"] {
            ensure!(machine[field].is_string(), "{field} is missing in {machine}");
        }
        let agent = &machine["agent"];
        ensure!(agent["connected"] == true && agent["version"].is_string(), "{agent}");
        ensure!(agent["lastHeartbeatMs"].as_u64().is_some_and(|ms| ms < 3_000), "{agent}");
        ensure!(machine["health"].as_array().is_some_and(|units| !units.is_empty()));
    }
    for condition in status["conditions"].as_array().context("no conditions")? {
        for field in ["type", "status", "reason", "message", "since"] {
            ensure!(condition[field].is_string(), "{field} is missing in {condition}");
        }
    }
    Ok(())
}

#[test]
fn errors_have_codes_and_exit_codes() -> Result<()> {
    let installation = Installation::open()?;
    let check = |arguments: &[&str], exit: i32| -> Result<()> {
        let output = installation.keelson(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(exit), "{arguments:?}: {:?} {said}", output.status);
        Ok(())
    };
    check(&["cluster", "show", "nobody"], 3)?;
    check(&["cluster", "create", "Bad_Name"], 2)?;
    check(&["cluster", "create", "x", "--plan", "huge"], 2)?;
    check(&["cluster", "create", "x", "--release", "9.9.9"], 2)?;
    check(&["cluster", "create", "demo", "--no-wait"], 8)?;
    check(&["cluster", "delete", "demo"], 2)?;
    check(&["cluster", "create", "--unknown-flag"], 2)
}

/// Kills a unit and waits until the cluster is ready again; the application must answer afterwards.
fn kill_and_recover(machine: &str, unit: &str) -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let before =
        installation.on_machine(machine, &["systemctl", "show", "--value", "--property=MainPID", unit])?;
    installation.kill_unit(machine, unit)?;
    wait_for(&format!("{unit} to run again"), || {
        let after = installation
            .on_machine(machine, &["systemctl", "show", "--value", "--property=MainPID", unit])?;
        ensure!(after != before && after.trim() != "0", "main process {after}");
        Ok(())
    })?;
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

#[test]
fn killed_etcd_comes_back() -> Result<()> {
    kill_and_recover("demo-etcd-1", "etcd.service")
}

#[test]
fn killed_api_server_comes_back() -> Result<()> {
    kill_and_recover("demo-master-1", "kube-apiserver.service")
}

#[test]
fn killed_kubelet_and_containerd_come_back() -> Result<()> {
    kill_and_recover("demo-worker-1", "kubelet.service")?;
    kill_and_recover("demo-worker-1", "containerd.service")
}

#[test]
fn pods_answer_while_an_agent_is_killed() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let pods = || {
        installation.kubectl(&[
            "--namespace=demo",
            "get",
            "pods",
            "--output=jsonpath={.items[*].metadata.uid}",
        ])
    };
    let before = pods()?;
    for machine in ["demo-worker-1", "demo-worker-2"] {
        installation.kill_unit(machine, "keelson-agent.service")?;
        for _ in 0..20 {
            installation.ask_web().with_context(|| format!("while the agent of {machine} was away"))?;
        }
    }
    installation.wait_ready("demo")?;
    ensure!(pods()? == before, "pods were replaced");
    Ok(())
}

#[test]
fn pods_and_kubectl_answer_while_the_coordinator_is_killed_and_it_comes_back() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    installation.kill_coordinator()?;
    for _ in 0..20 {
        installation.ask_web().context("while the coordinator was away")?;
    }
    installation.kubectl(&["get", "nodes"])?;
    let mut coordinator = installation.start_coordinator()?;
    installation.wait_ready("demo")?;
    // A second one must refuse the state directory and leave the first alone.
    let second = installation.coordinator_command().output()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(
        !second.status.success() && said.contains("another coordinator uses this state directory"),
        "{said}"
    );
    installation.wait_ready("demo")?;
    ensure!(coordinator.try_wait()?.is_none(), "the first coordinator ended");
    Ok(())
}

#[test]
fn a_machine_without_power_is_switched_on_again() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    installation.cut_power("demo-worker-2")?;
    wait_for("the machine to be missed", || {
        let state = installation.show("demo")?["status"]["state"].clone();
        ensure!(state != "ready", "the cluster is {state}");
        Ok(())
    })?;
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

#[test]
fn a_frozen_machine_is_called_silent_and_nothing_is_replaced() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let machine = "demo-worker-1".parse()?;
    let faults = installation.faults()?;
    let boot = || installation.on_machine("demo-worker-1", &BOOT);
    let before = boot()?;
    faults.freeze(&machine)?;
    let silent = wait_for("the machine to be called silent", || {
        let state = installation.machine_state("demo-worker-1")?;
        ensure!(state == "silent", "it is {state}");
        Ok(())
    });
    faults.thaw(&machine)?;
    silent?;
    installation.wait_ready("demo")?;
    ensure!(boot()? == before, "the machine was started again");
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

#[test]
fn a_machine_cut_off_from_the_coordinator_goes_on_with_its_work() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let machine = "demo-master-1";
    let cut = Cut { from: Side::Machine(machine.parse()?), to: Side::Coordinator, ways: Ways::OneWay };
    let faults = installation.faults()?;
    faults.cut(cut.clone())?;
    let checked = wait_for("the machine to be called silent", || {
        let state = installation.machine_state(machine)?;
        ensure!(state == "silent", "it is {state}");
        Ok(())
    })
    .and_then(|()| {
        // A program that dies meanwhile is started again without the coordinator.
        installation.kill_unit(machine, "kube-scheduler.service")?;
        wait_for("the scheduler to run again", || {
            let state = installation.on_machine(machine, &["systemctl", "is-active", "kube-scheduler"])?;
            ensure!(state.trim() == "active", "it is {state}");
            Ok(())
        })
    });
    faults.mend(&cut)?;
    checked?;
    installation.wait_ready("demo")?;
    let events = installation.written()?;
    ensure!(events.contains("kube-scheduler.service"), "what happened meanwhile was not told");
    Ok(())
}

#[test]
fn files_can_be_piped_through_a_command_on_a_machine() -> Result<()> {
    let installation = Installation::open()?;
    let sent: Vec<u8> = (0..PIPED_BYTES).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sent");
    std::fs::write(&file, &sent)?;
    let script = ["machine", "shell", "demo-worker-1", "--", "sh", "-c", "cat; echo done >&2; exit 3"];
    let mut command = installation.keelson_command(&script);
    let output = command.stdin(std::fs::File::open(&file)?).output()?;
    ensure!(output.status.code() == Some(3), "{:?}", output.status);
    ensure!(output.stdout == sent, "{} bytes came back of {}", output.stdout.len(), sent.len());
    ensure!(output.stderr == b"done\n", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_user_who_vanishes_takes_the_command_along() -> Result<()> {
    let installation = Installation::open()?;
    // It reads nothing, so that its input is soon blocked on the whole way; nobody else sleeps for so long.
    let sleep = ["machine", "shell", "demo-worker-1", "--", "sleep", "123456"];
    let mut command = installation.keelson_command(&sleep);
    let mut child = command.stdin(std::fs::File::open("/dev/zero")?).spawn()?;
    let runs = || installation.on_machine("demo-worker-1", &["pgrep", "--full", "sleep 123456"]);
    let begun = wait_for("the command to run", || runs().map(|_| ()));
    child.kill()?;
    child.wait()?;
    begun?;
    wait_for("the command to be gone", || {
        ensure!(runs().is_err(), "it still runs");
        Ok(())
    })
}

/// Larger than every window and buffer on the way.
const PIPED_BYTES: usize = 8 * 1024 * 1024;

/// So many kills, at random moments.
const RANDOM_KILLS: usize = 12;
/// Longest pause between two of them.
const PAUSE_MS_MAX: u64 = 1_500;
/// Whom they may hit; without a unit it is the coordinator.
const VICTIMS: [(&str, &str); 10] = [
    ("demo-etcd-1", "etcd.service"),
    ("demo-etcd-1", "keelson-agent.service"),
    ("demo-master-1", "kube-apiserver.service"),
    ("demo-master-1", "kube-controller-manager.service"),
    ("demo-master-1", "keelson-agent.service"),
    ("demo-worker-1", "kubelet.service"),
    ("demo-worker-1", "containerd.service"),
    ("demo-worker-2", "kube-proxy.service"),
    ("demo-worker-2", "keelson-agent.service"),
    ("coordinator", ""),
];

#[test]
fn kills_at_random_moments_are_mended_without_a_person() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let seed =
        std::env::var("KEELSON_E2E_SEED").ok().map_or_else(|| Ok(rand::random()), |seed| seed.parse())?;
    println!("seed {seed}: repeat with KEELSON_E2E_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..RANDOM_KILLS {
        let (machine, unit) = VICTIMS[random.random_range(0..VICTIMS.len())];
        println!("kill -9 {machine} {unit}");
        if unit.is_empty() {
            installation.kill_coordinator()?;
            installation.start_coordinator()?;
        } else {
            // It may be down already, by a kill before this one.
            let _ = installation.kill_unit(machine, unit);
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX)));
    }
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

#[test]
fn a_tiny_cluster_survives_kills_of_the_coordinator_while_it_is_made_and_removed() -> Result<()> {
    let installation = Installation::open()?;
    let created = installation.keelson(&["cluster", "create", "second", "--plan", "tiny", "--no-wait"])?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    installation.kill_coordinator()?;
    installation.start_coordinator()?;
    installation.wait_ready("second")?;
    let deleted = installation.keelson(&["cluster", "delete", "second", "--yes", "--no-wait"])?;
    ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    installation.kill_coordinator()?;
    installation.start_coordinator()?;
    wait_for("the cluster to be gone", || {
        let shown = installation.keelson(&["cluster", "show", "second"])?;
        ensure!(shown.status.code() == Some(3), "{:?}", shown.status);
        Ok(())
    })?;
    let listed = installation.keelson_json(&["machine", "list"])?;
    ensure!(!listed.to_string().contains("second-"), "machines were left behind");
    installation.wait_ready("demo")
}

#[test]
fn deleting_while_creating_leaves_nothing() -> Result<()> {
    let installation = Installation::open()?;
    let created = installation.keelson(&["cluster", "create", "third", "--plan", "tiny", "--no-wait"])?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let deleted = installation.keelson(&["cluster", "delete", "third", "--yes", "--wait"])?;
    ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    let shown = installation.keelson(&["cluster", "show", "third"])?;
    ensure!(shown.status.code() == Some(3));
    Ok(())
}

#[test]
fn ctrl_c_detaches_and_the_operation_goes_on() -> Result<()> {
    let installation = Installation::open()?;
    let create = ["cluster", "create", "fourth", "--plan", "tiny", "--wait"];
    let child = installation.keelson_command(&create).spawn()?;
    wait_for("the operation to begin", || {
        let shown = installation.keelson(&["cluster", "show", "fourth"])?;
        ensure!(shown.status.success(), "not yet");
        Ok(())
    })?;
    kill(nix::unistd::Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(130) && said.contains("keelson operation watch"),
        "{:?} {said}",
        output.status
    );
    installation.wait_ready("fourth")?;
    let deleted = installation.keelson(&["cluster", "delete", "fourth", "--yes", "--wait"])?;
    ensure!(deleted.status.success());
    Ok(())
}

#[test]
fn no_secret_is_in_logs_events_or_answers() -> Result<()> {
    let installation = Installation::open()?;
    let mut texts = vec![installation.written()?, installation.show("demo")?.to_string()];
    texts.push(installation.keelson_json(&["machine", "list"])?.to_string());
    for machine in ["demo-etcd-1", "demo-master-1", "demo-worker-1"] {
        texts.push(installation.on_machine(machine, &["journalctl", "--no-pager", "--quiet"])?);
        texts.push(
            installation.on_machine(machine, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])?,
        );
    }
    for secret in installation.secrets()? {
        ensure!(secret.len() >= 32, "that is no secret");
        for text in &texts {
            ensure!(!text.contains(&secret), "a secret was written down");
        }
    }
    for text in &texts {
        ensure!(!text.contains("PRIVATE KEY-----"), "a private key was written down");
    }
    Ok(())
}
