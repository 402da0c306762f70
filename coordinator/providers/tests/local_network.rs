//! The local provider's network for real: the coordinator's link, forwards from the host, and the fault bench.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a failing test says so")]

mod host;
mod suite;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Host, eventually};
use keelson_protocol::MachineId;
use keelson_providers::local::faults::{Cut, FaultBench, Side, Ways};
use keelson_providers::{
    Call, ExposeRequest, Exposed, MachineRequest, MachineState, PowerOff, ProviderError,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use suite::{Subject, create, done, expose, expose_request, exposed, request, state};

/// How long a packet that shall arrive may take, and one that shall not is waited for.
const PACKET_WAIT: Duration = Duration::from_millis(300);

/// Runs `work` inside a machine's network.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

fn udp_of(host: &Host, machine: &MachineRequest) -> UdpSocket {
    let socket = inside(&host.netns(&machine.key.machine), || UdpSocket::bind((machine.address, 0)).unwrap());
    socket.set_read_timeout(Some(PACKET_WAIT)).unwrap();
    socket
}

/// Where the coordinator listens for agents.
fn link_of(host: &Host) -> UdpSocket {
    let link = host.provider().bind_link(7443).unwrap();
    link.set_nonblocking(false).unwrap();
    link.set_read_timeout(Some(PACKET_WAIT)).unwrap();
    link
}

/// Whether a packet gets from one socket to the other.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"keelson", to.local_addr().unwrap()).unwrap();
    let mut bytes = [0; 16];
    to.recv_from(&mut bytes).is_ok()
}

/// A server in a machine: says its name, then repeats what it hears until the client has ended its half, then says bye.
fn serve(host: &Host, machine: &MachineRequest) -> SocketAddr {
    let listener =
        inside(&host.netns(&machine.key.machine), || TcpListener::bind((machine.address, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let name = machine.key.machine.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let name = name.clone();
            std::thread::spawn(move || {
                let mut heard = Vec::new();
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.read_to_end(&mut heard);
                let _ = stream.write_all(&heard);
                let _ = stream.write_all(b" bye");
            });
        }
    });
    address
}

fn talk(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b" hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn machines(host: &Host, count: u8) -> Vec<MachineRequest> {
    let mut made = Vec::new();
    for number in 0..count {
        let wanted = request(host, number, 1);
        create(host, &wanted).await.unwrap();
        made.push(wanted);
    }
    made
}

#[tokio::test]
async fn machines_reach_the_coordinators_link() {
    let host = Host::new().await;
    let made = machines(&host, 2).await;
    let link = link_of(&host);
    assert_eq!(link.local_addr().unwrap(), SocketAddr::from((Ipv4Addr::new(10, 210, 0, 1), 7443)));
    let (a, b) = (udp_of(&host, &made[0]), udp_of(&host, &made[1]));
    assert!(arrives(&a, &link) && arrives(&link, &a) && arrives(&a, &b) && arrives(&b, &a));
    let again = host.provider().bind_link(7443);
    assert!(matches!(again, Err(ProviderError::Conflict { .. })), "{again:?}");
}

#[tokio::test]
async fn the_coordinator_is_where_it_was_when_others_have_gone() {
    let host = Host::new().await;
    let made = machines(&host, 3).await;
    let link = link_of(&host);
    let stays = udp_of(&host, &made[0]);
    assert!(arrives(&stays, &link));
    // A neighbour goes on sending to where it found somebody: that must not be another machine's end of a cable.
    let table = inside(&host.netns(&made[0].key.machine), || {
        std::fs::read_to_string("/proc/thread-self/net/arp").unwrap()
    });
    assert!(table.contains("02:4b:0a:d2:00:01"), "{table}");
    let bench = FaultBench::open(&host.state_dir()).unwrap();
    for other in &made[1..] {
        bench.power_off(&other.key.machine, PowerOff::Hard).unwrap();
        assert!(arrives(&stays, &link), "after {} has gone", other.key.machine);
    }
    host.destroy();
}

