//! `/v1/machines/{id}/shell`: a terminal on a machine, over an upgraded connection.
//!
//! The request is an ordinary one with `Connection: Upgrade` and `Upgrade: keelson-shell`, so that everything that can
//! be refused is refused with a problem document. After `101` both sides speak `ShellFrame`s of the link protocol, of
//! which nothing is looked into here.

use axum::Extension;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_protocol::message::ShellFrame;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::Api;
use super::extract::{self, Json};
use crate::auth::Caller;
use crate::catalogue::Code;
use crate::fleet::ShellPipe;
use crate::frames::{read_frame, write_frame};
use crate::problem::{Problem, ProblemView};
use crate::types::ShellRequestBody;

/// How often a client is tried while a command says nothing.
const CLIENT_ASKED_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a client may take to stop sending once its command has ended.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(2);

/// The protocol that a connection is upgraded to.
pub const SHELL_PROTOCOL: &str = "keelson-shell";

/// Most arguments of a command, and most bytes of one: what a person types, with room.
const ARGUMENTS_MAX: usize = 256;
const ARGUMENT_BYTES_MAX: usize = 8 * 1024;

/// Opens a terminal on a machine. Needs HTTP/1.1 with `Connection: Upgrade` and `Upgrade: keelson-shell`.
#[utoipa::path(post, path = "/v1/machines/{id}/shell", tag = "machines", request_body = ShellRequestBody,
    params(("id" = String, Path, description = "Id of the machine")),
    responses((status = 101, description = "Shell frames follow in both directions"),
        (status = "default", body = ProblemView, content_type = "application/problem+json")))]
pub(super) async fn shell(
    State(api): State<Api>,
    Path(id): Path<String>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
) -> Result<Response, Problem> {
    let id = extract::machine_id(&id)?;
    if !wants_upgrade(request.headers()) {
        return Err(Problem::from(Code::UpgradeMissing));
    }
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Problem::from(Code::UpgradeMissing));
    };
    let body: Json<ShellRequestBody> = Json::from_request(request, &()).await?;
    check(&body.value)?;
    let pipe = api.fleet.machine_shell(id, body.value, caller).await?;
    tokio::spawn(join(upgrade, pipe));
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(SHELL_PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let has = |name, token: &str| {
        let text = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, SHELL_PROTOCOL)
}

fn check(body: &ShellRequestBody) -> Result<(), Problem> {
    let long = body.command.iter().any(|argument| argument.len() > ARGUMENT_BYTES_MAX);
    if body.command.len() > ARGUMENTS_MAX || long || body.terminal.len() > 64 {
        let why = format!("at most {ARGUMENTS_MAX} arguments of {ARGUMENT_BYTES_MAX} bytes are allowed");
        return Err(Problem::new(Code::ParameterInvalid, why.clone()).field("command", why));
    }
    Ok(())
}

/// Passes bytes in both directions until the machine has said all it has to say. A machine whose command has ended takes
/// no more input, and a client whose input has ended still wants the output: neither ends the other direction.
async fn join(upgrade: OnUpgrade, pipe: Box<dyn ShellPipe>) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "a client left before its shell began");
            return;
        }
    };
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(upgraded));
    let (mut from_machine, mut to_machine) = tokio::io::split(pipe);
    let input = async {
        if let Err(error) = tokio::io::copy(&mut from_client, &mut to_machine).await {
            tracing::debug!(%error, "the input of a shell ended early");
        }
        // The machine ends the command, and with it the output, unless it has ended already.
        let _ = to_machine.shutdown().await;
        std::future::pending::<()>().await;
    };
    let output = async {
        if let Err(error) = relay_output(&mut from_machine, &mut to_client).await {
            tracing::debug!(%error, "a shell ended early");
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        biased;
        () = output => {}
        () = input => {}
    }
    // A socket that is closed with input unread takes back what was just sent: the rest is read, for a moment.
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(&mut from_client, &mut nowhere);
    let _ = tokio::time::timeout(FAREWELL, rest).await;
}

/// Passes frames of the machine on to the client, and an empty one when there was none for a while: a client that has
/// vanished is noticed by that alone when the command takes no input, because then nothing is read from it.
async fn relay_output(
    machine: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    loop {
        let mut next = std::pin::pin!(read_frame(machine));
        let frame = loop {
            tokio::select! {
                frame = &mut next => break frame?,
                () = tokio::time::sleep(CLIENT_ASKED_EVERY) => {
                    write_frame(client, &ShellFrame::Data(Vec::new())).await?;
                }
            }
        };
        match frame {
            Some(frame) => write_frame(client, &frame).await?,
            None => return Ok(()),
        }
    }
}
