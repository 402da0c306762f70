//! `cargo xtask down`: removes what `up` made.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_images::CacheDir;
use keelson_providers::local;

use crate::coordinator::Coordinator;
use crate::state::StateArgs;

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Remove the caches of images and upstream parts too; the next `up` builds them again, which takes minutes.
    #[arg(long)]
    purge: bool,
}

/// Runs `cargo xtask down`.
pub(crate) fn run(args: &DownArgs) -> Result<()> {
    let state_dir = args.state.directory()?;
    if !nix::unistd::Uid::effective().is_root() {
        bail!("machines need root: run this as root, for example with sudo");
    }
    if state_dir.exists() {
        remove(&state_dir)?;
        eprintln!("removed coordinator, machines and network of {}", state_dir.display());
    } else {
        eprintln!("there is no installation in {}", state_dir.display());
    }
    if args.purge {
        let cache = CacheDir::from_environment()?;
        std::fs::remove_dir_all(cache.root()).context("could not remove the cache")?;
        eprintln!("removed the cache {}", cache.root().display());
    }
    Ok(())
}

/// Removes an installation: processes, machines, network, files.
pub(crate) fn remove(state_dir: &Path) -> Result<()> {
    Coordinator::of(state_dir).stop()?;
    local::destroy(state_dir)?;
    match std::fs::remove_dir_all(state_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", state_dir.display()))
        }
        _ => Ok(()),
    }
}
