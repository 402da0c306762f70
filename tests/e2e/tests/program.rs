//! The coordinator as a program: what it refuses, what it says, and what it leaves untouched. No machines are made.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use keelson_e2e::Lone;

/// Somebody without rights.
const NOBODY: u32 = 65_534;

/// Runs a coordinator that must refuse to start; returns what it said.
fn refused(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it started, and said: {said}");
    Ok(said)
}

fn says(said: &str, expected: &[&str]) -> Result<()> {
    for words in expected {
        ensure!(said.contains(words), "`{words}` is missing in: {said}");
    }
    Ok(())
}

#[test]
fn without_root_everything_that_is_missing_is_listed_with_a_remedy() -> Result<()> {
    let lone = Lone::new()?;
    // A copy where everybody may read: the build's own folder may be private.
    let program = lone.folder().join("coordinator");
    std::fs::copy(lone.program(), &program)?;
    std::fs::set_permissions(lone.folder(), std::fs::Permissions::from_mode(0o777))?;
    let mut command = Command::new(&program);
    command.args(["serve", "--image", lone.image(), "--state-dir"]).arg(lone.state_dir()).uid(NOBODY);
    says(&refused(&mut command)?, &["this host lacks what machines need", "root: ", "run as root"])?;
    ensure!(!lone.state_dir().exists(), "the state directory was made all the same");
    Ok(())
}

#[test]
fn missing_programs_are_listed_with_the_package_that_has_them() -> Result<()> {
    let lone = Lone::new()?;
    let programs = lone.folder().join("programs");
    std::fs::create_dir(&programs)?;
    for program in ["nft", "ip"] {
        std::os::unix::fs::symlink(find(program)?, programs.join(program))?;
    }
    let mut command = lone.command();
    command.env("PATH", &programs);
    let said = refused(&mut command)?;
    says(&said, &["runc: ", "apt-get install runc"])?;
    ensure!(!said.contains("apt-get install nftables"), "nft is there: {said}");
    Ok(())
}

fn find(program: &str) -> Result<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(program));
    folders.into_iter().find(|path| path.is_file()).with_context(|| format!("{program} is not installed"))
}

#[test]
fn a_port_that_is_taken_is_named() -> Result<()> {
    let lone = Lone::new()?;
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port().to_string();
    let mut command = lone.command();
    command.args(["--api-port", &port]);
    says(&refused(&mut command)?, &[&format!("port {port} of the API cannot be used"), "--api-port"])
}

#[test]
fn an_image_that_is_not_there_is_named_with_the_command_that_makes_it() -> Result<()> {
    let lone = Lone::new()?;
    let mut command = Command::new(lone.program());
    command.args(["serve", "--image", &"0".repeat(64), "--state-dir"]).arg(lone.state_dir());
    says(&refused(&mut command)?, &["there is no image", "cargo xtask image build"])
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() -> Result<()> {
    let lone = Lone::new()?;
    lone.start()?.stop()?;
    let damaged = vec![0x5a; 64 * 1024];
    std::fs::write(lone.store(), &damaged)?;
    says(&refused(&mut lone.command())?, &["keelson.db is damaged", "restore a backup"])?;
    ensure!(std::fs::read(lone.store())? == damaged, "the file was changed");
    Ok(())
}

#[test]
fn a_state_directory_of_a_newer_version_is_refused_and_left_as_it_is() -> Result<()> {
    let lone = Lone::new()?;
    lone.start()?.stop()?;
    let mut newer = std::fs::read(lone.store())?;
    // The user version in SQLite's header, where Keelson keeps the version of its tables
    // (https://www.sqlite.org/fileformat2.html, section 1.3).
    newer[60..64].copy_from_slice(&9_999_u32.to_be_bytes());
    std::fs::write(lone.store(), &newer)?;
    says(&refused(&mut lone.command())?, &["newer"])?;
    ensure!(std::fs::read(lone.store())? == newer, "the file was changed");
    Ok(())
}

#[test]
fn a_full_disk_ends_the_coordinator_and_nothing_that_was_answered_is_lost() -> Result<()> {
    let lone = Lone::on_small_disk()?;
    let running = lone.start()?;
    let protected = ["cluster", "create", "kept", "--plan", "tiny", "--dry-run"];
    ensure!(lone.keelson(&protected)?.status.success(), "a preview needs no room");
    lone.fill_disk()?;
    let create = ["cluster", "create", "lost", "--plan", "tiny", "--no-wait"];
    let refused = lone.keelson(&create)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success(), "a cluster was accepted that could not be written down");
    says(&said, &["do this"])?;
    let ended = running.wait()?;
    ensure!(!ended.success(), "it ended with {ended}");
    says(&lone.log()?, &["the store failed"])?;
    lone.free_disk()?;
    let running = lone.start()?;
    let shown = lone.keelson(&["cluster", "show", "lost"])?;
    ensure!(shown.status.code() == Some(3), "the refused cluster exists: {:?}", shown.status);
    running.stop()
}
