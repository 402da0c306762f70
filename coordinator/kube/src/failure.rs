//! What an error of the library means for the caller.

use keelson_model::kubernetes::KubeFailure;
use keelson_model::kubernetes::short_why;
use keelson_protocol::errors::chain;
use kube::core::Status;

/// The failure of a call.
pub(crate) fn of(error: &kube::Error) -> KubeFailure {
    match error {
        kube::Error::Api(status) => of_status(status),
        // What came is not of an API server, or of one of another world: asking again brings the same.
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) | kube::Error::BuildRequest(_) => {
            KubeFailure::Refused { why: short_why(&chain(error)) }
        }
        _ => KubeFailure::Unreachable { why: short_why(&chain(error)) },
    }
}

fn of_status(status: &Status) -> KubeFailure {
    let why = said(status);
    match status.code {
        401 | 403 => KubeFailure::Denied { why },
        // A conflict, or a list that took so long that its beginning is forgotten: a fresh look helps.
        409 | 410 => KubeFailure::Busy { why },
        // Asked to slow down; and everything that goes wrong on its side.
        429 | 500.. => KubeFailure::Busy { why },
        _ => KubeFailure::Refused { why },
    }
}

/// What the API server said, with the causes that it names beside its message.
pub(crate) fn said(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes = causes.map(|cause| cause.message.as_str()).filter(|text| !text.is_empty());
    let parts: Vec<&str> = [status.message.as_str()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .chain(causes.filter(|cause| !status.message.contains(cause)))
        .collect();
    if parts.is_empty() {
        return format!("status {} {}", status.code, status.reason);
    }
    short_why(&parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_who_must_act() {
        let check = |code, needs_person| {
            let failure = of_status(&Status::failure("no", "").with_code(code));
            assert_eq!(failure.needs_person(), needs_person, "{code}: {failure}");
            assert!(!failure.remedy().is_empty());
        };
        check(401, true);
        check(403, true);
        check(409, false);
        check(410, false);
        check(422, true);
        check(429, false);
        check(500, false);
        check(503, false);
    }

    #[test]
    fn an_empty_message_is_told_by_its_code() {
        assert_eq!(said(&Status::failure("", "Gone").with_code(410)), "status 410 Gone");
    }
}