#[tokio::test]
async fn forwards_reach_machines_and_survive_what_dies() {
    let mut host = Host::new().await;
    let made = machines(&host, 2).await;
    let targets = vec![serve(&host, &made[0]), serve(&host, &made[1])];
    let wanted = ExposeRequest { targets, ..expose_request(&host, "api") };
    let Exposed { address, .. } = expose(&host, &wanted).await.unwrap();
    let mut names: Vec<_> = (0..2).map(|_| talk(address).unwrap()).collect();
    names.sort();
    assert_eq!(names, ["demo-worker-0 hello bye", "demo-worker-1 hello bye"], "in turn");

    // One target is dead: it is skipped.
    done(&host, Call::PowerOff(made[0].key.clone(), PowerOff::Hard)).await;
    for _ in 0..2 {
        assert_eq!(talk(address).unwrap(), "demo-worker-1 hello bye");
    }
    // The forwarder is killed: another one comes by itself, on the same port.
    let forwarder = forwarder_pid(&host);
    kill(forwarder, Signal::SIGKILL).unwrap();
    eventually("another forwarder", || (forwarder_pid(&host) != forwarder).then_some(()));
    assert_eq!(talk(address).unwrap(), "demo-worker-1 hello bye");
    // It hangs: the same.
    let forwarder = forwarder_pid(&host);
    kill(forwarder, Signal::SIGSTOP).unwrap();
    eventually("another forwarder", || (forwarder_pid(&host) != forwarder).then_some(()));
    assert_eq!(talk(address).unwrap(), "demo-worker-1 hello bye");
    assert_eq!(exposed(&host).await.len(), 1);
    // The coordinator is gone and comes back: the same forwarder goes on.
    let before = forwarder_pid(&host);
    host.reopen().await;
    assert_eq!(forwarder_pid(&host), before);
    assert_eq!(expose(&host, &wanted).await.unwrap().address, address);
    done(&host, Call::Unexpose(wanted.install.clone(), wanted.cluster.clone())).await;
    assert!(talk(address).is_err(), "an unexposed port is closed");
    host.destroy();
    eventually("the forwarder to end", || kill(before, None).is_err().then_some(()));
}

/// From the moment a machine has no power any more until users are served by another one.
const OVER_WITHIN: Duration = Duration::from_secs(2);

#[tokio::test]
async fn forwards_leave_a_machine_that_lost_power() {
    let host = Host::new().await;
    let made = machines(&host, 2).await;
    let targets = vec![serve(&host, &made[0]), serve(&host, &made[1])];
    let wanted = ExposeRequest { targets, ..expose_request(&host, "api") };
    let Exposed { address, .. } = expose(&host, &wanted).await.unwrap();
    let mut standing: Vec<_> = (0..2).map(|_| greeted(address)).collect();
    standing.sort_by(|a, b| a.0.cmp(&b.0));
    let [(_, mut at_dead), (_, mut at_other)] = <[_; 2]>::try_from(standing).unwrap();

    let begun = Instant::now();
    done(&host, Call::PowerOff(made[0].key.clone(), PowerOff::Hard)).await;
    let off = Instant::now();
    let mut bytes = [0; 16];
    let end = at_dead.read(&mut bytes).unwrap_err();
    let ended = off.elapsed();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    for _ in 0..4 {
        assert_eq!(talk(address).unwrap(), "demo-worker-1 hello bye");
    }
    let over = off.elapsed();
    println!(
        "switched off in {} ms; ended after {} ms, served again after {} ms",
        (off - begun).as_millis(),
        ended.as_millis(),
        over.as_millis()
    );
    assert!(over < OVER_WITHIN, "{over:?}");
    at_other.shutdown(Shutdown::Write).unwrap();
    let length = at_other.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b" bye", "the other's connection stands");
}

/// A connection that stands, and who greeted it.
fn greeted(address: SocketAddr) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut name = [0; "demo-worker-0".len()];
    stream.read_exact(&mut name).unwrap();
    (String::from_utf8_lossy(&name).into_owned(), stream)
}

fn forwarder_pid(host: &Host) -> Pid {
    let text = std::fs::read_to_string(host.state_dir().join("local/forwarder.json")).unwrap();
    let pid =
        text.lines().find_map(|l| l.trim().strip_prefix("\"pid\": ")?.trim_end_matches(',').parse().ok());
    Pid::from_raw(pid.unwrap())
}

#[tokio::test]
async fn a_port_of_another_program_is_refused_with_a_remedy() {
    let host = Host::new().await;
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = foreign.local_addr().unwrap().port();
    let wanted = ExposeRequest { port: Some(port), ..expose_request(&host, "api") };
    let refused = expose(&host, &wanted).await.unwrap_err();
    assert!(refused.to_string().ends_with("end that, or ask for any port"), "{refused}");
    assert_eq!(exposed(&host).await, []);
    drop(foreign);
    assert_eq!(expose(&host, &wanted).await.unwrap().address.port(), port);
}

#[tokio::test]
async fn the_forwarder_opens_as_many_files_as_it_may_and_ends_when_its_installation_is_removed() {
    let host = Host::new().await;
    // As shells start programs.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1024, hard).unwrap();
    expose(&host, &expose_request(&host, "api")).await.unwrap();
    let pid = forwarder_pid(&host);
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limits: Vec<&str> = open_files.split_whitespace().take(2).collect();
    assert_eq!(limits[0], limits[1], "each connection needs two");
    std::fs::remove_file(host.state_dir().join("local/install.json")).unwrap();
    eventually("the forwarder to end", || kill(pid, None).is_err().then_some(()));
}

