//! The first pod: made once the cluster's command has ended, the same on both sides.

use std::process::Command;

use anyhow::Result;
use keelson_images::PAUSE_IMAGE;

use crate::process::{output, wait_for};

/// Seconds of one contestant, both from the beginning of its command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds {
    /// Until the command ended.
    pub(crate) command: f64,
    /// Until the first pod ran.
    pub(crate) first_pod: f64,
}

/// Makes a pod through `kubectl`, a command that reaches the cluster, and waits until it runs.
pub(crate) fn run_first(kubectl: impl Fn() -> Command) -> Result<()> {
    let image = format!("--image={PAUSE_IMAGE}");
    // A namespace gets its service account a moment after it exists; until then pods are refused.
    wait_for("the first pod", || output(kubectl().args(["run", "first", &image, "--restart=Never"])))?;
    let running = "--for=jsonpath={.status.phase}=Running";
    output(kubectl().args(["wait", running, "pod/first", "--timeout=120s"])).map(drop)
}
