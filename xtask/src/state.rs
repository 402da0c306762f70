//! Where an installation made by `up` keeps its state.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

/// Which installation.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateArgs {
    /// State directory of the installation; each has its own coordinator, network and machines.
    #[arg(long, env = "KEELSON_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// For an installation at `path`.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { state_dir: Some(path) }
    }

    /// The words that name this installation again: none for the usual one.
    pub(crate) fn flag(&self) -> String {
        self.state_dir.as_ref().map_or_else(String::new, |path| format!(" --state-dir {}", path.display()))
    }

    /// The directory, absolute. By default below the user's state directory (XDG base directory specification).
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        if let Some(path) = &self.state_dir {
            return std::path::absolute(path).context("the state directory's path is not usable");
        }
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let base = env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
        let base = base.context("there is no home directory; say where to keep state with --state-dir")?;
        Ok(base.join("keelson"))
    }
}
