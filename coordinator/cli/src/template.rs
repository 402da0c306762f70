//! Paths into documents, and the templates and columns that are made of them, with kubectl's grammar.
//!
//! A template is text with `{...}` in it: a path (`{.status.state}`), a loop (`{range .items[*]}...{end}`, in which
//! paths begin at the item), or quoted text (`{"\n"}`). Columns and sorting take a path with or without braces and
//! leading dot. What a path does not find is nothing, not an error, as with `kubectl get`.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;
use serde_json_path::JsonPath;

/// Longest template, in bytes: what fits on a command line that a person can read.
const TEMPLATE_BYTES_MAX: usize = 16 * 1024;
/// Deepest loop in a loop: no document of the API is nested deeper.
const LOOPS_MAX: usize = 16;

/// Where something is in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(JsonPath);

/// A template of `-o jsonpath=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Path),
    Loop(Path, Vec<Part>),
}

/// Columns of `-o custom-columns=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns(Vec<(String, Path)>);

/// What is wrong with a template, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateError {
    why: String,
    /// Which character of the template, counted from 1.
    place: usize,
    /// What stands there.
    rest: String,
}

impl TemplateError {
    /// `at` is a byte of `text`.
    fn new(text: &str, at: usize, why: impl Into<String>) -> Self {
        let place = text[..at].chars().count() + 1;
        Self { why: why.into(), place, rest: text[at..].chars().take(30).collect() }
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at character {}", self.why, self.place)?;
        if self.rest.is_empty() { write!(f, " (the end)") } else { write!(f, " (before `{}`)", self.rest) }
    }
}

impl std::error::Error for TemplateError {}

impl Path {
    /// Reads `.spec.name`, `spec.name`, `{.spec.name}` or `$.spec.name`.
    pub(crate) fn relaxed(text: &str) -> Result<Self, TemplateError> {
        let braced = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let path = braced.unwrap_or(text);
        if path.starts_with(['.', '$', '@', '[']) {
            return Self::strict(text, path, usize::from(braced.is_some()));
        }
        let dotted = format!(".{path}");
        Self::strict(&dotted, &dotted, 0).map_err(|error| TemplateError::new(text, 0, error.why))
    }

    /// Reads a path as it stands at byte `at` of `whole`.
    fn strict(whole: &str, path: &str, at: usize) -> Result<Self, TemplateError> {
        if path.is_empty() {
            return Err(TemplateError::new(whole, at, "a path is expected, for example `.spec.name`"));
        }
        let standard = standard(path).map_err(|(offset, why)| TemplateError::new(whole, at + offset, why))?;
        let parsed = JsonPath::parse(&standard);
        parsed.map(Self).map_err(|_| TemplateError::new(whole, at, "this is no path of a document"))
    }

    fn find<'v>(&self, document: &'v Value) -> Vec<&'v Value> {
        self.0.query(document).all()
    }

    /// What is there, for sorting; the first when there are several.
    pub(crate) fn first<'v>(&self, document: &'v Value) -> Option<&'v Value> {
        self.find(document).first().copied().filter(|value| !value.is_null())
    }
}

/// Makes a path of RFC 9535 of one of kubectl's: there, a name after a dot may hold any sign, and `\.` is a dot in it.
fn standard(path: &str) -> Result<String, (usize, &'static str)> {
    let mut standard = "$".to_owned();
    let mut at = usize::from(path.starts_with(['$', '@']));
    if &path[at..] == "." {
        return Ok(standard);
    }
    while at < path.len() {
        let rest = &path[at..];
        if rest.starts_with('[') {
            let end = closing(rest, '[', ']').ok_or((at, "this `[` is not closed"))?;
            standard.push_str(&rest[..=end]);
            at += end + 1;
            continue;
        }
        let deep = rest.starts_with("..");
        let dots = if deep { 2 } else { 1 };
        if !rest.starts_with('.') {
            return Err((at, "`.` or `[` is expected"));
        }
        standard.push_str(if deep { ".." } else { "" });
        at += dots;
        let rest = &path[at..];
        if rest.starts_with('[') && deep {
            continue;
        }
        let (name, length) = name(rest);
        match name.as_str() {
            "" => return Err((at, "a name is missing after the dot")),
            "*" => standard.push_str("[*]"),
            name => standard.push_str(&format!("['{}']", name.replace('\\', "\\\\").replace('\'', "\\'"))),
        }
        at += length;
    }
    Ok(standard)
}

