//! What heartbeats of a whole fleet cost the coordinator: `cargo xtask bench link --agents N`.
//!
//! Three processes: this one measures, `serve` is the coordinator's path (real link server, real core; no store, and
//! a provider that answers at once), `agents` are real link clients, each with a certificate of its own. All traffic is on loopback.

mod agents;
mod child;
mod fleet;
mod serve;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::child::Child;

/// How long the steady state is measured.
const STEADY: Duration = Duration::from_secs(30);
/// How long a fleet may take to connect.
const CONNECT_MAX: Duration = Duration::from_secs(180);
/// How long the restarted coordinator is watched for false alarms once all are back: its warm-up and some more.
const WATCH: Duration = Duration::from_secs(40);
/// How often a child is asked how far it is.
const POLL: Duration = Duration::from_millis(250);

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its result and its progress"
)]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", folder, count] => number(count).and_then(|count| serve::run(folder.as_ref(), count)),
        ["agents", folder, count] => number(count).and_then(|count| agents::run(folder.as_ref(), count)),
        ["--agents", count] => number(count).and_then(measure).map(|figures| println!("{figures}")),
        _ => Err(anyhow::anyhow!("use: bench-link --agents N")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<usize> {
    let count = text.parse().with_context(|| format!("`{text}` is no number"))?;
    ensure!((1..=25_000).contains(&count), "choose 1 to 25000 agents");
    Ok(count)
}

fn measure(count: usize) -> Result<Value> {
    let folder = std::env::temp_dir().join(format!("keelson-bench-link-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    fleet::write_ca(&folder)?;
    let result = measure_in(&folder, count);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure_in(folder: &std::path::Path, count: usize) -> Result<Value> {
    let mut server = Child::start("serve", folder, count)?;
    let empty = server.ask()?;
    let mut agents = Child::start("agents", folder, count)?;
    let connect_seconds = wait_connected(&mut server, &mut agents, count)?;
    std::thread::sleep(Duration::from_secs(5));
    let before = server.ask()?;
    std::thread::sleep(STEADY);
    let after = server.ask()?;
    let difference = |name: &str| after[name].as_f64().unwrap_or(0.0) - before[name].as_f64().unwrap_or(0.0);
    let heartbeats = difference("heartbeats");
    ensure!(heartbeats > 0.0, "no heartbeat came");
    let bytes = after["rss_bytes"].as_f64().unwrap_or(0.0) - empty["rss_bytes"].as_f64().unwrap_or(0.0);
    server.kill()?;
    let mut server = Child::start("serve", folder, count)?;
    let reconnect_seconds = wait_connected(&mut server, &mut agents, count)?;
    std::thread::sleep(WATCH);
    let end = server.ask()?;
    Ok(json!({
        "agents": count,
        "cpu_us_per_heartbeat": difference("cpu_us") / heartbeats,
        "bytes_per_agent": bytes / count as f64,
        "delay_p99_ms": after["delay_p99_ms"],
        "connect_seconds": connect_seconds,
        "reconnect_seconds": reconnect_seconds,
        "lost": count as u64 - end["connected"].as_u64().unwrap_or(0),
        "false_alarms": end["silent_ever"],
        "heartbeats_per_second": heartbeats / STEADY.as_secs_f64(),
        "heartbeats_lost": after["heartbeats_lost"],
    }))
}

#[expect(clippy::print_stderr, reason = "a benchmark of minutes says how far it is")]
fn wait_connected(server: &mut Child, agents: &mut Child, count: usize) -> Result<f64> {
    // The clock runs from the moment at which the agents can dial: their keys are made before.
    agents.ask()?;
    let began = Instant::now();
    let mut said = 0;
    loop {
        let connected = server.ask()?["connected"].as_u64().unwrap_or(0);
        if connected == count as u64 {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed().as_secs() > said {
            said = began.elapsed().as_secs();
            eprintln!("{said:>4} s: {connected} of {count} connected");
        }
        if began.elapsed() > CONNECT_MAX {
            bail!("only {connected} of {count} agents connected within {} s", CONNECT_MAX.as_secs());
        }
        std::thread::sleep(POLL);
    }
}
