//! A coordinator for tests by hand: it enrols whoever has the token, signs everything, sends the config of a file (again
//! whenever the file changes), and prints what it hears.
//!
//! Lines on its input open bulk streams: `status`, `journal UNIT`, `shell PROGRAM ARGUMENT...`.
//!
//! `cargo run -p keelson-agent --example hand -- 10.0.0.1:7443 node.json metadata.json` writes the metadata for an agent
//! and serves until it is stopped. Never for production: it checks nothing.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use keelson_protocol::WallTime;
use keelson_protocol::config::NodeConfig;
use keelson_protocol::message::{BulkRequest, EnrolReply, ShellFrame, ToAgent, ToCoordinator};
use keelson_protocol::wire::VERSION_MAX;
use keelson_transport::{LinkCa, LinkEvent, LinkServer, ServerConfig, SessionHandle};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

fn wall() -> WallTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(now.as_millis()).unwrap_or(0))
}

fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn read(path: &Path) -> anyhow::Result<NodeConfig> {
    let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no NodeConfig", path.display()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, config, metadata] = arguments.as_slice() else {
        bail!("usage: hand ADDRESS:PORT CONFIG METADATA [the last one is written]");
    };
    let (address, config): (SocketAddr, PathBuf) = (address.parse()?, config.into());
    let life =
        Duration::from_secs(std::env::var("HAND_LIFE_S").ok().and_then(|s| s.parse().ok()).unwrap_or(86_400));
    let ca = LinkCa::generate("by hand", wall(), YEAR)?;
    let first = read(&config)?;
    let text = serde_json::json!({
        "machine": first.machine, "incarnation": first.incarnation, "coordinators": [address],
        "caFingerprint": ca.fingerprint(), "token": "by-hand",
    });
    std::fs::write(metadata, serde_json::to_vec_pretty(&text)?)?;
    let identity = ca.issue_server(wall(), YEAR)?;
    let (sender, mut events) = mpsc::channel(64);
    let settings = ServerConfig::new(identity, ca.certificate_der().to_vec());
    let _server = LinkServer::start(UdpSocket::bind(address)?, settings, sender)?;
    say(&format!("serving on {address}"));
    let (mut session, mut sent): (Option<SessionHandle>, Option<NodeConfig>) = (None, None);
    let (lines, mut asked) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = lines.blocking_send(line);
        }
    });
    loop {
        tokio::select! {
            Some(line) = asked.recv() => {
                if let Some(session) = &session {
                    say(&format!("{:?}", bulk(session, &line).await));
                }
            }
            Some(event) = events.recv() => match event {
                LinkEvent::Enrol { request, reply, .. } => {
                    say(&format!("enrol {}", request.machine));
                    let chain = ca.sign_machine(&request.signing_request, &request.machine, request.incarnation, wall(), life)?;
                    reply.send(EnrolReply::Accepted { chain });
                }
                LinkEvent::Opened { session: opened, hello, .. } => {
                    say(&format!("{hello:?}"));
                    let _ = opened.send(ToAgent::Welcome { version: VERSION_MAX, now: wall() });
                    session = Some(opened);
                    sent = None;
                }
                LinkEvent::Message { message, .. } => {
                    if let Some(session) = &session {
                        // A session that has just ended is no reason to end as well.
                        let _ = answer(&ca, life, &first, session, message);
                    }
                }
                LinkEvent::Closed { why, .. } => say(&format!("closed: {why}")),
                _ => {}
            },
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        if let (Some(session), Ok(now)) = (&session, read(&config))
            && sent.as_ref() != Some(&now)
        {
            let _ = session.send(ToAgent::Config(Box::new(now.clone())));
            sent = Some(now);
        }
    }
}

/// Asks for bulk content and returns what came.
async fn bulk(session: &SessionHandle, line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace().map(str::to_owned);
    let request = match words.next().as_deref() {
        Some("journal") => BulkRequest::Journal { unit: words.next(), lines: 3, follow: false },
        Some("shell") => BulkRequest::Shell {
            command: words.collect(),
            terminal: "vt100".to_owned(),
            rows: 24,
            columns: 80,
        },
        _ => BulkRequest::Status,
    };
    let shell = matches!(request, BulkRequest::Shell { .. });
    let mut stream = session.open_bulk(request).await?;
    let mut text = String::new();
    if !shell {
        stream.read_to_string(&mut text).await?;
        return Ok(text);
    }
    loop {
        match stream.read_frame().await? {
            Some(ShellFrame::Data(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Some(ShellFrame::Exit { code }) => return Ok(format!("{text} [exit code {code}]")),
            Some(ShellFrame::Error(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Some(ShellFrame::Resize { .. } | ShellFrame::EndOfInput) | None => {
                bail!("the shell broke off after {text}")
            }
        }
    }
}

fn answer(
    ca: &LinkCa,
    life: Duration,
    machine: &NodeConfig,
    session: &SessionHandle,
    message: ToCoordinator,
) -> anyhow::Result<()> {
    let sign = |request: &[u8]| ca.sign_machine(request, &machine.machine, machine.incarnation, wall(), life);
    let reply = match message {
        ToCoordinator::SignCertificate { name, signing_request, .. } => {
            say(&format!("sign {name}"));
            ToAgent::Certificate { name, chain: sign(&signing_request)? }
        }
        ToCoordinator::RenewLink { signing_request } => {
            say("renew link");
            ToAgent::LinkRenewed { chain: sign(&signing_request)? }
        }
        ToCoordinator::TimeRequest { asked_at } => ToAgent::Time { asked_at, now: wall() },
        ToCoordinator::Events(events) => {
            for event in &events {
                say(&format!(
                    "{} {:?} {}: {} -> {}",
                    event.sequence, event.kind, event.subject, event.cause, event.outcome
                ));
            }
            ToAgent::EventsStored { through: events.last().map_or(0, |event| event.sequence) }
        }
        ToCoordinator::Health(report) => {
            let units: Vec<String> =
                report.units.iter().map(|unit| format!("{} {:?}", unit.name, unit.state)).collect();
            say(&format!("health {} {}: {}", report.sequence, report.state, units.join(", ")));
            return Ok(());
        }
        ToCoordinator::PeersProbed { answers, .. } => {
            say(&format!("peers {answers:?}"));
            return Ok(());
        }
        ToCoordinator::Hello { .. } => return Ok(()),
    };
    session.send(reply)?;
    Ok(())
}
