//! The readable report, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use time::format_description::well_known::Rfc3339;

use crate::report::{Results, Verdict};

/// Longest reason, in characters.
const WHY_MAX: usize = 400;
/// How many of the slowest tests are named.
const SLOWEST: usize = 10;
/// A test is called slower than before when it takes this many times as long...
const SLOWER_FACTOR: f64 = 2.0;
/// ...and this many seconds longer.
const SLOWER_SECONDS: f64 = 30.0;

/// The report of a run.
pub(crate) fn write(results: &Results) -> String {
    let mut text = head(results);
    failures(&mut text, results);
    areas(&mut text, &results.tests);
    changes(&mut text, results);
    slowest(&mut text, &results.tests);
    text
}

/// A reason on one line.
pub(crate) fn one_line(why: &str) -> String {
    let line: String = why.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(WHY_MAX).collect()
}

fn head(results: &Results) -> String {
    let run = &results.run;
    let passed = results.tests.values().filter(|test| test.passed()).count();
    let started = run.started.format(&Rfc3339).unwrap_or_default();
    let minutes = run.seconds / 60.0;
    let mut text = format!(
        "{}, commit {}: **{passed} of {} passed**, {minutes:.0} minutes, {} side by side.\n",
        started.get(..10).unwrap_or_default(),
        run.commits.join(" and "),
        results.tests.len(),
        run.parallel
    );
    if !run.finished {
        text.push_str("\nThe run is not finished.\n");
    }
    for incident in &run.incidents {
        let _ = writeln!(text, "\nMeanwhile: {incident}.");
    }
    text
}

fn failures(text: &mut String, results: &Results) {
    let failed: Vec<_> = results.tests.iter().filter(|(_, test)| !test.passed()).collect();
    if failed.is_empty() {
        return;
    }
    text.push_str("\n| did not pass | state | seconds | reason |\n| --- | --- | ---: | --- |\n");
    for (name, test) in failed {
        let why = one_line(&test.why).replace('|', "\\|");
        let _ = writeln!(text, "| {name} | {} | {:.0} | {why} |", test.state, test.seconds);
    }
}

/// Figures for each special interest group, whose name every test begins with.
fn areas(text: &mut String, tests: &BTreeMap<String, Verdict>) {
    let mut areas: BTreeMap<&str, (usize, usize, f64)> = BTreeMap::new();
    for (name, test) in tests {
        let area =
            name.strip_prefix('[').and_then(|name| name.split_once(']')).map_or("other", |(area, _)| area);
        let (passed, all, seconds) = areas.entry(area).or_default();
        *passed += usize::from(test.passed());
        *all += 1;
        *seconds += test.seconds;
    }
    text.push_str("\n| area | passed | of | minutes of tests |\n| --- | ---: | ---: | ---: |\n");
    for (area, (passed, all, seconds)) in areas {
        let _ = writeln!(text, "| {area} | {passed} | {all} | {:.1} |", seconds / 60.0);
    }
}

/// What differs from the results before.
fn changes(text: &mut String, results: &Results) {
    let mut lines = String::new();
    for (name, now) in &results.tests {
        let Some(before) = results.before.get(name) else { continue };
        let slower =
            now.seconds > before.seconds * SLOWER_FACTOR && now.seconds > before.seconds + SLOWER_SECONDS;
        if before.state != now.state {
            let _ = writeln!(lines, "- {name}: was {}, is {}", before.state, now.state);
        } else if now.passed() && slower {
            let _ = writeln!(lines, "- {name}: took {:.0} s, takes {:.0} s", before.seconds, now.seconds);
        }
    }
    if !lines.is_empty() {
        let _ = write!(text, "\nCompared with the results before:\n\n{lines}");
    }
}

fn slowest(text: &mut String, tests: &BTreeMap<String, Verdict>) {
    let mut tests: Vec<_> = tests.iter().collect();
    tests.sort_by(|(_, one), (_, other)| other.seconds.total_cmp(&one.seconds));
    text.push_str("\n| slowest | seconds |\n| --- | ---: |\n");
    for (name, test) in tests.into_iter().take(SLOWEST) {
        let _ = writeln!(text, "| {name} | {:.0} |", test.seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_short_line() {
        assert_eq!(one_line(" a\n  b\t c "), "a b c");
        assert_eq!(one_line(&"x".repeat(1000)).len(), WHY_MAX);
    }

    #[test]
    fn areas_are_counted() {
        let test = |state: &str| Verdict { state: state.to_owned(), seconds: 30.0, why: String::new() };
        let tests = BTreeMap::from([
            ("[sig-a] one".to_owned(), test("passed")),
            ("[sig-a] two".to_owned(), test("failed")),
            ("[sig-b] one".to_owned(), test("passed")),
        ]);
        let mut text = String::new();
        areas(&mut text, &tests);
        assert!(text.ends_with("| sig-a | 1 | 2 | 1.0 |\n| sig-b | 1 | 1 | 0.5 |\n"), "{text}");
    }
}
