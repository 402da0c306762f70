//! A few seeds with every build, and every case that once broke a rule. Hundreds of seeds: `cargo xtask sim hunt`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::Path;

use keelson_sim::{Case, Fleet, Hunt, draw, hunt, run};

/// A fleet that a debug build plays in a second or two.
const FLEET: Fleet = Fleet { machines: 6, duration_ms: 10 * 60_000, faults: true };

/// Fewer cases than this, and some were lost.
const CASES_MIN: usize = 27;

#[test]
fn twenty_seeds_break_no_rule() {
    let report = hunt(&Hunt { from: 1, seeds: 20, fleet: FLEET, threads: 2 }, |outcome| {
        println!("seed {}: {:?}\n{}", outcome.seed, outcome.violation, outcome.last.join("\n"));
    });
    assert_eq!((report.seeds, report.violations), (20, 0));
    assert!(report.events > 50_000, "so few events test nothing: {}", report.events);
}

/// Whatever depends on an address, on the order of a hash map or on a clock shows here.
#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [1, 2, 3] {
        let case = draw(seed, FLEET);
        let (one, other) = (run(&case), run(&case));
        assert_eq!((one.sum, one.events), (other.sum, other.events), "seed {seed}");
        assert_ne!(one.sum, run(&draw(seed + 100, FLEET)).sum);
    }
}

#[test]
fn cases_that_once_broke_a_rule_break_none() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut played = 0;
    for file in files.filter(|path| path.extension().is_some_and(|end| end == "json")) {
        let case: Case = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let outcome = run(&case);
        let lines = outcome.last.join("\n");
        assert_eq!(outcome.violation, None, "{}\n{lines}", file.display());
        played += 1;
    }
    assert!(played >= CASES_MIN, "{played} cases are left");
}
