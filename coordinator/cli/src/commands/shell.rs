//! `keelson machine shell`: keys go there, output comes back, the exit code is passed on.
//!
//! With a terminal on both ends the command gets one too. Without, its streams carry bytes as they are, so that files
//! can be piped in and out.

use std::io::Read;

use hyper::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use keelson_api::frames::{DATA_BYTES_MAX, read_frame, write_frame};
use keelson_api::router::SHELL_PROTOCOL;
use keelson_api::types::ShellRequestBody;
use keelson_api::{Code, ExitCode, Problem};
use keelson_protocol::message::ShellFrame;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::Work;
use crate::client::{Call, Client, segment};
use crate::failure::Failure;
use crate::terminal::{self, RawMode};

/// Frames that wait to be sent: a paste of some hundred KB.
const QUEUE: usize = 64;

/// Opens the shell and stays until it ends.
pub(super) async fn run(
    work: &mut Work<'_>,
    client: &mut Client,
    id: &str,
    command: Vec<String>,
) -> Result<ExitCode, Failure> {
    let what = command.first().map_or_else(|| "the shell".to_owned(), |program| format!("`{program}`"));
    let interactive = work.session.stdin_is_terminal && work.session.stdout_is_terminal;
    let (mut from, mut to) = tokio::io::split(open(work, client, id, command, interactive).await?);
    let raw = if interactive {
        Some(RawMode::enter().map_err(|error| Failure::local("the terminal cannot be made raw", &error))?)
    } else {
        None
    };
    let (frames, mut queue) = mpsc::channel(QUEUE);
    let failed_read = read_input(work, frames.clone());
    let mut unread = std::pin::pin!(async {
        match failed_read.await {
            Ok(error) => error,
            // The input came to its end.
            Err(_) => std::future::pending().await,
        }
    });
    if interactive {
        watch_size(frames);
    }
    let writer = tokio::spawn(async move {
        while let Some(frame) = queue.recv().await {
            if write_frame(&mut to, &frame).await.is_err() {
                break;
            }
        }
    });
    let unwritten =
        |error: std::io::Error| Failure::local("the output of the command cannot be written", &error);
    let ended = loop {
        // A failed read ends the loop, so nothing of a frame is missed that is still wanted.
        let frame = tokio::select! {
            frame = read_frame(&mut from) => frame,
            error = &mut unread => break Err(Failure::local("standard input cannot be read", &error)),
        };
        match frame {
            Ok(Some(ShellFrame::Data(bytes))) => {
                if let Err(error) = work.output().try_bytes(&bytes) {
                    break Err(unwritten(error));
                }
            }
            Ok(Some(ShellFrame::Exit { code })) => break Ok(code),
            Ok(Some(ShellFrame::Error(bytes))) => work.output().error_bytes(&bytes),
            Ok(Some(ShellFrame::Resize { .. } | ShellFrame::EndOfInput)) => {}
            Ok(None) => break Err(cut_short(id, &what).into()),
            Err(error) => break Err(cut_short(id, &what).because_of(&error).into()),
        }
    };
    writer.abort();
    drop(raw);
    work.session.passed_on = ended.as_ref().ok().map(|code| u8::try_from(*code & 0xff).unwrap_or(1));
    ended.map(|code| if code == 0 { ExitCode::Done } else { ExitCode::Failed })
}

/// Asks for the shell; the connection that comes back carries frames.
async fn open(
    work: &Work<'_>,
    client: &mut Client,
    id: &str,
    command: Vec<String>,
    interactive: bool,
) -> Result<TokioIo<Upgraded>, Failure> {
    let size = terminal::size().unwrap_or(terminal::Size { rows: 24, columns: 80 });
    let terminal = work.session.variable("TERM").unwrap_or("dumb");
    let terminal = if interactive { terminal.to_owned() } else { String::new() };
    let body = ShellRequestBody { command, terminal, rows: size.rows, columns: size.columns };
    let call = Call::post(format!("machines/{}/shell", segment(id)))
        .header("connection", "upgrade")
        .header("upgrade", SHELL_PROTOCOL)
        .json(&body);
    let response = client.send(&call).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::new(Code::UnexpectedAnswer, "the coordinator did not open a shell"));
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(|error| broken(&error))
}

/// The machine, its agent or the coordinator went away under the command.
fn cut_short(id: &str, what: &str) -> Problem {
    let what =
        format!("the connection to machine {id} ended under {what}; whether it has finished is not known");
    let remedy = format!("look at the machine before you do it again: keelson why {id}");
    Problem::new(Code::ShellCut, what).remedy(remedy)
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Problem::new(Code::Unreachable, "the connection to the shell broke").because_of(error).into()
}

/// Passes keys or input on from a thread of its own: a read of a terminal cannot be cancelled.
/// What comes back says that a read failed: the rest of the input is missing then, and must not be taken for its end.
fn read_input(work: &mut Work<'_>, frames: mpsc::Sender<ShellFrame>) -> oneshot::Receiver<std::io::Error> {
    let (failed, unread) = oneshot::channel();
    let Some(mut stdin) = work.session.stdin.take() else { return unread };
    std::thread::spawn(move || {
        let mut buffer = vec![0_u8; DATA_BYTES_MAX];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Err(error) => {
                    // The shell may have ended meanwhile.
                    let _ = failed.send(error);
                    return;
                }
                Ok(length) => {
                    if frames.blocking_send(ShellFrame::Data(buffer[..length].to_vec())).is_err() {
                        break;
                    }
                }
            }
        }
        // The shell may have ended meanwhile.
        let _ = frames.blocking_send(ShellFrame::EndOfInput);
    });
    unread
}

fn watch_size(frames: mpsc::Sender<ShellFrame>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            let Some(size) = terminal::size() else { continue };
            let frame = ShellFrame::Resize { rows: size.rows, columns: size.columns };
            if frames.send(frame).await.is_err() {
                break;
            }
        }
    });
}
