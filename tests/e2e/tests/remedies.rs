//! Faults that a real machine's agent mends with the remedies of its config: state of programs that was damaged, and an
//! etcd that takes no more writes.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use keelson_e2e::{Installation, wait_for};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;

const WORKER: &str = "demo-worker-2";
const ETCD: &str = "demo-etcd-1";
/// Where an agent keeps certificates and keys.
const PKI: &str = "/var/lib/keelson/pki";

/// Waits until an agent has told that its remedy helped: in one event, which is of nothing else.
fn wait_told(installation: &Installation, machine: &str, remedy: &str) -> Result<()> {
    wait_for(&format!("{machine} to tell of {remedy}"), || {
        let events = installation.keelson_json(&["events", "--machine", machine])?;
        let items = events["items"].as_array().context("the list of events has no items")?;
        let begins = |text: &Value, with: &str| text.as_str().is_some_and(|text| text.starts_with(with));
        let told = |event: &Value| {
            event["reason"] == "Repaired"
                && begins(&event["cause"], &format!("{remedy}: "))
                && begins(&event["outcome"], "it helped after")
        };
        ensure!(items.iter().any(told), "{events}");
        Ok(())
    })
}

/// Damages what a unit of a worker reads when it starts, kills its program, which may have fallen over the damage
/// already, and waits until `mended` and until the cluster works again.
fn damage_and_recover(unit: &str, damage: &str, mended: &str, remedy: &str) -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let shell = |script: &str| installation.on_machine(WORKER, &["sh", "-c", script]).map(|_| ());
    shell(&format!("{damage}; systemctl kill --kill-whom=main --signal=KILL {unit} || true"))?;
    wait_for(&format!("remedy {remedy}"), || shell(mended))?;
    installation.wait_ready("demo")?;
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))?;
    wait_told(&installation, WORKER, remedy)
}

#[test]
fn a_runtime_with_a_damaged_database_gets_an_empty_one_and_its_images_again() -> Result<()> {
    let database = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";
    damage_and_recover(
        "containerd.service",
        &format!("head -c 65536 /dev/urandom > {database}"),
        "ls -d /var/lib/containerd.broken-* && systemctl is-active containerd kubelet",
        "containerd-state",
    )
}

#[test]
fn a_kubelet_with_a_damaged_state_file_decides_anew() -> Result<()> {
    let file = "/var/lib/kubelet/cpu_manager_state";
    damage_and_recover(
        "kubelet.service",
        &format!("echo damaged > {file}"),
        &format!("! grep -q damaged {file} && systemctl is-active kubelet"),
        "kubelet-files",
    )
}

/// As after a long time without power: what the kubelet shows the API server is over, and its key is the right one.
#[test]
fn a_certificate_that_has_expired_is_replaced() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let shell = |script: &str| installation.on_machine(WORKER, &["sh", "-c", script]);
    let file = format!("{PKI}/kubelet-server");
    let key = KeyPair::from_pem(&shell(&format!("cat {file}.key"))?)?;
    let mut expired = CertificateParams::default();
    (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let expired = expired.self_signed(&key)?.pem();
    shell(&format!("printf '%s' '{expired}' > {file}.crt"))?;
    wait_for("another certificate", || {
        ensure!(shell(&format!("cat {file}.crt"))? != expired, "it is still the one that expired");
        Ok(())
    })?;
    wait_for("the event", || {
        let events = installation.keelson_json(&["events", "--machine", WORKER])?;
        let items = events["items"].as_array().context("the list of events has no items")?;
        let cause = "kubelet-server: two thirds of its life are over";
        let told = |event: &Value| event["reason"] == "CertificateIssued" && event["cause"] == cause;
        ensure!(items.iter().any(told), "{events}");
        Ok(())
    })?;
    let through_api = format!("/api/v1/nodes/{WORKER}/proxy/healthz");
    wait_for("the API server to trust the kubelet", || {
        installation.kubectl(&["get", "--raw", &through_api]).map(|_| ())
    })?;
    installation.wait_ready("demo")
}

/// What a program leaves behind that was killed: its socket, and the lock of its database. Neither stands in anybody's way.
#[test]
fn what_killed_programs_leave_behind_keeps_nobody_from_starting() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    for (machine, unit, left) in [
        (WORKER, "containerd.service", "/run/containerd/containerd.sock"),
        (WORKER, "kubelet.service", "/var/lib/kubelet/pod-resources/kubelet.sock"),
        (ETCD, "etcd.service", "/var/lib/etcd/member/snap/db"),
    ] {
        let shell = |script: &str| installation.on_machine(machine, &["sh", "-c", script]);
        let pid = format!("systemctl show --property=MainPID --value {unit}");
        let killed =
            shell(&format!("{pid}; systemctl kill --kill-whom=main --signal=KILL {unit}; ls {left}"))?;
        let before = killed.lines().next().context("it has no process")?.to_owned();
        wait_for(&format!("{unit} to run again"), || {
            let now = shell(&format!("systemctl is-active --quiet {unit} && {pid}"))?;
            ensure!(now.trim() != before && now.trim() != "0", "{now}");
            Ok(())
        })?;
        installation.wait_ready("demo")?;
    }
    wait_for("the application to answer", || installation.ask_web().map(|_| ()))
}

#[test]
fn an_etcd_without_room_makes_some_and_takes_writes_again() -> Result<()> {
    let installation = Installation::open()?;
    installation.wait_ready("demo")?;
    let write =
        || installation.kubectl(&["annotate", "namespace", "default", "keelson.io/room=yes", "--overwrite"]);
    let erase = || installation.kubectl(&["annotate", "namespace", "default", "keelson.io/room-"]);
    raise_space_alarm(&installation)?;
    let refused = format!("{:#}", write().err().context("etcd took a write in spite of its alarm")?);
    ensure!(refused.contains("database space exceeded"), "{refused}");
    wait_for("writes to be taken again", || write().map(|_| ()))?;
    erase()?;
    wait_told(&installation, ETCD, "etcd-space")?;
    installation.wait_ready("demo")
}

/// Makes etcd do what it does at the end of its quota, which is 8 GB here: through its HTTP gateway, with the member's
/// own certificate, in the machine's network (<https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>).
fn raise_space_alarm(installation: &Installation) -> Result<()> {
    let machine = installation.init_pid(ETCD)?;
    let file = |name: &str| format!("/proc/{machine}/root{PKI}/{name}");
    let mut tls = Command::new("nsenter");
    tls.arg(format!("--net=/proc/{machine}/ns/net"))
        .args(["openssl", "s_client", "-quiet", "-connect", "127.0.0.1:2379"])
        .args(["-CAfile", &file("etcd-ca.crt")])
        .args(["-cert", &file("etcd-server.crt"), "-key", &file("etcd-server.key")]);
    let mut tls = tls.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let body = r#"{"action":"ACTIVATE","memberID":0,"alarm":"NOSPACE"}"#;
    let request = format!(
        "POST /v3/maintenance/alarm HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    tls.stdin.take().context("openssl has no input")?.write_all(request.as_bytes())?;
    let output = tls.wait_with_output()?;
    let (answer, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("NOSPACE"), "{answer}\n{errors}");
    Ok(())
}
