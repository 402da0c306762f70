//! A command on a pseudo terminal (pty(7)), or with pipes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use crate::{STARTS, blocking_while_wanted};

/// Gives the command the terminal as its controlling one; util-linux's, so that no unsafe code is needed here.
const SETSID: &str = "/usr/bin/setsid";
/// What a person gets who names no command.
const SHELL: [&str; 2] = ["/bin/bash", "-l"];

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The system has no terminal for us.
    #[error("no pseudo terminal could be opened")]
    Open(#[source] io::Error),
    /// The command could not be started.
    #[error("`{program}` could not be started")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running command with its terminal. Dropping it hangs up and kills the command.
#[derive(Debug)]
pub struct Terminal {
    master: AsyncFd<File>,
    child: Child,
}

impl Terminal {
    /// Starts `command`, or root's shell when it is empty.
    ///
    /// # Errors
    /// [`TerminalError`].
    pub async fn start(
        command: &[String],
        terminal: &str,
        rows: u16,
        columns: u16,
    ) -> Result<Self, TerminalError> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let (words, terminal) = (words_of(command), terminal.to_owned());
        let (master, child) = beside_the_loop(move || start(&size, &words, &terminal)).await?;
        let master = watched(File::from(master)).map_err(TerminalError::Open)?;
        Ok(Self { master, child })
    }

    /// Reads output; zero bytes when the command has closed its terminal. Cancel-safe.
    ///
    /// # Errors
    /// The system's.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::Read;
        loop {
            let mut ready = self.master.readable().await?;
            match ready.try_io(|master| master.get_ref().read(buffer)) {
                // What a terminal says whose other end is closed.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {
                    return Ok(0);
                }
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes keys. Not cancel-safe.
    ///
    /// # Errors
    /// The system's.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        while !bytes.is_empty() {
            let mut ready = self.master.writable().await?;
            match ready.try_io(|master| master.get_ref().write(bytes)) {
                Ok(written) => bytes = &bytes[written?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The user's terminal has another size.
    ///
    /// # Errors
    /// The system's.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Waits until the command has ended: its exit code, or 128 + n for signal n.
    ///
    /// # Errors
    /// The system's.
    pub async fn wait(&mut self) -> io::Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// Starts `command`, or root's shell when it is empty, with pipes as its three streams. Dropping it kills it.
///
/// # Errors
/// [`TerminalError::Start`].
pub async fn start_piped(command: &[String]) -> Result<Child, TerminalError> {
    let words = words_of(command);
    let mut child = Command::new(&words[0]);
    child.args(&words[1..]).env("HOME", "/root").current_dir("/").kill_on_drop(true);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child.process_group(0);
    beside_the_loop(move || spawn(child, &words)).await
}

fn words_of(command: &[String]) -> Vec<String> {
    if command.is_empty() { SHELL.map(str::to_owned).to_vec() } else { command.to_vec() }
}

/// Starts what is to be started: one after the other, as all programs of the agent, beside the loop.
async fn beside_the_loop<T: Send + 'static>(
    start: impl FnOnce() -> Result<T, TerminalError> + Send + 'static,
) -> Result<T, TerminalError> {
    let started = blocking_while_wanted(&STARTS, move |given_up| given_up.check().map(|()| start())).await;
    started.map_err(|error| TerminalError::Open(io::Error::other(error)))?
}

fn spawn(mut command: Command, words: &[String]) -> Result<Child, TerminalError> {
    command.spawn().map_err(|source| TerminalError::Start { program: words.join(" "), source })
}

/// Kills a command of [`start_piped`] that has not ended, with everything that it started.
pub fn kill_group(child: &Child) {
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
    if let Some(leader) = leader {
        // It may end just now.
        let _ = nix::sys::signal::killpg(leader, nix::sys::signal::Signal::SIGKILL);
    }
}

/// Lets the runtime tell when the terminal can be read or written.
#[allow(unsafe_code, reason = "tokio has no safe way to watch a file descriptor that is no socket")]
fn watched(master: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor and always returns the same one, and the `AsyncFd` owns the `File`: the
    // descriptor stays open as long as it is registered.
    unsafe { AsyncFd::register(master) }.map_err(io::Error::from)
}

/// Opens a terminal and starts a command on it. Nothing else may be started meanwhile: no command may hold an end that was
/// not given to it, or the terminal would never close.
fn start(size: &Winsize, words: &[String], terminal: &str) -> Result<(OwnedFd, Child), TerminalError> {
    let pair = openpty(Some(size), None).map_err(|error| TerminalError::Open(error.into()))?;
    let set =
        |end: &OwnedFd, what| nix::fcntl::fcntl(end, what).map_err(|error| TerminalError::Open(error.into()));
    let closes = || nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    set(&pair.master, closes())?;
    set(&pair.slave, closes())?;
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK;
    set(&pair.master, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    let copy = || pair.slave.try_clone().map(Stdio::from).map_err(TerminalError::Open);
    let mut command = Command::new(SETSID);
    command
        .args(["--ctty", "--wait"])
        .args(words)
        .env("TERM", terminal)
        .env("HOME", "/root")
        .current_dir("/");
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?).kill_on_drop(true);
    Ok((pair.master, spawn(command, words)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn output(terminal: &Terminal) -> String {
        let (mut text, mut buffer) = (Vec::new(), [0; 256]);
        loop {
            match terminal.read(&mut buffer).await.unwrap() {
                0 => return String::from_utf8(text).unwrap(),
                count => text.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[tokio::test]
    async fn a_command_has_a_controlling_terminal_of_the_right_size() {
        let script = "read line; echo got $line; stty size; echo $TERM; test -e /dev/tty && exit 7";
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let mut terminal = Terminal::start(&command, "vt100", 20, 70).await.unwrap();
        terminal.resize(21, 71).unwrap();
        terminal.write_all(b"keys\n").await.unwrap();
        assert_eq!(output(&terminal).await, "keys\r\ngot keys\r\n21 71\r\nvt100\r\n");
        assert_eq!(terminal.wait().await.unwrap(), 7);
    }
    #[tokio::test]
    async fn a_command_holds_no_terminal_of_another_one() {
        let first = Terminal::start(&["/bin/cat".to_owned()], "vt100", 20, 70).await.unwrap();
        let list = ["/bin/sh", "-c", "exec ls -l /proc/self/fd"].map(str::to_owned);
        let second = Terminal::start(&list, "vt100", 20, 200).await.unwrap();
        let text = output(&second).await;
        let held: Vec<&str> = text.lines().filter(|line| line.contains("ptmx")).collect();
        assert!(text.contains(" 2 -> /dev/pts/") && held.is_empty(), "{text}");
        drop(first);
    }
}
