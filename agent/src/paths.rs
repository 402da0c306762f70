//! Where the agent finds and keeps things.

use std::path::PathBuf;

/// Places on the machine. The flags exist for tests by hand; images use the defaults.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Paths {
    /// Who this machine is, written by the infrastructure
    #[arg(long, global = true, value_name = "FILE", default_value = "/run/keelson-metadata/metadata.json")]
    pub(crate) metadata: PathBuf,
    /// Folder of what outlives a reboot
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "/var/lib/keelson/agent")]
    pub(crate) state: PathBuf,
    /// Folder of what lives as long as the boot
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "/run/keelson")]
    pub(crate) run: PathBuf,
}

impl Paths {
    /// Folder of the link identity.
    pub(crate) fn link(&self) -> PathBuf {
        self.state.join("link")
    }

    /// The socket that `status` asks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The lock that keeps a second agent out.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run.join("agent.lock")
    }
}
