//! Link events as inputs of the core.

use keelson_coordinator_core::{Input, SessionId};
use keelson_protocol::message::ToCoordinator;
use keelson_transport::{LinkEvent, requested_key_fingerprint};

use crate::shell::Shell;

/// Gives one link event to the core. Handles of sessions and waiting enrolments stay with the shell.
pub(crate) fn input(shell: &mut Shell, event: LinkEvent) -> Input {
    match event {
        LinkEvent::Enrol { request, peer, reply } => {
            tracing::debug!(machine = %request.machine, %peer, "enrolment asked for");
            let id = shell.keep_enrolment(reply);
            let key_hash = requested_key_fingerprint(&request.signing_request).ok();
            Input::Enrol { id, key_hash, request }
        }
        LinkEvent::Opened { session, peer, address, hello } => {
            let id = SessionId(session.id().0);
            tracing::debug!(machine = %peer.machine, %address, session = id.0, "session opened");
            shell.keep_session(id, session);
            Input::Opened { session: id, machine: peer.machine, incarnation: peer.incarnation, hello }
        }
        LinkEvent::Heartbeat { session, heartbeat } => {
            Input::Heartbeat { session: SessionId(session.0), heartbeat }
        }
        LinkEvent::Message { session, message: ToCoordinator::RenewLink { signing_request } } => {
            let key_hash = requested_key_fingerprint(&signing_request).ok();
            Input::RenewLink { session: SessionId(session.0), signing_request, key_hash }
        }
        LinkEvent::Message { session, message } => Input::Message { session: SessionId(session.0), message },
        LinkEvent::Closed { session, why } => {
            let session = SessionId(session.0);
            shell.drop_session(session);
            Input::Closed { session, why }
        }
    }
}
