//! Shape, word and colour of a state: never colour alone.

use keelson_api::types::ConditionState;
use keelson_check::Outcome;

use crate::session::Session;

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paint {
    colour: bool,
    unicode: bool,
}

impl Paint {
    /// What standard output can show.
    pub(crate) fn stdout(session: &Session) -> Self {
        Self::of(session, session.stdout_is_terminal)
    }

    /// What standard error can show.
    pub(crate) fn stderr(session: &Session) -> Self {
        Self::of(session, session.stderr_is_terminal)
    }

    fn of(session: &Session, terminal: bool) -> Self {
        let dumb = session.variable("TERM") == Some("dumb");
        let forced = session.variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let refused = session.variable("NO_COLOR").is_some();
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| session.variable(name));
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self { colour: !refused && (forced || (terminal && !dumb)), unicode: utf8 && !dumb }
    }

    /// Shape and word of a state, padded so that columns align.
    pub(crate) fn state(self, state: ConditionState) -> String {
        let (shape, ascii, colour) = match state {
            ConditionState::Ok => ("✓", "+", "32"),
            ConditionState::Progressing => ("…", "~", "36"),
            ConditionState::Bad => ("✗", "x", "31"),
            ConditionState::Unknown => ("?", "?", "33"),
        };
        let shape = if self.unicode { shape } else { ascii };
        self.coloured(&format!("{shape} {state:<11}"), colour)
    }

    /// Shape and word of what came of a check, padded so that columns align.
    pub(crate) fn outcome(self, outcome: Outcome) -> String {
        let (shape, ascii, word, colour) = match outcome {
            Outcome::Passed => ("✓", "+", "passed", "32"),
            Outcome::Failed => ("✗", "x", "failed", "31"),
            Outcome::Skipped => ("-", "-", "skipped", "33"),
        };
        let shape = if self.unicode { shape } else { ascii };
        self.coloured(&format!("{shape} {word:<7}"), colour)
    }

    /// Something that nobody may overlook.
    pub(crate) fn alarm(self, text: &str) -> String {
        self.coloured(text, "1;31")
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.coloured(text, "1")
    }

    fn coloured(self, text: &str, code: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
