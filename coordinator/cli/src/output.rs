//! The only place that writes: results to standard output, everything else to standard error.

use std::io::Write;

use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::Failure;
use crate::format::Format;
use crate::session::Session;
use crate::table::{Table, one_line};
use crate::template::Columns;

/// The two streams and the format of results.
pub(crate) struct Output<'a> {
    session: &'a mut Session,
    format: Format,
    /// Whether tables have heads.
    heads: bool,
}

impl<'a> Output<'a> {
    /// Writes to the session's streams.
    pub(crate) fn new(session: &'a mut Session, format: Format) -> Self {
        Self { session, format, heads: true }
    }

    /// Writes to the session's streams as the global flags say.
    pub(crate) fn of(session: &'a mut Session, global: &Global) -> Self {
        Self { session, format: global.output.clone(), heads: !global.no_headers }
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
        let _ = self.try_bytes(bytes);
    }

    /// As [`Output::bytes`], for content of which nothing may be missing unnoticed.
    pub(crate) fn try_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.session.stdout.write_all(bytes).and_then(|()| self.session.stdout.flush())
    }

    /// Error output of a command on a machine, as it came.
    pub(crate) fn error_bytes(&mut self, bytes: &[u8]) {
        let _ = self.session.stderr.write_all(bytes).and_then(|()| self.session.stderr.flush());
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
        let text = match &self.format {
            Format::Json => pretty_json(document),
            Format::Yaml => serde_norway::to_string(document).unwrap_or_default(),
            Format::Name => names.join("\n"),
            Format::Table => people(false),
            Format::Wide => people(true),
            Format::JsonPath(template) => return self.as_it_is(&template.render(&value(document))),
            Format::Columns(columns) => chosen_columns(columns, &value(document)).render(self.heads),
        };
        if !text.is_empty() {
            self.text(&text);
        }
    }

    /// What a template made: nothing is added at its end, as with kubectl. A terminal gets no control characters but
    /// line breaks and tabs, because values may come from machines.
    fn as_it_is(&mut self, text: &str) {
        let safe = |letter: char| letter == '\n' || letter == '\t' || !letter.is_control();
        if self.session.stdout_is_terminal {
            let text: String = text.chars().map(|letter| if safe(letter) { letter } else { ' ' }).collect();
            self.bytes(text.as_bytes());
        } else {
            self.bytes(text.as_bytes());
        }
    }

    /// A list: as [`Output::document`], and a hint when it is empty.
    pub(crate) fn list<T: Serialize>(
        &mut self,
        document: &T,
        names: &[String],
        empty: &str,
        table: impl FnOnce(bool) -> Table,
    ) {
        if names.is_empty() && self.format.is_for_people() {
            self.hint(empty);
            return;
        }
        let heads = self.heads;
        self.document(document, names, |wide| table(wide).render(heads));
    }

    /// One document of a stream of them: a line where the format has lines. `people` makes the line for people.
    pub(crate) fn streamed<T: Serialize>(
        &mut self,
        document: &T,
        name: &str,
        people: impl FnOnce(bool) -> String,
    ) {
        match &self.format {
            Format::Json => {
                let line = serde_json::to_string(document).unwrap_or_default();
                self.text(&line);
            }
            Format::Yaml => {
                let text = format!("---\n{}", serde_norway::to_string(document).unwrap_or_default());
                self.text(&text);
            }
            Format::Columns(columns) => {
                let line = columns.cells(&value(document)).join("  ");
                self.text(&one_line(&line));
            }
            Format::Name => self.text(name),
            Format::Table => self.text(&one_line(&people(false))),
            Format::Wide => self.text(&one_line(&people(true))),
            Format::JsonPath(template) => {
                let text = template.render(&value(document));
                self.as_it_is(&text);
            }
        }
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
            Format::Table | Format::Wide | Format::Name | Format::JsonPath(_) | Format::Columns(_) => {}
        }
    }
}

fn value<T: Serialize>(document: &T) -> Value {
    serde_json::to_value(document).unwrap_or_default()
}

/// A row for each item of a list; one row for any other document.
fn chosen_columns(columns: &Columns, document: &Value) -> Table {
    let mut table = Table::new(&columns.heads());
    let list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document["items"].as_array().filter(|_| list) {
        Some(items) => items.iter().for_each(|item| table.row(columns.cells(item))),
        None => table.row(columns.cells(document)),
    }
    table
}

fn pretty_json<T: Serialize>(document: &T) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default()
}
