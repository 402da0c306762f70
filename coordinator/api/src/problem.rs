//! Errors as clients see them: RFC 9457 problem documents with a stable code, causes and a remedy.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::catalogue::Code;

/// A problem document (RFC 9457) as it is sent and received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// Where the kind of problem is explained.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in a few words.
    pub title: String,
    /// HTTP status; 0 in the error of an operation.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The path that was asked for, or the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The code of the catalogue, `KEEL-` and four digits.
    pub code: String,
    /// Why, from near to far.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What to do.
    pub remedy: String,
    /// After how many seconds it may be worth asking again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// Which fields of the request are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldProblem>,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldProblem {
    /// Path of the field (`spec.workers`).
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// An error on its way to a client. Made only from a [`Code`] of the catalogue, so none can be without an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    code: Code,
    detail: String,
    causes: Vec<String>,
    remedy: Option<String>,
    instance: Option<String>,
    retry_after_s: Option<u32>,
    fields: Vec<FieldProblem>,
}

impl Problem {
    /// A problem of kind `code`; `detail` says what happened this time. Never put a secret into it.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            detail: detail.into(),
            causes: Vec::new(),
            remedy: None,
            instance: None,
            retry_after_s: None,
            fields: Vec::new(),
        }))
    }

    /// Adds why it happened: the next cause in the chain.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.0.causes.push(cause.to_string());
        self
    }

    /// Adds the whole chain of `error`.
    #[must_use]
    pub fn because_of(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.0.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Says what to do, more exactly than the catalogue can.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Names a field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.fields.push(FieldProblem { field: field.into(), message: message.into() });
        self
    }

    /// Says when it may be worth asking again.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// Names what it is about: a path, an operation.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.0.instance = Some(instance.into());
        self
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Its document.
    #[must_use]
    pub fn view(&self) -> ProblemView {
        let entry = self.0.code.entry();
        ProblemView {
            kind: format!("/v1/errors/{}", entry.name),
            title: entry.title.to_owned(),
            status: entry.status,
            detail: self.0.detail.clone(),
            instance: self.0.instance.clone(),
            code: entry.name.to_owned(),
            causes: self.0.causes.clone(),
            remedy: self.0.remedy.clone().unwrap_or_else(|| entry.remedy.to_owned()),
            retry_after_s: self.0.retry_after_s,
            fields: self.0.fields.clone(),
        }
    }
}

/// The problems that an implementation of [`crate::Fleet`] needs most.
impl Problem {
    /// No cluster of that name.
    #[must_use]
    pub fn cluster_not_found(name: &impl fmt::Display) -> Self {
        Self::new(Code::ClusterNotFound, format!("there is no cluster `{name}`"))
    }

    /// A cluster of that name exists.
    #[must_use]
    pub fn cluster_exists(name: &impl fmt::Display) -> Self {
        Self::new(Code::ClusterExists, format!("a cluster `{name}` exists already"))
            .remedy(format!("choose another name, or look at it: keelson cluster show {name}"))
    }

    /// The cluster is protected.
    #[must_use]
    pub fn deletion_protected(name: &impl fmt::Display) -> Self {
        Self::new(Code::DeletionProtected, format!("cluster `{name}` is protected from deletion"))
            .remedy(format!("switch it off first: keelson cluster update {name} --deletion-protection off"))
    }

    /// Another operation works on the cluster.
    #[must_use]
    pub fn cluster_busy(name: &impl fmt::Display, operation: &impl fmt::Display) -> Self {
        Self::new(Code::ClusterBusy, format!("operation {operation} works on cluster `{name}`"))
            .instance(format!("/v1/operations/{operation}"))
            .remedy(format!("wait for it: keelson operation watch {operation}"))
    }

    /// The cluster is on its way out.
    #[must_use]
    pub fn being_deleted(name: &impl fmt::Display) -> Self {
        Self::new(Code::ClusterBusy, format!("cluster `{name}` is being removed"))
            .remedy(format!("wait until it is gone: keelson wait cluster/{name} --for deleted"))
    }