/// The name at the beginning of `rest`, and how many bytes it takes.
fn name(rest: &str) -> (String, usize) {
    let (mut name, mut escaped) = (String::new(), false);
    for (index, letter) in rest.char_indices() {
        match letter {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '.' | '[' if !escaped => return (name, index),
            _ => name.push(letter),
        }
        escaped = false;
    }
    (name, rest.len())
}

/// Byte of the sign that closes the one at the beginning of `text`; what is quoted does not count.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (index, letter) in text.char_indices() {
        match (letter, quote) {
            _ if escaped => escaped = false,
            ('\\', _) => escaped = true,
            (letter, Some(open_quote)) if letter == open_quote => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(letter),
            (letter, None) if letter == open => depth += 1,
            (letter, None) if letter == close => {
                depth -= 1;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            let why = format!("a template has at most {TEMPLATE_BYTES_MAX} bytes");
            return Err(TemplateError::new("", 0, why));
        }
        // The parts so far, innermost loop last, each with the path and the place of its beginning.
        let mut open: Vec<(Path, usize)> = Vec::new();
        let mut parts: Vec<Vec<Part>> = vec![Vec::new()];
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let plain = rest.find('{').unwrap_or(rest.len());
            if plain > 0 {
                push(&mut parts, Part::Text(rest[..plain].to_owned()));
                at += plain;
                continue;
            }
            let end = closing(rest, '{', '}')
                .ok_or_else(|| TemplateError::new(text, at, "this `{` is not closed"))?;
            let inside = &rest[1..end];
            let begin = at + 1 + (inside.len() - inside.trim_start().len());
            match Word::of(inside.trim()) {
                Word::Quoted(quoted) => {
                    let literal = unquote(quoted).map_err(|why| TemplateError::new(text, begin, why))?;
                    push(&mut parts, Part::Text(literal));
                }
                Word::Range(path) => {
                    if open.len() == LOOPS_MAX {
                        let why = format!("at most {LOOPS_MAX} loops stand in each other");
                        return Err(TemplateError::new(text, begin, why));
                    }
                    let path_at = begin + inside.trim().len() - path.len();
                    open.push((Path::strict(text, path, path_at)?, at));
                    parts.push(Vec::new());
                }
                Word::End => {
                    let no_loop = || TemplateError::new(text, at, "there is no `{range}` for this `{end}`");
                    let (path, _) = open.pop().ok_or_else(no_loop)?;
                    let inner = parts.pop().unwrap_or_default();
                    push(&mut parts, Part::Loop(path, inner));
                }
                Word::Path(path) => push(&mut parts, Part::Value(Path::strict(text, path, begin)?)),
            }
            at += end + 1;
        }
        match open.pop() {
            Some((_, at)) => Err(TemplateError::new(text, at, "there is no `{end}` for this `{range}`")),
            None => Ok(Self(parts.pop().unwrap_or_default())),
        }
    }

    /// The text for a document.
    pub(crate) fn render(&self, document: &Value) -> String {
        let mut text = String::new();
        render(&self.0, document, &mut text);
        text
    }
}

fn push(parts: &mut [Vec<Part>], part: Part) {
    if let Some(innermost) = parts.last_mut() {
        innermost.push(part);
    }
}

