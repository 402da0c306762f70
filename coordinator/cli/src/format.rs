//! How a result is printed: the value of `-o`.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::template::{Columns, Template};

/// How a result is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For people, with more columns.
    Wide,
    /// One JSON document (JSON lines with `--follow`), also for errors.
    Json,
    /// One YAML document, also for errors.
    Yaml,
    /// `kind/name`, one a line.
    Name,
    /// What a template makes of the document.
    JsonPath(Template),
    /// Columns of the user's choice.
    Columns(Columns),
}

/// Words of `-o`, with what they mean.
const WORDS: [(&str, &str); 7] = [
    ("table", "For people"),
    ("wide", "For people, with more columns"),
    ("json", "One JSON document (JSON lines with --follow), also for errors"),
    ("yaml", "One YAML document, also for errors"),
    ("name", "kind/name, one a line"),
    ("jsonpath=", "A template as of kubectl: jsonpath='{range .items[*]}{.spec.name}{\"\\n\"}{end}'"),
    ("custom-columns=", "Columns as of kubectl: custom-columns=NAME:.spec.name,STATE:.status.state"),
];

impl Format {
    /// Reads the value of `-o`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("jsonpath", template)) => {
                Template::parse(template).map(Self::JsonPath).map_err(|error| format!("jsonpath: {error}"))
            }
            Some(("custom-columns", columns)) => {
                Columns::parse(columns).map(Self::Columns).map_err(|error| format!("custom-columns: {error}"))
            }
            _ => match text {
                "table" => Ok(Self::Table),
                "wide" => Ok(Self::Wide),
                "json" => Ok(Self::Json),
                "yaml" => Ok(Self::Yaml),
                "name" => Ok(Self::Name),
                _ => Err(format!("choose one of: {}", WORDS.map(|(word, _)| word).join(", "))),
            },
        }
    }

    /// Whether the result is for a person.
    pub(crate) fn is_for_people(&self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Reads a [`Format`] for clap, and names the words for help and completion.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FormatParser;

impl TypedValueParser for FormatParser {
    type Value = Format;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<Format, clap::Error> {
        let text = value.to_string_lossy();
        Format::parse(&text).map_err(|why| {
            let message = format!("invalid value '{text}' for '--output': {why}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(WORDS.iter().map(|(word, help)| PossibleValue::new(*word).help(*help))))
    }
}
