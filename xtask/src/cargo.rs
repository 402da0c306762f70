//! Cargo, called by a program that cargo runs.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What cargo tells the program that it runs about that program's package.
const OF_OUR_PACKAGE: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// The cargo that runs us, in `directory`, as a shell would call it. There are build scripts that look at variables of
/// [`OF_OUR_PACKAGE`] (ring's does): with ours, each change between a shell and us would compile all that depends on them anew.
pub(crate) fn command(directory: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(directory);
    let ours = |name: &str| OF_OUR_PACKAGE.iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Runs cargo at the root of the tree; what it prints goes where ours goes.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    eprintln!("==> cargo {}", arguments.join(" "));
    let status = command(root).args(arguments).status().context("cargo cannot be started")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_our_package_is_passed_on() {
        let cargo = command(Path::new("/"));
        let removed: Vec<_> =
            cargo.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR"] {
            assert!(env::var_os(name).is_some() && removed.contains(&name.as_ref()), "{name}: {removed:?}");
        }
    }
}
