//! Label selectors, with the grammar of Kubernetes: `env=prod,tier!=web,zone in (a, b),team notin (x),gpu,!old`.
//!
//! Every requirement must hold. A key may have several values here (the roles of a machine): `=` and `in` hold when one
//! of them fits, `!=` and `notin` when none does, so also when the key is absent, as in Kubernetes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use keelson_model::spec::{LabelError, check_label_key, check_label_value};

/// Longest selector, in bytes: it travels in a query, of which servers and proxies take 8 KiB.
pub const SELECTOR_BYTES_MAX: usize = 4 * 1024;

/// Requirements that must all hold; none of them means everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

/// What is asked of the values of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    /// There is one.
    Exists,
    /// There is none.
    Absent,
    /// One of them is in the set.
    In(BTreeSet<String>),
    /// None of them is in the set.
    NotIn(BTreeSet<String>),
}

/// A text that is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}, at character {place} (before `{rest}`)")]
pub struct SelectorError {
    /// What is wrong.
    why: String,
    /// Which character, counted from 1.
    place: usize,
    /// What stands there, shortened.
    rest: String,
}

impl Selector {
    /// Whether all requirements hold, where `values` gives the values of a key.
    pub fn matches<'a>(&self, values: impl Fn(&str) -> Vec<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let values = values(&requirement.key);
            match &requirement.test {
                Test::Exists => !values.is_empty(),
                Test::Absent => values.is_empty(),
                Test::In(set) => values.iter().any(|value| set.contains(*value)),
                Test::NotIn(set) => !values.iter().any(|value| set.contains(*value)),
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, test }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let list = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match test {
                Test::Exists => write!(f, "{comma}{key}")?,
                Test::Absent => write!(f, "{comma}!{key}")?,
                Test::In(set) => write!(f, "{comma}{key} in ({})", list(set))?,
                Test::NotIn(set) => write!(f, "{comma}{key} notin ({})", list(set))?,
            }
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut scanner = Scanner { text, at: 0 };
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(scanner.wrong(format!("a selector has at most {SELECTOR_BYTES_MAX} bytes")));
        }
        let mut requirements = Vec::new();
        scanner.skip_space();
        while !scanner.rest().is_empty() {
            requirements.push(requirement(&mut scanner)?);
            if !scanner.take(",") && !scanner.rest().is_empty() {
                return Err(scanner.wrong("a comma or the end is expected"));
            }
        }
        Ok(Self(requirements))
    }
}

fn requirement(scanner: &mut Scanner<'_>) -> Result<Requirement, SelectorError> {
    if scanner.take("!") {
        return Ok(Requirement { key: key(scanner)?, test: Test::Absent });
    }
    let key = key(scanner)?;
    let test = if scanner.take("!=") {
        Test::NotIn(BTreeSet::from([value(scanner)?]))
    } else if scanner.take("==") || scanner.take("=") {
        Test::In(BTreeSet::from([value(scanner)?]))
    } else {
        let before = scanner.at;
        match scanner.word() {
            "in" => Test::In(set(scanner)?),
            "notin" => Test::NotIn(set(scanner)?),
            "" => Test::Exists,
            _ => {
                scanner.at = before;
                return Err(scanner.wrong("one of = == != in notin , or the end is expected"));
            }
        }
    };
    Ok(Requirement { key, test })
}

fn key(scanner: &mut Scanner<'_>) -> Result<String, SelectorError> {
    checked(scanner, check_label_key)
}

fn value(scanner: &mut Scanner<'_>) -> Result<String, SelectorError> {
    checked(scanner, check_label_value)
}

fn checked(
    scanner: &mut Scanner<'_>,
    check: fn(&str) -> Result<(), LabelError>,
) -> Result<String, SelectorError> {
    let before = scanner.at;
    let word = scanner.word();
    check(word).map_err(|error| {
        scanner.at = before;
        scanner.wrong(error.to_string())
    })?;
    Ok(word.to_owned())
}

fn set(scanner: &mut Scanner<'_>) -> Result<BTreeSet<String>, SelectorError> {
    if !scanner.take("(") {
        return Err(scanner.wrong("`(` and a list of values are expected"));
    }
    let mut values = BTreeSet::new();
    loop {
        values.insert(value(scanner)?);
        if scanner.take(")") {
            return Ok(values);
        }
        if !scanner.take(",") {
            return Err(scanner.wrong("a comma or `)` is expected"));
        }
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `token` with the space behind it, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let comes = self.rest().starts_with(token);
        if comes {
            self.at += token.len();
            self.skip_space();
        }
        comes
    }

    /// Everything up to the next sign of the grammar, which may be nothing.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let ends = |letter: char| letter.is_whitespace() || "=!,()".contains(letter);
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len();
        self.skip_space();
        word
    }

    fn wrong(&self, why: impl Into<String>) -> SelectorError {
        let place = self.text[..self.at].chars().count() + 1;
        SelectorError { why: why.into(), place, rest: self.rest().chars().take(20).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, &str); 3] = [("one", "env=prod,tier=web"), ("two", "env=dev,gpu="), ("three", "")];

    fn check(selector: &str, chosen: &[&str]) {
        let parsed: Selector = selector.parse().unwrap();
        assert_eq!(parsed.to_string().parse::<Selector>().as_ref(), Ok(&parsed), "{selector}");
        let matches = |labels: &str| {
            let pairs: Vec<(&str, &str)> =
                labels.split(',').filter_map(|pair| pair.split_once('=')).collect();
            parsed.matches(|key| pairs.iter().filter(|(k, _)| *k == key).map(|(_, value)| *value).collect())
        };
        let found: Vec<&str> =
            ALL.iter().filter(|(_, labels)| matches(labels)).map(|(name, _)| *name).collect();
        assert_eq!(found, chosen, "{selector}");
    }

    #[test]
    fn selectors_choose_as_in_kubernetes() {
        check("", &["one", "two", "three"]);
        check("env", &["one", "two"]);
        check("!env", &["three"]);
        check("env=prod", &["one"]);
        check(" env == prod , tier = web ", &["one"]);
        check("env!=prod", &["two", "three"]);
        check("env in (prod, dev),!gpu", &["one"]);
        check("env notin (prod)", &["two", "three"]);
        check("gpu=", &["two"]);
        check("gpu in (,yes)", &["two"]);
        check("in in (in)", &[]);
        check("env,", &["one", "two"]);
    }

    #[test]
    fn a_key_with_several_values_holds_by_any_of_them() {
        let roles = |_: &str| vec!["etcd", "master"];
        for (selector, holds) in
            [("role=etcd", true), ("role!=etcd", false), ("role in (worker)", false), ("role!=worker", true)]
        {
            assert_eq!(selector.parse::<Selector>().unwrap().matches(roles), holds, "{selector}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (selector, place, why) in [
            ("env=prod tier", 10, "a comma or the end"),
            ("env > 3", 5, "one of = =="),
            ("env=a b", 7, "a comma"),
            ("env in prod", 8, "`(`"),
            ("env in (a", 10, "a comma or `)`"),
            ("=x", 1, "the name has"),
            ("!", 2, "the name has"),
            ("a.B/c=d", 1, "in front of `/`"),
            ("env=-", 5, "the value `-`"),
            (",", 1, "the name has"),
        ] {
            let error = selector.parse::<Selector>().unwrap_err();
            assert_eq!(error.place, place, "{selector}: {error}");
            assert!(error.to_string().starts_with(why), "{selector}: {error}");
        }
        assert!("x".repeat(SELECTOR_BYTES_MAX + 1).parse::<Selector>().is_err());
    }
}
