//! The local provider for real: machines, their network and their forwards on this host. Needs root, runc, nftables and
//! busybox-static; says so when one is missing.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a failing test says so")]

mod host;
mod suite;

use std::fs;
use std::time::Instant;

use host::Host;
use keelson_providers::local::faults::FaultBench;
use keelson_providers::local::{Level, LocalProvider, preflight};
use keelson_providers::{Call, MachineState, ProviderError};
use suite::{create, done, list, request, state};

contract!(Host::new().await);

#[test]
fn this_host_has_all_that_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let findings = preflight(&dir.path().join("not made yet"));
    let bad: Vec<_> = findings.iter().filter(|f| f.level == Level::Required && !f.ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "preflight leaves nothing");
}

#[tokio::test]
async fn a_machine_is_placed_as_it_should_be() {
    let host = Host::new().await;
    let mut wanted = request(&host, 0, 1);
    wanted.cpu_millis_max = Some(1500);
    wanted.memory_bytes_max = Some(64 << 20);
    let interfaces = fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    create(&host, &wanted).await.unwrap();
    let id = &wanted.key.machine;
    host.wait_up(id, 1);
    let note = |name: &str| host.var(id, name).unwrap();
    assert!(note("addresses").contains("inet 10.210.0.10/16 brd 10.210.255.255"), "{}", note("addresses"));
    assert!(note("routes").contains("default via 10.210.0.1"), "{}", note("routes"));
    assert!(note("cgroup").lines().all(|line| line.ends_with(":/")), "{}", note("cgroup"));
    assert!(note("container").starts_with("runc "), "{}", note("container"));
    assert!(note("metadata.json").contains(&"11".repeat(32)));
    assert!(
        note("sysctl_vm").contains("Read-only"),
        "the host's settings are not a machine's: {}",
        note("sysctl_vm")
    );
    assert_eq!(note("sysctl_panic").trim(), "7", "what kubelet must write is a file of the machine");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/panic").unwrap().trim(), "7");
    assert_eq!(note("sysctl_net").trim(), "1", "its network's settings are");
    assert!(note("propagation").lines().all(|line| line.contains("shared:")), "{}", note("propagation"));
    let outside = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!outside.contains(" inside "), "mounts made in a machine show outside: {outside}");
    let now = fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    assert_eq!(now, interfaces, "the host has another interface now");
    host.destroy();
}

#[tokio::test]
async fn the_root_is_fresh_at_each_boot() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let id = &wanted.key.machine;
    host.wait_up(id, 1);
    fs::remove_file(host.machine_dir(id).join("var/up")).unwrap();
    suite::perform(&host, Call::Reboot(wanted.key.clone())).await.unwrap();
    host.wait_up(id, 2);
    assert_eq!(host.var(id, "root_boots").as_deref().map(str::trim), Some("1"));
    let boot_ids = host.var(id, "boot_ids").unwrap();
    let kernels = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let distinct: std::collections::BTreeSet<_> = boot_ids.lines().chain(kernels.lines()).collect();
    assert_eq!(distinct.len(), 3, "each boot has an id of its own: {distinct:?}");
    assert_eq!(host.var(id, "log.txt").as_deref(), Some("halted\n"), "init was asked to shut down");
    let console = suite::perform(&host, Call::Console(wanted.key.clone())).await.unwrap();
    assert_eq!(console, keelson_providers::Answer::Console("boot of demo-worker-0\n".repeat(2)));
}

#[tokio::test]
async fn four_machines_at_once() {
    let host = Host::new().await;
    let begin = Instant::now();
    let one = |number: u8| {
        let host = &host;
        async move {
            let wanted = request(host, number, 1);
            let begin = Instant::now();
            create(host, &wanted).await.unwrap();
            begin.elapsed()
        }
    };
    let took = tokio::join!(one(0), one(1), one(2), one(3));
    println!("four machines: {:?}, each {took:?}", begin.elapsed());
    assert_eq!(list(&host).await.len(), 4);
    let begin = Instant::now();
    let alone = one(4).await;
    println!("one machine: {alone:?}; list of 5: {:?}", {
        let begin = Instant::now();
        list(&host).await;
        begin.elapsed()
    });
    let _ = begin;
    let begin = Instant::now();
    host.destroy();
    println!("destroy of 5: {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_full_disk_takes_no_new_machine_and_keeps_those_that_are_there() {
    let mut host = Host::new().await;
    let (old, new) = (request(&host, 0, 1), request(&host, 1, 1));
    create(&host, &old).await.unwrap();
    host.free_bytes_min = Some(u64::MAX);
    host.reopen().await;
    let refused = create(&host, &new).await.unwrap_err();
    assert!(matches!(&refused, ProviderError::Quota { .. }), "{refused}");
    assert!(refused.to_string().contains("MiB are free in"), "{refused}");
    assert_eq!(list(&host).await.len(), 1, "nothing is left of what was refused");
    create(&host, &old).await.unwrap();
    suite::perform(&host, Call::Reboot(old.key.clone())).await.unwrap();
    host.wait_up(&old.key.machine, 2);
    host.free_bytes_min = None;
    host.reopen().await;
    assert_eq!(create(&host, &new).await.unwrap().state, MachineState::On);
    host.destroy();
}

#[tokio::test]
async fn a_disk_that_takes_no_record_keeps_no_machine_on_and_none_from_being_removed() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    let id = &wanted.key.machine;
    create(&host, &wanted).await.unwrap();
    host.wait_up(id, 1);
    // No file can be written where a folder is.
    fs::create_dir_all(host.machine_dir(id).join("machine.json.new/full")).unwrap();
    suite::perform(&host, Call::Fence(wanted.key.clone())).await.unwrap_err();
    assert_eq!(host.tasks(id), "", "it has no power, though nobody may rely on that yet");
    suite::perform(&host, Call::DeleteMachine(wanted.key.clone())).await.unwrap();
    assert_eq!(list(&host).await.len(), 0);
    host.destroy();
}

