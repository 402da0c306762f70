//! Bulk streams that the coordinator opens: the journal, the status, a terminal.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use keelson_agent_core::AgentStatus;
use keelson_host::{JournalRequest, Terminal, journal, kill_group, start_piped};
use keelson_protocol::errors::chain;
use keelson_protocol::message::{BulkRequest, ShellFrame};
use keelson_transport::settings::BULK_OPEN_TIMEOUT;
use keelson_transport::{BulkError, BulkReader, BulkStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tracing::{debug, info};

/// Largest piece of output in one frame, in bytes.
const PIECE_BYTES_MAX: usize = 8 * 1024;

/// Longest wait for a program: the coordinator hears why before it gives the stream up.
const START_TIMEOUT: Duration = BULK_OPEN_TIMEOUT.saturating_sub(Duration::from_secs(2));

/// Serves one stream until it ends. What it started ends with it.
pub(crate) async fn serve(request: BulkRequest, stream: BulkStream, status: AgentStatus) {
    info!(request = what(&request), "the coordinator opened a stream");
    let served = match request {
        BulkRequest::Journal { unit, lines, follow } => {
            send_journal(JournalRequest { unit, lines, follow }, stream).await
        }
        BulkRequest::Status => send_status(&status, stream).await,
        BulkRequest::Shell { command, terminal, .. } if terminal.is_empty() => {
            match in_time(START_TIMEOUT, stream.given_up(), start_piped(&command)).await {
                Ok(child) => run_piped(child, stream).await,
                Err(why) => stream.refuse(&why).await,
            }
        }
        BulkRequest::Shell { command, terminal, rows, columns } => {
            match in_time(
                START_TIMEOUT,
                stream.given_up(),
                Terminal::start(&command, &terminal, rows, columns),
            )
            .await
            {
                Ok(terminal) => run_shell(terminal, stream).await,
                Err(why) => stream.refuse(&why).await,
            }
        }
    };
    if let Err(error) = served {
        debug!(error = chain(&error), "a bulk stream broke off");
    }
}

fn what(request: &BulkRequest) -> &'static str {
    match request {
        BulkRequest::Journal { .. } => "journal",
        BulkRequest::Status => "status",
        BulkRequest::Shell { .. } => "shell",
    }
}

/// What a stream is about to carry, or why there is nothing, while the coordinator waits for it. A disk that hangs must not keep
/// the few streams that a machine has: how it is would be asked for in vain.
async fn in_time<T, E: Error>(
    within: Duration,
    given_up: impl Future<Output = ()>,
    start: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    tokio::select! {
        started = start => started.map_err(|error| chain(&error)),
        () = given_up => Err("nobody waits for it any more".to_owned()),
        () = tokio::time::sleep(within) => {
            Err(format!("its program did not start within {} s; the disk may hang", within.as_secs()))
        }
    }
}

async fn send_status(status: &AgentStatus, mut stream: BulkStream) -> Result<(), BulkError> {
    let text = serde_json::to_vec(status).unwrap_or_default();
    stream.accept().await?;
    // An error is the end of the session, which the peer knows by itself.
    if stream.write_all(&text).await.is_ok() {
        stream.finish();
    }
    Ok(())
}

async fn send_journal(request: JournalRequest, mut stream: BulkStream) -> Result<(), BulkError> {
    let mut child = match in_time(START_TIMEOUT, stream.given_up(), journal(&request)).await {
        Ok(child) => child,
        Err(why) => return stream.refuse(&why).await,
    };
    let Some(mut text) = child.stdout.take() else { return Ok(()) };
    stream.accept().await?;
    let (reader, mut writer) = stream.split();
    // biased: text that is there is sent before the peer's farewell is seen. Dropping the child ends it.
    tokio::select! {
        biased;
        copied = tokio::io::copy(&mut text, &mut writer) => if copied.is_ok() { writer.finish() },
        () = given_up(reader) => {}
    }
    Ok(())
}

