//! The process that holds the namespaces of a pod: it waits, collects the dead children that the pod's containers leave
//! behind (it is process 1 of a shared process namespace), and ends when told to.
//!
//! It stands in for upstream's pause image, whose contract it keeps: quiet, tiny, ends at SIGINT and SIGTERM.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        std::process::exit(1);
    }
    while let Ok(signal) = signals.wait() {
        match signal {
            Signal::SIGCHLD => reap(),
            _ => return,
        }
    }
    std::process::exit(1);
}

/// Collects every child that has ended. One signal may stand for several.
fn reap() {
    while !matches!(
        waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)),
        Err(_) | Ok(WaitStatus::StillAlive)
    ) {}
}
