//! How a command fails: a code of the catalogue, what, why, and what to do.

use std::fmt;

use keelson_api::problem::ProblemView;
use keelson_api::{Code, ExitCode, Problem};

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What a person or a script is told.
    pub(crate) problem: Box<ProblemView>,
    /// How the process ends.
    pub(crate) exit: ExitCode,
}

impl Failure {
    /// A failure of kind `code`.
    pub(crate) fn new(code: Code, what: impl Into<String>) -> Self {
        Problem::new(code, what).into()
    }

    /// The command line is not valid.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Code::CommandLine, what)
    }

    /// Something on this machine refused.
    pub(crate) fn local(what: impl Into<String>, why: &(dyn std::error::Error + 'static)) -> Self {
        Problem::new(Code::LocalIo, what).because_of(why).into()
    }

    /// A problem that the API answered with. Its code may be of a newer version; then the status decides.
    pub(crate) fn from_api(problem: ProblemView) -> Self {
        let exit = match problem.code.parse::<Code>() {
            Ok(code) => code.entry().exit,
            Err(_) => exit_of_status(problem.status),
        };
        Self { problem: Box::new(problem), exit }
    }

    /// The code, when this version knows it.
    pub(crate) fn code(&self) -> Option<Code> {
        self.problem.code.parse().ok()
    }
}

fn exit_of_status(status: u16) -> ExitCode {
    match status {
        401 | 403 => ExitCode::Denied,
        404 => ExitCode::NotFound,
        409 | 412 | 428 => ExitCode::Conflict,
        400..=499 => ExitCode::Usage,
        _ => ExitCode::Failed,
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { exit: problem.code().entry().exit, problem: Box::new(problem.view()) }
    }
}

impl fmt::Display for Failure {
    /// What / why / do this / more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.problem;
        writeln!(f, "error: {}", problem.detail)?;
        for cause in problem.causes.iter().filter(|cause| **cause != problem.detail) {
            writeln!(f, "  why:     {cause}")?;
        }
        for field in problem.fields.iter().filter(|field| field.message != problem.detail) {
            writeln!(f, "  where:   {}: {}", field.field, field.message)?;
        }
        writeln!(f, "  do this: {}", problem.remedy)?;
        write!(f, "  more:    keelson explain {}", problem.code)
    }
}
