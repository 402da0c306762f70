//! Where the local provider keeps things: one directory, so that removing an installation is removing it.

use std::path::{Path, PathBuf};

use keelson_protocol::MachineId;

/// The files of one installation, all below `<state_dir>/local`.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    state_dir: PathBuf,
    root: PathBuf,
}

impl Paths {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), root: state_dir.join("local") }
    }

    /// The directory that the coordinator gave us.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Everything below here is ours.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Who the installation is: written before anything else is made.
    pub(crate) fn install(&self) -> PathBuf {
        self.root.join("install.json")
    }

    /// The network namespace of the LAN, as a bind mount. It appears here only once it is complete.
    pub(crate) fn lan(&self) -> PathBuf {
        self.root.join("lan")
    }

    /// The LAN's namespace while it is being made.
    pub(crate) fn lan_draft(&self) -> PathBuf {
        self.root.join("lan.draft")
    }

    /// One directory for each machine, named by its id.
    pub(crate) fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// Machines being tagged, not yet visible.
    pub(crate) fn drafts(&self) -> PathBuf {
        self.root.join("drafts")
    }

    /// Machines whose removal has begun: no longer visible, files still there.
    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// runc's own state.
    pub(crate) fn runc(&self) -> PathBuf {
        self.root.join("runc")
    }

    /// One lock file for each machine that is being worked on.
    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Lock of a machine.
    pub(crate) fn machine_lock(&self, id: &MachineId) -> PathBuf {
        self.locks().join(id.as_str())
    }

    /// Lock under which addresses are claimed.
    pub(crate) fn claims_lock(&self) -> PathBuf {
        self.root.join("claims.lock")
    }

    /// What shall be reachable from outside: whole state, replaced atomically.
    pub(crate) fn forwards(&self) -> PathBuf {
        self.root.join("forwards.json")
    }

    /// Lock under which [`Self::forwards`] is changed.
    pub(crate) fn forwards_lock(&self) -> PathBuf {
        self.root.join("forwards.lock")
    }

    /// Held by the forwarder while it lives.
    pub(crate) fn forwarder_lock(&self) -> PathBuf {
        self.root.join("forwarder.lock")
    }

    /// What the forwarder has carried out.
    pub(crate) fn forwarder_status(&self) -> PathBuf {
        self.root.join("forwarder.json")
    }

    /// What the forwarder had to say.
    pub(crate) fn forwarder_log(&self) -> PathBuf {
        self.root.join("forwarder.log")
    }

    /// The cuts that the fault bench has in force: whole state.
    pub(crate) fn faults(&self) -> PathBuf {
        self.root.join("faults.json")
    }

    /// Lock under which [`Self::faults`] is changed.
    pub(crate) fn faults_lock(&self) -> PathBuf {
        self.root.join("faults.lock")
    }

    /// The directories that hold collections; all exist while the installation does.
    pub(crate) fn collections(&self) -> [PathBuf; 5] {
        [self.machines(), self.drafts(), self.trash(), self.runc(), self.locks()]
    }

    /// The files of one machine.
    pub(crate) fn machine(&self, id: &MachineId) -> MachinePaths {
        MachinePaths { dir: self.machines().join(id.as_str()), runc_state: self.runc().join(id.as_str()) }
    }
}

/// The files of one machine.
#[derive(Debug, Clone)]
pub(crate) struct MachinePaths {
    dir: PathBuf,
    runc_state: PathBuf,
}

impl MachinePaths {
    /// Everything of the machine except what runc keeps.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The machine's tag.
    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join(RECORD)
    }

    /// Exists once the machine has been on.
    pub(crate) fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    /// The machine's disk.
    pub(crate) fn var(&self) -> PathBuf {
        self.dir.join("var")
    }

    /// Where the root file system is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Upper and work directory and the list of layers, made anew at each power-on.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.dir.join("overlay")
    }

    /// The runc bundle.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// What the machine is told at boot.
    pub(crate) fn metadata(&self) -> PathBuf {
        self.dir.join("metadata")
    }

    /// The machine's network namespace, as a bind mount, while it is on.
    pub(crate) fn netns(&self) -> PathBuf {
        self.dir.join(NETNS)
    }

    /// What init wrote.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Where systemd keeps the journal on the machine's disk.
    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("var/log/journal")
    }

    /// The journal's last lines as text, made when they are asked for.
    pub(crate) fn journal_text(&self) -> PathBuf {
        self.dir.join("journal.txt")
    }

    /// What runc had to say.
    pub(crate) fn runc_log(&self) -> PathBuf {
        self.dir.join("runc.log")
    }

    /// What runc keeps about the machine.
    pub(crate) fn runc_state(&self) -> &Path {
        &self.runc_state
    }

    /// Exists while runc has made the container and not yet started its init.
    pub(crate) fn runc_unstarted(&self) -> PathBuf {
        self.runc_state.join("exec.fifo")
    }
}

/// File name of a machine's tag.
pub(crate) const RECORD: &str = "machine.json";

/// File name of a machine's network namespace, relative to its directory.
pub(crate) const NETNS: &str = "netns";