/// What stands between braces.
enum Word<'t> {
    Quoted(&'t str),
    Range(&'t str),
    End,
    Path(&'t str),
}

impl<'t> Word<'t> {
    fn of(inside: &'t str) -> Self {
        let range = inside.strip_prefix("range").filter(|path| path.starts_with(char::is_whitespace));
        match (inside, range) {
            ("end", _) => Self::End,
            (_, Some(path)) => Self::Range(path.trim_start()),
            (inside, None) if inside.starts_with(['"', '\'']) => Self::Quoted(inside),
            (inside, None) => Self::Path(inside),
        }
    }
}

fn unquote(quoted: &str) -> Result<String, &'static str> {
    let mut letters = quoted.chars();
    let quote = letters.next();
    let (mut text, mut closed) = (String::new(), false);
    while let Some(letter) = letters.next() {
        if closed {
            return Err("nothing may follow quoted text within braces");
        }
        match letter {
            '\\' => text.push(match letters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(sign @ ('\\' | '"' | '\'')) => sign,
                _ => return Err("after `\\` one of n t r \\ \" ' is expected"),
            }),
            letter if Some(letter) == quote => closed = true,
            letter => text.push(letter),
        }
    }
    if closed { Ok(text) } else { Err("this quote is not closed") }
}

fn render(parts: &[Part], document: &Value, text: &mut String) {
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Value(path) => text.push_str(&joined(&path.find(document), " ")),
            Part::Loop(path, inner) => path.find(document).iter().for_each(|item| render(inner, item, text)),
        }
    }
}

fn joined(values: &[&Value], between: &str) -> String {
    values.iter().map(|value| plain(value)).collect::<Vec<_>>().join(between)
}

/// Text as it is, nothing for null, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

impl Columns {
    /// Reads `NAME:.spec.name,STATE:.status.state`.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut columns = Vec::new();
        let mut at = 0;
        while at <= text.len() {
            let rest = &text[at..];
            let column = &rest[..column_end(rest)];
            let (head, path) = column.split_once(':').unwrap_or((column, ""));
            if head.is_empty() || path.is_empty() {
                return Err(TemplateError::new(
                    text,
                    at,
                    "a column is NAME:PATH, for example NAME:.spec.name",
                ));
            }
            let path_at = at + head.len() + 1;
            let parsed = Path::relaxed(path);
            let path = parsed.map_err(|error| TemplateError::new(text, path_at, error.why))?;
            columns.push((head.to_owned(), path));
            at += column.len() + 1;
        }
        Ok(Self(columns))
    }

    /// Names of the columns.
    pub(crate) fn heads(&self) -> Vec<&str> {
        self.0.iter().map(|(head, _)| head.as_str()).collect()
    }

    /// The cells for a document.
    pub(crate) fn cells(&self, document: &Value) -> Vec<String> {
        let cell = |(_, path): &(String, Path)| {
            let found = path.find(document);
            let nothing = found.iter().all(|value| value.is_null());
            if nothing { "<none>".to_owned() } else { joined(&found, ",") }
        };
        self.0.iter().map(cell).collect()
    }
}

/// Where the column at the beginning of `rest` ends: at a comma outside of brackets and quotes.
fn column_end(rest: &str) -> usize {
    let mut at = 0;
    while at < rest.len() {
        let tail = &rest[at..];
        if tail.starts_with(',') {
            break;
        }
        let inside = if tail.starts_with('[') { closing(tail, '[', ']') } else { None };
        at += inside.unwrap_or(0) + tail[inside.unwrap_or(0)..].chars().next().map_or(1, char::len_utf8);
    }
    at
}

