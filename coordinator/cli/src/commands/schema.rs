//! `keelson explain cluster.spec.workers`: fields of the API's documents, from the description that is committed with
//! this program, so that it works offline.

use std::fmt::Write;

use keelson_api::{Code, Problem};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::table::Table;

/// The description of the API; a test of the API keeps it current.
const DESCRIPTION: &str = include_str!("../../../../docs/openapi.json");

/// Kinds that can be explained, with the schema of their document.
const KINDS: [(&str, &str); 6] = [
    ("cluster", "ClusterView"),
    ("machine", "MachineView"),
    ("operation", "OperationView"),
    ("plan", "PlanView"),
    ("release", "ReleaseView"),
    ("event", "EventView"),
];

/// Deepest chain of references and lists that is followed: the documents have three.
const STEPS_MAX: usize = 16;

/// Most characters of a description in the table of fields.
const SUMMARY_CHARS_MAX: usize = 80;

/// A field and what is below it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FieldView {
    api_version: &'static str,
    kind: &'static str,
    path: String,
    #[serde(rename = "type")]
    type_name: String,
    description: String,
    /// What it can be, when that is a list of words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    fields: Vec<FieldLine>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FieldLine {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    /// Whether every document has it.
    always: bool,
    description: String,
}

/// Whether a topic is a path rather than a code.
pub(super) fn is_path(topic: &str) -> bool {
    let first = topic.split('.').next().unwrap_or_default();
    topic.contains('.') || schema_of(first).is_some()
}

fn schema_of(kind: &str) -> Option<&'static str> {
    let singular = kind.strip_suffix('s').unwrap_or(kind);
    KINDS.iter().find(|(name, _)| *name == singular).map(|(_, schema)| *schema)
}

/// Explains the field at `path`.
pub(super) fn explain(path: &str) -> Result<FieldView, Failure> {
    let description: Value = serde_json::from_str(DESCRIPTION).unwrap_or_default();
    let schemas = &description["components"]["schemas"];
    let mut segments = path.split('.');
    let kind = segments.next().unwrap_or_default();
    let kinds = || KINDS.map(|(name, _)| name).join(", ");
    let root = schema_of(kind).ok_or_else(|| not_there(&format!("there is no kind `{kind}`"), &kinds()))?;
    let (mut at, mut text) = (&schemas[root], String::new());
    let mut walked = kind.to_owned();
    for segment in segments {
        let fields = fields(schemas, at);
        let of_map = fields.is_empty().then(|| map_values(schemas, at)).flatten();
        let found = fields.iter().find(|field| field.name == segment).map(|field| field.schema).or(of_map);
        at = found.ok_or_else(|| {
            let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            let what = format!("`{walked}` has no field `{segment}`");
            not_there(&what, &if names.is_empty() { walked.clone() } else { names.join(", ") })
        })?;
        text = own_text(at);
        walked = format!("{walked}.{segment}");
    }
    let inner = innermost(schemas, at);
    let text = if text.is_empty() { own_text(inner) } else { text };
    let words = inner["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let line = |field: &Field<'_>| {
        let own = own_text(field.schema);
        FieldLine {
            name: field.name.to_owned(),
            type_name: type_name(schemas, field.schema),
            always: field.always,
            description: if own.is_empty() { own_text(innermost(schemas, field.schema)) } else { own },
        }
    };
    Ok(FieldView {
        api_version: keelson_api::types::API_VERSION,
        kind: "FieldExplanation",
        path: walked,
        type_name: type_name(schemas, at),
        description: text,
        values: words.map(str::to_owned).collect(),
        fields: fields(schemas, at).iter().map(line).collect(),
    })
}

fn not_there(what: &str, choices: &str) -> Failure {
    Problem::new(Code::FieldNotThere, what).remedy(format!("choose of: {choices}")).into()
}

/// The explanation for people.
pub(super) fn text(field: &FieldView) -> String {
    let mut text = format!("{}  ({})\n\n  {}\n", field.path, field.type_name, field.description);
    if !field.values.is_empty() {
        let _ = writeln!(text, "  one of: {}", field.values.join(", "));
    }
    if field.fields.is_empty() {
        return text;
    }
    let mut table = Table::new(&["  FIELD", "TYPE", "ALWAYS", "WHAT IT IS"]);
    for line in &field.fields {
        let always = if line.always { "yes" } else { "no" };
        let summary = summary(&line.description);
        table.row(vec![format!("  {}", line.name), line.type_name.clone(), always.to_owned(), summary]);
    }
    text + "\n" + &table.render(true)
}

/// The first sentence, or as much of it as fits.
fn summary(description: &str) -> String {
    let sentence = description.split_once(". ").map_or(description, |(first, _)| first);
    let short: String = sentence.chars().take(SUMMARY_CHARS_MAX).collect();
    if short.len() < sentence.len() { format!("{short}...") } else { short }
}