#[tokio::test]
async fn machines_freeze_thaw_and_crash() {
    let host = Host::new().await;
    let made = machines(&host, 1).await;
    let (key, id) = (&made[0].key, &made[0].key.machine);
    host.wait_up(id, 1);
    let bench = FaultBench::open(&host.state_dir()).unwrap();
    for _ in 0..2 {
        bench.freeze(id).unwrap();
        assert_eq!(state(&host, key).await, Some(MachineState::Frozen));
    }
    assert_eq!(create(&host, &made[0]).await.unwrap().state, MachineState::Frozen, "it has power");
    for _ in 0..2 {
        bench.thaw(id).unwrap();
        assert_eq!(state(&host, key).await, Some(MachineState::On));
    }
    bench.kill(id).unwrap();
    assert_eq!(state(&host, key).await, Some(MachineState::Off));
    let refused = bench.freeze(id);
    assert!(matches!(refused, Err(ProviderError::Invalid { .. })), "{refused:?}");
    bench.power_on(id).unwrap();
    host.wait_up(id, 2);
    bench.freeze(id).unwrap();
    done(&host, Call::DeleteMachine(key.clone())).await;
    assert!(matches!(bench.kill(id), Err(ProviderError::NotFound { .. })));
    host.destroy();
}

#[tokio::test]
async fn links_are_cut_one_way_both_ways_and_by_zone() {
    let host = Host::new().await;
    // Machines 0 and 3 are in zone-a, 1 in zone-b.
    let made = machines(&host, 4).await;
    let link = link_of(&host);
    let sockets: Vec<_> = made.iter().map(|machine| udp_of(&host, machine)).collect();
    let (a, b, a2) = (&sockets[0], &sockets[1], &sockets[3]);
    let bench = FaultBench::open(&host.state_dir()).unwrap();
    let side = |number: usize| Side::Machine(made[number].key.machine.clone());
    let check = |what: &str, expected: [bool; 5]| {
        let got = [arrives(a, b), arrives(b, a), arrives(a, &link), arrives(&link, a), arrives(a, a2)];
        assert_eq!(got, expected, "{what}: a-b b-a a-coordinator coordinator-a a-a2");
    };
    check("whole", [true; 5]);
    let one_way = Cut { from: side(0), to: side(1), ways: Ways::OneWay };
    bench.cut(one_way.clone()).unwrap();
    check("a to b cut", [false, true, true, true, true]);
    bench.cut(Cut { from: side(0), to: Side::Coordinator, ways: Ways::Both }).unwrap();
    check("a from coordinator too", [false, true, false, false, true]);
    bench.mend(&one_way).unwrap();
    check("first one mended", [true, true, false, false, true]);
    bench.heal().unwrap();
    check("healed", [true; 5]);
    bench.cut(Cut { from: Side::Zone("zone-a".to_owned()), to: Side::Rest, ways: Ways::Both }).unwrap();
    check("zone alone", [false, false, false, false, true]);
    bench.power_off(&made[0].key.machine, PowerOff::Hard).unwrap();
    bench.power_on(&made[0].key.machine).unwrap();
    assert!(!arrives(&udp_of(&host, &made[0]), &link), "a cut outlives a power cycle");
    bench.heal().unwrap();
    assert_eq!(bench.cuts().unwrap(), []);
    for (from, to) in
        [(side(0), side(0)), (Side::Coordinator, Side::Rest), (side(0), Side::Zone("x".to_owned()))]
    {
        let refused = bench.cut(Cut { from, to, ways: Ways::Both });
        assert!(matches!(refused, Err(ProviderError::Invalid { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn disks_are_filled_only_where_the_host_is_safe() {
    const DISK_BYTES: u64 = 8 << 20;
    let safe = Host::with(Some(DISK_BYTES)).await;
    let made = machines(&safe, 1).await;
    let id: &MachineId = &made[0].key.machine;
    safe.wait_up(id, 1);
    let bench = FaultBench::open(&safe.state_dir()).unwrap();
    bench.fill_disk(id, 0).unwrap();
    let file = safe.machine_dir(id).join("var/more");
    let full = std::fs::write(&file, [0; 4096]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    suite::perform(&safe, Call::Reboot(made[0].key.clone())).await.unwrap();
    assert!(safe.var(id, "boots").is_some(), "this disk too survives a reboot");
    bench.free_disk(id).unwrap();
    std::fs::write(&file, [0; 4096]).unwrap();
    let disk = nix::sys::statvfs::statvfs(&safe.machine_dir(id).join("var")).unwrap();
    assert_eq!(disk.files(), DISK_BYTES / 16_384, "inodes run out as on a disk");
    safe.destroy();

    let host = Host::new().await;
    let made = machines(&host, 1).await;
    let refused = FaultBench::open(&host.state_dir()).unwrap().fill_disk(&made[0].key.machine, 0);
    assert!(matches!(refused, Err(ProviderError::Invalid { .. })), "{refused:?}");
}
