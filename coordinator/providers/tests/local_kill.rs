//! A coordinator that is killed with `kill -9` while it works leaves nothing that the next one cannot handle.
//!
//! The coordinator to be killed is this very program, started again with [`ROLE`] in its environment.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a failing test says so")]

mod host;
mod suite;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use host::{Host, config, eventually};
use keelson_protocol::InstallId;
use keelson_providers::local::LocalProvider;
use keelson_providers::{Call, MachineRequest, MachineState, PowerOff, Provider};
use suite::{Subject, create, done, list, request, state};

/// What the started program shall do; unset in an ordinary test run.
const ROLE: &str = "KEELSON_TEST_ROLE";

/// The moments at which the coordinator is killed, in milliseconds after it was told to work. Creating takes about
/// 100 ms on an idle host, so these cover every step; that the host is busy moves them, and any moment must do.
const MOMENTS_MS: [u64; 20] = [0, 2, 4, 6, 8, 11, 14, 18, 22, 26, 30, 35, 40, 46, 52, 60, 70, 80, 95, 120];

/// A provider in a process of its own.
struct Another<'a> {
    provider: LocalProvider,
    host: &'a InstallId,
}

impl Subject for Another<'_> {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }
    fn install(&self) -> InstallId {
        self.host.clone()
    }
    fn image(&self) -> String {
        host::IMAGE.to_owned()
    }
    fn break_creation(&self, _: &mut MachineRequest) {}
    fn write_disk(&self, _: &keelson_protocol::MachineId, _: &str) {}
    fn read_disk(&self, _: &keelson_protocol::MachineId) -> Option<String> {
        None
    }
}

/// Does nothing unless it was started by a test below to be killed.
#[tokio::test]
async fn the_coordinator_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (verb, rest) = role.split_once(' ').unwrap();
    let (install, dir) = rest.split_once(' ').unwrap();
    let install = InstallId::new(install).unwrap();
    let provider = LocalProvider::open(config(Path::new(dir), &install)).await.unwrap();
    let another = Another { provider, host: &install };
    let wanted = request(&another, 0, 1);
    std::fs::write(Path::new(dir).join("ready"), "").unwrap();
    match verb {
        "create" => drop(create(&another, &wanted).await.unwrap()),
        "delete" => done(&another, Call::DeleteMachine(wanted.key)).await,
        "reboot" => drop(suite::perform(&another, Call::Reboot(wanted.key)).await.unwrap()),
        other => panic!("{other}"),
    }
}

/// Starts the coordinator, and kills it so long after it began to work.
fn kill_during(host: &Host, verb: &str, moment: Duration) {
    let ready = host.dir.path().join("ready");
    let _ = std::fs::remove_file(&ready);
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_coordinator_to_be_killed"])
        .env(ROLE, format!("{verb} {} {}", host.install, host.dir.path().display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the other coordinator", || ready.exists().then_some(()));
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn killed_while_creating_the_next_one_finishes() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    let mut seen = Vec::new();
    for moment in MOMENTS_MS {
        kill_during(&host, "create", Duration::from_millis(moment));
        host.reopen().await;
        seen.push(state(&host, &wanted.key).await);
        let view = create(&host, &wanted).await.unwrap_or_else(|e| panic!("killed after {moment} ms: {e}"));
        assert_eq!(view.state, MachineState::On);
        host.wait_up(&wanted.key.machine, boots_so_far(&host, &wanted));
        done(&host, Call::DeleteMachine(wanted.key.clone())).await;
        assert_eq!(list(&host).await, []);
    }
    println!("found after the kill: {seen:?}");
    host.destroy();
}

/// One boot, or two when the killed coordinator's own runc had already started it; at least one is waited for.
fn boots_so_far(host: &Host, wanted: &MachineRequest) -> usize {
    let count = |text: String| text.lines().count();
    eventually("a boot", || host.var(&wanted.key.machine, "boots").map(count).filter(|count| *count > 0))
}

#[tokio::test]
async fn killed_while_creating_a_half_made_machine_can_be_deleted() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    for moment in MOMENTS_MS {
        kill_during(&host, "create", Duration::from_millis(moment));
        host.reopen().await;
        done(&host, Call::DeleteMachine(wanted.key.clone())).await;
        assert_eq!(list(&host).await, [], "killed after {moment} ms");
    }
    host.destroy();
}

#[tokio::test]
async fn killed_while_deleting_the_next_one_finishes() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    for moment in MOMENTS_MS {
        create(&host, &wanted).await.unwrap();
        kill_during(&host, "delete", Duration::from_millis(moment));
        host.reopen().await;
        done(&host, Call::DeleteMachine(wanted.key.clone())).await;
        assert_eq!(list(&host).await, [], "killed after {moment} ms");
    }
    host.destroy();
}

#[tokio::test]
async fn killed_while_rebooting_the_disk_is_whole() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    host.write_disk(&wanted.key.machine, "kept");
    for moment in MOMENTS_MS {
        kill_during(&host, "reboot", Duration::from_millis(moment));
        host.reopen().await;
        done(&host, Call::PowerOff(wanted.key.clone(), PowerOff::Hard)).await;
        assert_eq!(state(&host, &wanted.key).await, Some(MachineState::Off), "killed after {moment} ms");
        suite::perform(&host, Call::PowerOn(wanted.key.clone())).await.unwrap();
        assert_eq!(state(&host, &wanted.key).await, Some(MachineState::On), "killed after {moment} ms");
        assert_eq!(host.read_disk(&wanted.key.machine).as_deref(), Some("kept"));
    }
    host.destroy();
}

#[tokio::test]
async fn killed_half_way_destroy_leaves_nothing() {
    for moment in MOMENTS_MS {
        let host = Host::new().await;
        kill_during(&host, "create", Duration::from_millis(moment));
        host.destroy();
    }
}
