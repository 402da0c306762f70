//! Commands on machines that the core's calls to clusters' etcd come down to.

use std::time::Duration;

use keelson_model::etcd::{EtcdAnswer, EtcdCall};
use keelson_planner::node::etcd_answer;
use keelson_protocol::errors::chain;
use keelson_protocol::message::{BulkRequest, ShellFrame};
use keelson_transport::SessionHandle;

/// How long a command may take with everything around it: etcd's own limit is three seconds.
const COMMAND_MAX: Duration = Duration::from_secs(10);
/// Most bytes of output that are kept: a list of members is a few kilobytes.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Most characters of a failed command's words that people see.
const FAILURE_CHARS_MAX: usize = 400;

/// Carries out a call to a cluster's etcd through the agent beside a member.
pub(crate) async fn etcd(
    session: &SessionHandle,
    call: &EtcdCall,
    commands: Vec<Vec<String>>,
) -> Result<EtcdAnswer, String> {
    let mut outputs = Vec::with_capacity(commands.len());
    for command in commands {
        let run = tokio::time::timeout(COMMAND_MAX, run(session, command)).await;
        outputs.push(run.map_err(|_| format!("no answer within {} s", COMMAND_MAX.as_secs()))??);
    }
    etcd_answer(call, &outputs)
}

/// Runs a command on a machine and returns what it printed.
async fn run(session: &SessionHandle, command: Vec<String>) -> Result<String, String> {
    let request = BulkRequest::Shell { command, terminal: String::new(), rows: 0, columns: 0 };
    let mut stream = session.open_bulk(request).await.map_err(|error| chain(&error))?;
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        let frame = stream.read_frame().await.map_err(|error| chain(&error))?;
        let Some(frame) = frame else { return Err("the machine ended the stream".to_owned()) };
        let kept = output.len() + errors.len();
        match frame {
            ShellFrame::Data(bytes) | ShellFrame::Error(bytes) if kept + bytes.len() > OUTPUT_BYTES_MAX => {
                return Err(format!("it printed more than {OUTPUT_BYTES_MAX} bytes"));
            }
            ShellFrame::Data(bytes) => output.extend(bytes),
            ShellFrame::Error(bytes) => errors.extend(bytes),
            ShellFrame::Exit { code: 0 } => return Ok(String::from_utf8_lossy(&output).into_owned()),
            ShellFrame::Exit { code } => return Err(failure(code, &errors)),
            ShellFrame::Resize { .. } | ShellFrame::EndOfInput => {}
        }
    }
}

/// What a failed command said, in one line: its last words are the reason.
fn failure(code: i32, errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.trim_start_matches("Error: ").chars().take(FAILURE_CHARS_MAX).collect();
    if last.is_empty() { format!("it ended with code {code}") } else { last }
}
