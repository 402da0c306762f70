//! A coordinator without machines, in a state directory of its own, for tests of how it starts and ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{variable, wait_for};

/// Size of a disk that is soon full.
const SMALL_DISK: &str = "size=4m";
/// Bytes written at a time while a disk is filled.
const FILL_CHUNK: usize = 4 * 1024;

/// A place for a coordinator. What it made is removed when this value goes.
#[derive(Debug)]
pub struct Lone {
    folder: TempDir,
    program: PathBuf,
    keelson: PathBuf,
    image: String,
    disk: Option<PathBuf>,
}

/// A coordinator that runs. It is killed when this value goes.
#[derive(Debug)]
pub struct Running(Child);

impl Lone {
    /// An empty place.
    ///
    /// # Errors
    /// Without the programs that `cargo xtask test` builds.
    pub fn new() -> Result<Self> {
        Ok(Self {
            folder: tempfile::Builder::new().prefix("keelson-lone-").tempdir()?,
            program: variable("COORDINATOR")?.into(),
            keelson: variable("KEELSON")?.into(),
            image: variable("IMAGE")?,
            disk: None,
        })
    }

    /// A place whose state directory is on a disk of a few megabytes.
    ///
    /// # Errors
    /// As [`Lone::new`], and when the disk cannot be mounted.
    pub fn on_small_disk() -> Result<Self> {
        let mut lone = Self::new()?;
        let disk = lone.state_dir();
        std::fs::create_dir(&disk)?;
        mount(Some("small"), &disk, Some("tmpfs"), MsFlags::empty(), Some(SMALL_DISK))?;
        lone.disk = Some(disk);
        Ok(lone)
    }

    /// Its own folder; the state directory is in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the coordinator keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// The coordinator's store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state_dir().join("keelson.db")
    }

    /// The coordinator's program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The node image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The command that runs the coordinator here.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--image", &self.image, "--state-dir"]).arg(self.state_dir());
        command.stdin(Stdio::null());
        command
    }

    /// Starts the coordinator and waits until its API answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&self) -> Result<Running> {
        let log = File::options().append(true).create(true).open(self.folder().join("log"))?;
        let child = self.command().stdout(log.try_clone()?).stderr(log).spawn()?;
        let running = Running(child);
        wait_for("the coordinator to answer", || {
            let status = self.keelson(&["status"])?;
            ensure!(status.status.success(), "{}", self.log()?);
            Ok(())
        })?;
        Ok(running)
    }

    /// Runs `keelson` against this coordinator.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keelson(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.keelson);
        command.arg("--context").arg(self.state_dir().join("context.json")).args(arguments);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// What the coordinator has written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder().join("log"))?)
    }

    /// Leaves no byte free on the small disk.
    ///
    /// # Errors
    /// When it ends before the disk is full.
    pub fn fill_disk(&self) -> Result<()> {
        let mut file = File::create(self.filler()?)?;
        let error = loop {
            if let Err(error) = file.write_all(&[0; FILL_CHUNK]) {
                break error;
            }
        };
        ensure!(error.kind() == std::io::ErrorKind::StorageFull, "{error}");
        Ok(())
    }

    /// Takes away what [`Lone::fill_disk`] wrote.
    ///
    /// # Errors
    /// When there is nothing to take away.
    pub fn free_disk(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler()?)?)
    }

    fn filler(&self) -> Result<PathBuf> {
        Ok(self.disk.as_ref().context("this place has no small disk")?.join("filler"))
    }
}

impl Drop for Lone {
    #[expect(clippy::print_stderr, reason = "a test that cannot clean up says so")]
    fn drop(&mut self) {
        if let Err(error) = keelson_providers::local::destroy(&self.state_dir()) {
            eprintln!("{error}");
        }
        if let Some(disk) = &self.disk
            && let Err(error) = umount2(disk, MntFlags::MNT_DETACH)
        {
            eprintln!("{} stays mounted: {error}", disk.display());
        }
    }
}

impl Running {
    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// When it ends otherwise than well.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGTERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the coordinator ended with {status}");
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(mut self) -> Result<ExitStatus> {
        wait_for("the coordinator to end", || {
            ensure!(self.0.try_wait()?.is_some(), "it still runs");
            Ok(())
        })?;
        Ok(self.0.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
