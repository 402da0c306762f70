//! Every script in `scripts/` says what its golden text says. Rewritten with `KEELSON_UPDATE_GOLDEN=1`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::Path;

use keelson_sim::play;

/// Fewer scripts than this, and some were lost.
const SCRIPTS_MIN: usize = 13;

#[test]
fn scripts_say_what_they_said() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "txt")).collect();
    scripts.sort();
    assert!(scripts.len() >= SCRIPTS_MIN, "{scripts:?}");
    let mut wrong = Vec::new();
    for script in scripts {
        let said = play(&std::fs::read_to_string(&script).unwrap());
        let said = said.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let golden = script.with_extension("golden");
        if std::env::var_os("KEELSON_UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &said).unwrap();
        }
        if std::fs::read_to_string(&golden).ok().as_ref() != Some(&said) {
            wrong.push(script.display().to_string());
        }
    }
    assert!(
        wrong.is_empty(),
        "other than their golden texts; when that is right: KEELSON_UPDATE_GOLDEN=1 cargo test -p keelson-sim --test scripts: {wrong:#?}"
    );
}
