//! The coordinator's command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Keelson's coordinator.
#[derive(Debug, Parser)]
#[command(name = "keelson-coordinator", version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator until it is told to stop.
    Serve(Serve),
    /// Forward connections from loopback to machines of the local provider. Started by the coordinator.
    #[command(hide = true)]
    LocalForwarder {
        /// The state directory.
        #[arg(long)]
        state_dir: PathBuf,
    },
}

/// How to run the coordinator.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where state is kept. Only one coordinator at a time can use it.
    #[arg(long, env = "KEELSON_STATE_DIR")]
    pub(crate) state_dir: PathBuf,
    /// Digest of a node image to offer. Repeat for several releases; the first is the default.
    #[arg(long = "image", required = true)]
    pub(crate) images: Vec<String>,
    /// Port of the HTTPS API on loopback; 0 takes a free one and keeps it.
    #[arg(long, default_value_t = 0)]
    pub(crate) api_port: u16,
    /// UDP port of the link to the agents.
    #[arg(long, default_value_t = 7443)]
    pub(crate) link_port: u16,
    /// For fault drills: gives each machine a disk in memory of so many bytes, which can be filled without harm to the host.
    /// Cannot be changed for an installation, and what is on the disks does not outlive the host's next boot.
    #[arg(long, value_name = "BYTES")]
    pub(crate) fault_disk_bytes: Option<u64>,
    /// Write logs as JSON lines.
    #[arg(long)]
    pub(crate) log_json: bool,
}
