//! Acts of remedies: one at a time, each bounded, each as good done twice as done once.

use keelson_protocol::remedy::RemedyAct;

use crate::error::HostError;
use crate::systemd::Systemd;
use crate::{ENDS, GivenUp, MOUNTS, Queue, WRITES, blocking, blocking_while_wanted, files};

mod cgroups;
mod command;
mod sweep;
mod trees;

/// How long systemctl may take to order the end of the machine, in seconds.
const END_TIMEOUT_S: u16 = 20;

/// Held by the one act that works on a tree.
static TREES: Queue = Queue::const_new(());

/// Works on a tree, unless an earlier act still does: one that takes longer than it may removes what it has begun to, and
/// waiting for it would keep units down.
async fn tree(
    work: impl FnOnce(&GivenUp) -> Result<String, HostError> + Send + 'static,
) -> Result<String, HostError> {
    if TREES.try_lock().is_err() {
        return Err(HostError::refused("directories", "an earlier act still works on some"));
    }
    blocking_while_wanted(&TREES, work).await
}

/// Does one act; what it did, in a few words, or nothing when there was nothing to do.
pub(crate) async fn run(act: RemedyAct, systemd: &Systemd) -> Result<String, HostError> {
    match act {
        RemedyAct::Run { command, argument, done_when, timeout_s } => {
            command::run(command, argument.as_ref(), done_when.as_deref(), timeout_s).await
        }
        RemedyAct::EndProcesses { cgroups } => cgroups::end_processes(&cgroups).await,
        RemedyAct::Unmount { below } => {
            blocking_while_wanted(&MOUNTS, move |given_up| trees::unmount(&below, given_up)).await
        }
        RemedyAct::MoveAside { directory } => {
            tree(move |given_up| trees::move_aside(directory.as_ref(), given_up)).await
        }
        // What these remove nobody uses, however late.
        RemedyAct::RemoveAside { directories } => tree(move |_| trees::remove_aside(&directories)).await,
        RemedyAct::RemoveFiles { paths } => {
            let words = |removed: Vec<&str>| match removed.is_empty() {
                true => String::new(),
                false => format!("removed {}", removed.join(", ")),
            };
            blocking(&WRITES, move || files::remove_all(&paths).map(words)).await
        }
        RemedyAct::RemoveOld { directory, name_contains, age_min_s } => {
            tree(move |_| trees::remove_old(directory.as_ref(), &name_contains, age_min_s)).await
        }
        RemedyAct::Sweep { list, used, source, source_says, remove, timeout_s } => {
            let tables = sweep::Tables { list, used, source, source_says, remove };
            sweep::sweep(tables, timeout_s).await
        }
        RemedyAct::Reboot => end_machine(Ending::Reboot, systemd).await.map(|()| String::new()),
    }
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Reboot,
    PowerOff,
}

/// Orders the end of the machine. Where the message bus is what does not work, or hangs, systemctl speaks to systemd past it.
pub(crate) async fn end_machine(ending: Ending, systemd: &Systemd) -> Result<(), HostError> {
    let (method, verb) = match ending {
        Ending::Reboot => ("Reboot", "reboot"),
        Ending::PowerOff => ("PowerOff", "poweroff"),
    };
    let Err(error) = systemd.end_machine(method, verb).await else { return Ok(()) };
    let past_the_bus = ["/usr/bin/systemctl", "--force", verb].map(str::to_owned);
    let printed = command::print_in(&ENDS, &past_the_bus, END_TIMEOUT_S).await;
    printed.and_then(|printed| printed.good("systemctl")).map(drop).map_err(|_| error)
}
