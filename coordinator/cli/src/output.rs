//! The only place that writes: results to standard output, everything else to standard error.

use std::io::Write;

use serde::Serialize;
use serde_json::json;

use crate::args::Format;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::Table;

/// The two streams and the format of results.
pub(crate) struct Output<'a> {
    session: &'a mut Session,
    format: Format,
}

impl<'a> Output<'a> {
    /// Writes to the session's streams.
    pub(crate) fn new(session: &'a mut Session, format: Format) -> Self {
        Self { session, format }
    }

    /// A result that is text.
    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        if !text.ends_with('\n') {
            self.bytes(b"\n");
        }
    }

    /// A result that is bytes. A reader that went away (`| head`) is no error.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.session.stdout.write_all(bytes).and_then(|()| self.session.stdout.flush());
    }

    /// A hint, a warning, a sentence for people: standard error.
    pub(crate) fn hint(&mut self, text: &str) {
        let _ = writeln!(self.session.stderr, "{text}").and_then(|()| self.session.stderr.flush());
    }

    /// One document in the chosen format: `document` for programs, `names` or `people` otherwise.
    pub(crate) fn document<T: Serialize>(
        &mut self,
        document: &T,
        names: &[String],
        people: impl FnOnce(bool) -> String,
    ) {
        let text = match self.format {
            Format::Json => pretty_json(document),
            Format::Yaml => serde_norway::to_string(document).unwrap_or_default(),
            Format::Name => names.join("\n"),
            Format::Table => people(false),
            Format::Wide => people(true),
        };
        if !text.is_empty() {
            self.text(&text);
        }
    }

    /// A list: as [`Output::document`], and a hint when it is empty.
    pub(crate) fn list<T: Serialize>(
        &mut self,
        document: &T,
        names: &[String],
        headers: bool,
        empty: &str,
        table: impl FnOnce(bool) -> Table,
    ) {
        if names.is_empty() && matches!(self.format, Format::Table | Format::Wide) {
            self.hint(empty);
            return;
        }
        self.document(document, names, |wide| table(wide).render(headers));
    }

    /// One line of a stream of documents.
    pub(crate) fn json_line<T: Serialize>(&mut self, document: &T) {
        self.text(&serde_json::to_string(document).unwrap_or_default());
    }

    /// A failure: the document for programs, the sentences for people.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        self.hint(&failure.to_string());
        self.failure_document(failure);
    }

    /// The document of a failure, when the format asks for one.
    pub(crate) fn failure_document(&mut self, failure: &Failure) {
        let problem = &failure.problem;
        let mut error = json!({
            "code": problem.code,
            "message": problem.detail,
            "cause": problem.causes,
            "remedy": problem.remedy,
            "docs": format!("keelson explain {}", problem.code),
        });
        if !problem.fields.is_empty() {
            error["fields"] = json!(problem.fields);
        }
        if let Some(instance) = &problem.instance {
            error["instance"] = json!(instance);
        }
        let document = json!({ "error": error });
        match self.format {
            Format::Json => self.text(&pretty_json(&document)),
            Format::Yaml => self.text(&serde_norway::to_string(&document).unwrap_or_default()),
            Format::Table | Format::Wide | Format::Name => {}
        }
    }
}

fn pretty_json<T: Serialize>(document: &T) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default()
}