#[tokio::test]
async fn what_cannot_be_removed_does_not_hold_up_the_next_machine_of_its_name() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let left = host.state_dir().join(format!("local/trash/{}.0/what stays", wanted.key.machine));
    fs::create_dir_all(&left).unwrap();
    suite::perform(&host, Call::DeleteMachine(wanted.key.clone())).await.unwrap();
    assert_eq!(list(&host).await.len(), 0);
    assert!(left.exists());
    host.destroy();
}

#[tokio::test]
async fn a_new_coordinator_finds_everything() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    host.reopen().await;
    assert_eq!(state(&host, &wanted.key).await, Some(MachineState::On));
    done(&host, Call::DeleteMachine(wanted.key)).await;
    host.destroy();
}

#[tokio::test]
async fn a_machine_without_a_record_is_ended_before_it_counts_as_gone() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let id = &wanted.key.machine;
    host.wait_up(id, 1);
    let record = host.machine_dir(id).join("machine.json");
    let tasks = || host.tasks(id);
    // It cannot be read: nobody knows whether it has power, and nobody says that it has none.
    fs::write(&record, "{").unwrap();
    let refused = suite::perform(&host, Call::Fence(wanted.key.clone())).await.unwrap_err().to_string();
    assert!(refused.contains("holds no valid state") && !tasks().is_empty(), "{refused}");
    fs::remove_file(&record).unwrap();
    let fenced = suite::perform(&host, Call::Fence(wanted.key.clone())).await;
    assert!(matches!(fenced, Err(keelson_providers::ProviderError::NotFound { .. })), "{fenced:?}");
    assert_eq!(tasks(), "", "it has no power");
    done(&host, Call::DeleteMachine(wanted.key.clone())).await;
    let next = request(&host, 0, 2);
    create(&host, &next).await.unwrap();
    assert_eq!(state(&host, &next.key).await, Some(MachineState::On));
    host.destroy();
}

#[tokio::test]
async fn a_machine_that_froze_a_part_of_itself_ends() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let id = &wanted.key.machine;
    host.wait_up(id, 1);
    host.freeze_inside(id);
    suite::perform(&host, Call::Fence(wanted.key.clone())).await.unwrap();
    assert_eq!(host.tasks(id), "");
    assert_eq!(state(&host, &wanted.key).await, Some(MachineState::Off));
    host.destroy();
}

#[tokio::test]
async fn what_could_not_be_removed_is_still_known_to_the_next_try() {
    let mut host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let record = host.machine_dir(&wanted.key.machine).join("machine.json");
    let kept = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    let failed = keelson_providers::local::destroy(&host.state_dir()).unwrap_err().to_string();
    assert!(failed.contains("holds no valid state"), "{failed}");
    fs::write(&record, kept).unwrap();
    host.reopen().await;
    // And what it says may be done about it is enough.
    fs::remove_file(&record).unwrap();
    host.destroy();
}

#[tokio::test]
async fn what_was_discarded_is_removed_after_the_next_start() {
    let mut host = Host::new().await;
    let left = host.state_dir().join("local/trash/demo-worker-9/var");
    fs::create_dir_all(&left).unwrap();
    host.reopen().await;
    host::eventually("the end of what was discarded", || (!left.exists()).then_some(()));
    host.destroy();
}

#[tokio::test]
async fn the_kind_of_the_disks_cannot_be_changed() {
    let host = Host::new().await;
    let mut config = host.config();
    config.var_tmpfs_bytes = Some(64 * 1024 * 1024);
    let refused = LocalProvider::open(config).await.err().unwrap().to_string();
    assert!(refused.contains("disks of another kind"), "{refused}");
    host.destroy();
}

#[tokio::test]
async fn a_disk_that_is_exchanged_comes_back_with_what_is_on_it() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let (machine, aside) = (&wanted.key.machine, host.state_dir().join("aside"));
    let mark = host.machine_dir(machine).join("var/mark");
    std::fs::write(&mark, "first").unwrap();
    let bench = FaultBench::open(&host.state_dir()).unwrap();
    bench.exchange_disk(machine, &aside).unwrap();
    assert_eq!(state(&host, &wanted.key).await, Some(MachineState::Off));
    bench.power_on(machine).unwrap();
    assert!(!mark.exists(), "its disk is blank");
    bench.exchange_disk(machine, &aside).unwrap();
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "first");
    assert!(!aside.join("var/mark").exists() && aside.join("metadata").exists());
    host.destroy();
}

#[tokio::test]
async fn a_machine_that_vanishes_is_not_listed_and_has_no_disk() {
    let host = Host::new().await;
    let wanted = request(&host, 0, 1);
    create(&host, &wanted).await.unwrap();
    let bench = FaultBench::open(&host.state_dir()).unwrap();
    bench.vanish(&wanted.key.machine).unwrap();
    assert_eq!(state(&host, &wanted.key).await, None);
    assert!(!host.machine_dir(&wanted.key.machine).exists());
    assert!(bench.vanish(&wanted.key.machine).is_err(), "there is nothing left");
    host.destroy();
}