/// Waits until the peer has given the stream up; one that only says that it has nothing to send has not.
async fn given_up(mut reader: BulkReader) {
    let mut nothing = [0; 16];
    loop {
        match reader.read(&mut nothing).await {
            Ok(0) => std::future::pending().await,
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

async fn run_shell(mut terminal: Terminal, mut stream: BulkStream) -> Result<(), BulkError> {
    stream.accept().await?;
    let (mut reader, mut writer) = stream.split();
    let given_up = writer.given_up();
    let output = async {
        let mut piece = vec![0; PIECE_BYTES_MAX];
        loop {
            match terminal.read(&mut piece).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => writer.write_frame(&ShellFrame::Data(piece[..count].to_vec())).await?,
            }
        }
    };
    let input = async {
        loop {
            match reader.read_frame().await? {
                Some(ShellFrame::Data(keys)) => {
                    if terminal.write_all(&keys).await.is_err() {
                        return Ok(());
                    }
                }
                Some(ShellFrame::Resize { rows, columns }) => {
                    if let Err(error) = terminal.resize(rows, columns) {
                        debug!(%error, "the terminal keeps its size");
                    }
                }
                // The user has gone, or says what does not belong here: the terminal is closed.
                Some(ShellFrame::Exit { .. } | ShellFrame::Error(_) | ShellFrame::EndOfInput) | None => {
                    return Err(BulkError::Ended);
                }
            }
        }
    };
    // biased: output first, so that the last words of a command that has ended are not lost. Neither loop is resumed.
    let ended: Result<(), BulkError> = tokio::select! {
        biased;
        ended = output => ended,
        ended = input => ended,
        () = given_up => Err(BulkError::Ended),
    };
    ended?;
    let code = terminal.wait().await.unwrap_or(-1);
    writer.write_frame(&ShellFrame::Exit { code }).await?;
    writer.finish();
    Ok(())
}

/// Runs a command whose streams carry bytes as they are: files go in and out unchanged.
async fn run_piped(mut child: Child, mut stream: BulkStream) -> Result<(), BulkError> {
    let (Some(stdin), Some(mut stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Ok(());
    };
    stream.accept().await?;
    let (reader, mut writer) = stream.split();
    let given_up = writer.given_up();
    let output = async {
        let (mut out, mut err) = (vec![0; PIECE_BYTES_MAX], vec![0; PIECE_BYTES_MAX]);
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            // Both reads are cancel-safe: what is not read now is read in the next turn.
            let frame = tokio::select! {
                read = stdout.read(&mut out), if out_open => match read {
                    Ok(0) | Err(_) => { out_open = false; continue }
                    Ok(count) => ShellFrame::Data(out[..count].to_vec()),
                },
                read = stderr.read(&mut err), if err_open => match read {
                    Ok(0) | Err(_) => { err_open = false; continue }
                    Ok(count) => ShellFrame::Error(err[..count].to_vec()),
                },
            };
            writer.write_frame(&frame).await?;
        }
        Ok::<(), BulkError>(())
    };
    // A command may close its output and still read its input: only its own end counts.
    let ended = async {
        output.await?;
        Ok::<_, BulkError>(child.wait().await.ok())
    };
    let mut stdin = Some(stdin);
    // biased: output first, so that the last words of a command that has ended are not lost. Neither loop is resumed.
    let ended = tokio::select! {
        biased;
        ended = ended => ended,
        gone = feed(&mut stdin, reader) => Err(gone),
        // Also while the command does not take its input, and nothing is read.
        () = given_up => Err(BulkError::Ended),
    };
    let status = match ended {
        Ok(status) => status,
        Err(gone) => {
            // Before its input is closed: a command must not take the loss of its user for the end of the input.
            kill_group(&child);
            return Err(gone);
        }
    };
    let code = status.and_then(|status| status.code().or_else(|| status.signal().map(|signal| 128 + signal)));
    writer.write_frame(&ShellFrame::Exit { code: code.unwrap_or(-1) }).await?;
    writer.finish();
    Ok(())
}

/// Passes input on. Ends only when the user has gone.
async fn feed(stdin: &mut Option<ChildStdin>, mut reader: BulkReader) -> BulkError {
    loop {
        match reader.read_frame().await {
            Ok(Some(ShellFrame::Data(bytes))) => {
                // A command that does not read its input may end all the same: then nobody wants the rest.
                if let Some(input) = stdin.as_mut()
                    && input.write_all(&bytes).await.is_err()
                {
                    *stdin = None;
                }
            }
            Ok(Some(ShellFrame::EndOfInput)) => *stdin = None,
            Ok(Some(ShellFrame::Resize { .. })) => {}
            Ok(Some(ShellFrame::Exit { .. } | ShellFrame::Error(_)) | None) => return BulkError::Ended,
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_start_keeps_no_stream() {
        let hangs = in_time(Duration::from_millis(1), pending(), pending::<Result<(), Infallible>>()).await;
        assert!(hangs.unwrap_err().contains("the disk may hang"));
        let nobody = in_time(START_TIMEOUT, ready(()), pending::<Result<(), Infallible>>()).await;
        assert!(nobody.unwrap_err().contains("nobody waits"));
        assert_eq!(in_time(START_TIMEOUT, pending(), ready(Ok::<_, Infallible>(7))).await, Ok(7));
    }
}