/// Numbers by their size, text by its letters, what is absent last.
pub(crate) fn compare(one: Option<&Value>, other: Option<&Value>) -> Ordering {
    let kind = |value: Option<&Value>| match value {
        Some(Value::Bool(_)) => 0,
        Some(Value::Number(_)) => 1,
        Some(Value::String(_)) => 2,
        Some(Value::Array(_) | Value::Object(_)) => 3,
        Some(Value::Null) | None => 4,
    };
    match (one, other) {
        (Some(Value::Bool(one)), Some(Value::Bool(other))) => one.cmp(other),
        (Some(Value::Number(one)), Some(Value::Number(other))) => {
            let number = |number: &serde_json::Number| number.as_f64().unwrap_or(f64::NAN);
            number(one).total_cmp(&number(other))
        }
        (Some(Value::String(one)), Some(Value::String(other))) => one.cmp(other),
        _ => kind(one).cmp(&kind(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({ "kind": "ClusterList", "total": 2, "items": [
            { "name": "a", "labels": { "example.com/team": "web", "node-port": 1 }, "ready": true, "of": [1, 2] },
            { "name": "b", "labels": {}, "ready": false, "of": [], "none": null },
        ] })
    }

    #[test]
    fn templates_print_as_those_of_kubectl() {
        for (template, text) in [
            ("", ""),
            ("plain }", "plain }"),
            ("{.kind}", "ClusterList"),
            ("{$.kind}/{.total}", "ClusterList/2"),
            ("{.items[*].name}", "a b"),
            ("{.items[-1].name}{.items[0:1].ready}", "btrue"),
            ("{ .items[?(@.ready==true)].name }", "a"),
            ("{..name}", "a b"),
            ("{.items[0].of}", "[1,2]"),
            ("{.items[0]['name','ready']}", "a true"),
            (r"{.items[0].labels.example\.com/team}", "web"),
            ("{.items[0].labels.node-port}", "1"),
            ("{.none.at.all}{.items[1].none}", ""),
            (r#"{range .items[*]}{.name}{"\t"}{@.ready}{'\n'}{end}"#, "a\ttrue\nb\tfalse\n"),
            ("{range .items[*]}{.name}:{range .of[*]}{@},{end};{end}", "a:1,2,;b:;"),
            (r#"{"{\"}'"}"#, "{\"}'"),
            ("{.}", &document().to_string()),
        ] {
            let parsed = Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
            assert_eq!(parsed.render(&document()), text, "{template}");
        }
    }

    #[test]
    fn a_template_that_is_wrong_says_where() {
        for (template, place, why) in [
            ("ab{.kind", 3, "this `{` is not closed"),
            ("ü{kind}", 3, "`.` or `[`"),
            ("{.a..}", 6, "a name is missing"),
            ("{.a[}", 4, "this `[`"),
            ("{.a[1}", 4, "this `[`"),
            ("{.a[x]}", 2, "this is no path"),
            ("{range .a}x", 1, "there is no `{end}`"),
            ("x{end}", 2, "there is no `{range}`"),
            ("{range}", 2, "`.` or `["),
            ("{range a}", 8, "`.` or `["),
            (r#"{"\x"}"#, 2, "after `\\`"),
            (r#"{"a" "b"}"#, 2, "nothing may follow"),
            ("{}", 2, "a path is expected"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.why.starts_with(why), "{template}: {error}");
            assert_eq!(error.place, place, "{template}: {error}");
        }
        let deep = "{range .a}".repeat(LOOPS_MAX + 1);
        assert!(Template::parse(&deep).unwrap_err().why.contains("loops"));
        assert!(Template::parse(&"x".repeat(TEMPLATE_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn columns_are_read_with_and_without_braces_and_dots() {
        let columns = Columns::parse("A:.name,B:ready,C:{.of[*]},D:.items[?(@.x=='a,b')],E:.none").unwrap();
        assert_eq!(columns.heads(), ["A", "B", "C", "D", "E"]);
        assert_eq!(columns.cells(&document()["items"][0]), ["a", "true", "1,2", "<none>", "<none>"]);
        for (text, place) in
            [("", 1), ("A", 1), ("A:", 1), (":.a", 1), ("A:.a,B", 6), ("A:.a,", 6), ("A:.a[", 3)]
        {
            assert_eq!(Columns::parse(text).unwrap_err().place, place, "{text}");
        }
    }

    #[test]
    fn sorting_knows_numbers_and_puts_what_is_absent_last() {
        let mut values = [json!("b"), json!(null), json!(10), json!("a"), json!(9), json!(true)];
        values.sort_by(|one, other| compare(Some(one), Some(other)));
        assert_eq!(values, [json!(true), json!(9), json!(10), json!("a"), json!("b"), json!(null)]);
        assert_eq!(compare(None, Some(&json!(1))), Ordering::Greater);
    }
}
