//! The committed description is the one that the handlers have.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_committed_description_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let current = keelson_api::router::openapi_json();
    if std::env::var_os("KEELSON_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == current,
        "docs/openapi.json is not what the handlers say; look at the difference, then run \
         `KEELSON_UPDATE_GOLDEN=1 cargo test -p keelson-api --test openapi`"
    );
}

#[test]
fn every_operation_is_described_with_its_errors() {
    let document: serde_json::Value = serde_json::from_str(&keelson_api::router::openapi_json()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(
                operation["description"].as_str().or(operation["summary"].as_str()).is_some(),
                "{method} {path}"
            );
            let monitoring = operation["tags"][0] == "monitoring";
            assert!(monitoring || operation["responses"]["default"].is_object(), "{method} {path}");
        }
    }
}
