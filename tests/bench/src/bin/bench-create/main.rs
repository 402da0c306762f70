//! How long it takes from nothing to the first running pod: `cargo xtask bench create`.
//!
//! Two contestants in turn, with the same programs from the same image on the same host: `keelson cluster create` of
//! plan small, which boots four machines, and its peer `kubeadm init` on one machine that is booted already, with its
//! runtime running and its images loaded. Both are used as a user would: the command, and when it has ended, one pod.

mod keelson;
mod kubeadm;
mod pod;
mod process;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

/// What is needed for both; `cargo xtask bench create` fills it in.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// An empty directory for both installations; what is made there is removed again.
    #[arg(long)]
    scratch: PathBuf,
    /// How often each of the two makes a cluster; the medians count.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Digest of the node image.
    #[arg(long)]
    image: String,
    /// The release in it.
    #[arg(long)]
    release: String,
    /// The coordinator.
    #[arg(long)]
    coordinator: PathBuf,
    /// The command line program.
    #[arg(long)]
    keelson: PathBuf,
    /// kubectl for this host.
    #[arg(long)]
    kubectl: PathBuf,
    /// kubeadm of the same release; the programs of the control plane lie beside it.
    #[arg(long)]
    kubeadm: PathBuf,
    /// etcd of the release.
    #[arg(long)]
    etcd: PathBuf,
    /// CoreDNS of the release.
    #[arg(long)]
    coredns: PathBuf,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its result and its progress"
)]
fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a benchmark of minutes says how far it is")]
fn measure(arguments: &Arguments) -> Result<Value> {
    ensure!(arguments.rounds > 0, "at least one round is needed");
    let installation = keelson::Installation::start(arguments)?;
    let peer = kubeadm::Peer::prepare(arguments)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut timeline = Value::Null;
    for round in 1..=arguments.rounds {
        let made = installation.round(&format!("bench-{round}"))?;
        eprintln!(
            "round {round}: keelson cluster create {:.1} s, first pod {:.1} s",
            made.command, made.first_pod
        );
        let peer_made = peer.round(round)?;
        eprintln!(
            "round {round}: kubeadm init           {:.1} s, first pod {:.1} s",
            peer_made.command, peer_made.first_pod
        );
        eprint!("{}", timeline::text(&made.timeline));
        timeline = timeline::json(&made.timeline);
        ours.push(made.first_pod);
        theirs.push(peer_made.first_pod);
    }
    let (keelson_seconds, kubeadm_seconds) = (median(&ours), median(&theirs));
    Ok(json!({
        "ratio": keelson_seconds / kubeadm_seconds,
        "keelson_seconds": keelson_seconds,
        "kubeadm_seconds": kubeadm_seconds,
        "keelson_rounds": ours,
        "kubeadm_rounds": theirs,
        "timeline": timeline,
    }))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
    }
}