    /// The cluster has no API server that answers yet.
    #[must_use]
    pub fn cluster_not_ready(name: &impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Code::ClusterNotReady, format!("cluster `{name}` is not that far yet"))
            .because(why)
            .retry_after_s(5)
    }

    /// No machine of that id.
    #[must_use]
    pub fn machine_not_found(id: &impl fmt::Display) -> Self {
        Self::new(Code::MachineNotFound, format!("there is no machine `{id}`"))
    }

    /// The agent of a machine is away.
    #[must_use]
    pub fn agent_away(id: &impl fmt::Display) -> Self {
        Self::new(Code::AgentAway, format!("the agent of machine `{id}` is not connected")).retry_after_s(5)
    }

    /// The agent of a machine refused.
    #[must_use]
    pub fn agent_refused(id: &impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Code::AgentRefused, format!("the agent of machine `{id}` refused")).because(why)
    }

    /// No operation of that id.
    #[must_use]
    pub fn operation_not_found(id: &impl fmt::Display) -> Self {
        Self::new(Code::OperationNotFound, format!("there is no operation `{id}`"))
    }

    /// The operation has ended.
    #[must_use]
    pub fn operation_ended(id: &impl fmt::Display) -> Self {
        Self::new(Code::OperationEnded, format!("operation {id} has ended already"))
    }

    /// The operation goes on; `why` says why, and what to do instead.
    #[must_use]
    pub fn operation_not_cancellable(id: &impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Code::OperationNotCancellable, format!("operation {id} cannot be cancelled")).because(why)
    }

    /// The key was used with another body.
    #[must_use]
    pub fn idempotency_key_reused() -> Self {
        Self::new(Code::IdempotencyKeyReused, "the Idempotency-Key was used for another request")
    }

    /// The object is in another state than the caller thinks.
    #[must_use]
    pub fn precondition_failed(current: &str) -> Self {
        Self::new(Code::PreconditionFailed, "the object is not in the state that the change was made for")
            .because(format!("its state now is {current}"))
    }

    /// A cluster cannot be made like this.
    #[must_use]
    pub fn spec_invalid(field: &str, why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(Code::SpecInvalid, why.clone()).field(field, why)
    }

    /// A name is not valid.
    #[must_use]
    pub fn name_invalid(field: &str, why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(Code::NameInvalid, why.clone()).field(field, why)
    }

    /// The installation offers no such plan; `known` are those that it does.
    #[must_use]
    pub fn plan_unknown(name: &impl fmt::Display, known: &[String]) -> Self {
        Self::new(Code::PlanUnknown, format!("there is no plan `{name}`"))
            .field("spec.plan", format!("choose one of: {}", known.join(", ")))
            .remedy(format!("choose one of: {}", known.join(", ")))
    }

    /// The installation knows no such release; `known` are those that it does.
    #[must_use]
    pub fn release_unknown(name: &impl fmt::Display, known: &[String]) -> Self {
        Self::new(Code::ReleaseUnknown, format!("there is no release `{name}`"))
            .field("spec.release", format!("choose one of: {}", known.join(", ")))
            .remedy(format!("choose one of: {}", known.join(", ")))
    }

    /// Something happened that should not. `error` goes into the causes: it must not hold a secret.
    #[must_use]
    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(Code::Internal, "the coordinator could not answer").because(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.detail)
    }
}

impl std::error::Error for Problem {}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self::new(code, code.entry().title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_makes_a_document_with_its_own_type_and_a_remedy() {
        for code in Code::ALL {
            let view = Problem::from(*code).view();
            assert_eq!(view.code.parse::<Code>().as_ref(), Ok(code));
            assert!(view.kind.ends_with(&view.code), "{}", view.kind);
            assert!(!view.remedy.is_empty());
        }
    }

    #[test]
    fn a_document_says_what_and_why_and_what_to_do() {
        let problem = Problem::cluster_exists(&"demo");
        let json = serde_json::to_value(problem.view()).unwrap();
        assert_eq!(json["type"], "/v1/errors/KEEL-2202");
        assert_eq!(json["status"], 409);
        assert_eq!(json["detail"], "a cluster `demo` exists already");
        assert_eq!(json["remedy"], "choose another name, or look at it: keelson cluster show demo");
    }
}