struct Field<'s> {
    name: &'s str,
    schema: &'s Value,
    always: bool,
}

/// A description on one line.
fn own_text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The schema that a reference, or a choice between it and null, leads to.
fn resolve<'s>(schemas: &'s Value, schema: &'s Value) -> &'s Value {
    let mut at = schema;
    for _ in 0..STEPS_MAX {
        let choice = at["oneOf"].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null"));
        let name = at["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        at = match (name, choice) {
            (Some(name), _) => &schemas[name],
            (None, Some(choice)) => choice,
            (None, None) => return at,
        };
    }
    at
}

/// As [`resolve`], through lists too.
fn innermost<'s>(schemas: &'s Value, schema: &'s Value) -> &'s Value {
    let mut at = resolve(schemas, schema);
    for _ in 0..STEPS_MAX {
        if !at["items"].is_object() {
            break;
        }
        at = resolve(schemas, &at["items"]);
    }
    at
}

fn map_values<'s>(schemas: &'s Value, schema: &'s Value) -> Option<&'s Value> {
    let values = &innermost(schemas, schema)["additionalProperties"];
    values.is_object().then_some(values)
}

/// Fields of an object, of the objects of a list, or of all objects that one is made of.
fn fields<'s>(schemas: &'s Value, schema: &'s Value) -> Vec<Field<'s>> {
    let schema = innermost(schemas, schema);
    let parts = schema["allOf"].as_array().into_iter().flatten();
    let mut all: Vec<Field<'s>> = parts.flat_map(|part| fields(schemas, part)).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let required = schema["required"].as_array().into_iter().flatten();
        let always = required.filter_map(Value::as_str).any(|required| required == name);
        all.push(Field { name, schema: property, always });
    }
    all.sort_by_key(|field| field.name);
    all
}

fn type_name(schemas: &Value, schema: &Value) -> String {
    let schema = resolve(schemas, schema);
    if schema["items"].is_object() {
        return format!("list of {}", type_name(schemas, &schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        return format!("map of {}", type_name(schemas, &schema["additionalProperties"]));
    }
    let several = schema["type"].as_array().and_then(|types| types.iter().find(|name| *name != "null"));
    match schema["type"].as_str().or(several.and_then(Value::as_str)) {
        Some("integer") => "number".to_owned(),
        Some("string") if schema["format"] == "date-time" => "time".to_owned(),
        Some(name) => name.to_owned(),
        None => "object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, type_name: &str, fields: &str) {
        let view = explain(path).unwrap_or_else(|failure| panic!("{path}: {failure}"));
        let names: Vec<&str> = view.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!((view.type_name.as_str(), names.join(" ").as_str()), (type_name, fields), "{path}");
        assert!(view.description.len() > 3, "{path} has no description");
        assert!(view.fields.iter().all(|field| !field.description.is_empty()), "{path}");
    }

    #[test]
    fn every_field_of_every_kind_can_be_explained() {
        fn walk(path: &str, depth: usize, seen: &mut usize) {
            *seen += 1;
            for field in explain(path).unwrap_or_else(|failure| panic!("{path}: {failure}")).fields {
                assert!(depth < STEPS_MAX, "{path} has no end");
                walk(&format!("{path}.{}", field.name), depth + 1, seen);
            }
        }
        let mut seen = 0;
        KINDS.iter().for_each(|(kind, _)| walk(kind, 0, &mut seen));
        assert!(seen > 150, "only {seen} fields");
    }

    #[test]
    fn references_lists_and_maps_are_followed() {
        check("cluster", "object", "apiVersion kind meta spec status");
        check("cluster.spec.workers", "number", "");
        check("clusters.spec.expose", "list of object", "name nodePort");
        check("cluster.spec.labels", "map of string", "");
        check("cluster.status.machines.agent", "object", "connected lastHeartbeatMs message since version");
        check("machine.facts.kernel", "string", "");
        check("operation.created", "time", "");
        check("release.components", "map of string", "");
        assert_eq!(explain("cluster.status.state").unwrap().values.len(), 6);
        assert_eq!(explain("release.components.etcd").unwrap().type_name, "string");
    }

    #[test]
    fn what_is_not_there_names_what_is() {
        for (path, remedy) in
            [("cluster.spec.worker", "workers"), ("pod.x", "cluster"), ("plan.name.x", "plan.name")]
        {
            let failure = explain(path).unwrap_err();
            assert_eq!(failure.code(), Some(Code::FieldNotThere));
            assert!(failure.problem.remedy.contains(remedy), "{path}: {}", failure.problem.remedy);
        }
        assert!(is_path("plans") && is_path("a.b") && !is_path("KEEL-2201") && !is_path("2201"));
    }
}
