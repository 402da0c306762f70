//! The error catalogue: every code that Keelson can answer with, in one table.
//!
//! Codes are stable for ever: one is never reused, and its meaning never changes. The API puts the code into each
//! problem document, the command line prints it and explains it offline (`keelson explain KEEL-2201`).
//!
//! Ranges: 1xxx the command line and its connection, 20xx requests, 21xx specs, 22xx clusters, 23xx machines, 24xx
//! operations, 25xx plans and releases, 3xxx the coordinator itself, 4xxx what a plan can wait for.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

#[path = "catalogue_table.rs"]
mod table;

pub use table::Code;

/// How a command of `keelson` ends. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or equal.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the request is not valid.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// Login is needed, or the caller may not do this.
    Denied = 4,
    /// The wait ended; the operation goes on.
    Timeout = 5,
    /// The operation is blocked until a person acts.
    Blocked = 6,
    /// A guard refused.
    Refused = 7,
    /// Something else changed it meanwhile, or it exists already.
    Conflict = 8,
    /// There are differences.
    Differences = 10,
    /// The coordinator could not be reached.
    Unreachable = 11,
    /// The user left; the operation goes on.
    Detached = 130,
}

impl ExitCode {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Denied,
        Self::Timeout,
        Self::Blocked,
        Self::Refused,
        Self::Conflict,
        Self::Differences,
        Self::Unreachable,
        Self::Detached,
    ];

    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it says, for `keelson help exit-codes`.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, or nothing differs",
            Self::Failed => "failed",
            Self::Usage => "the command line or the request is not valid",
            Self::NotFound => "what was named does not exist",
            Self::Denied => "login needed, or not allowed",
            Self::Timeout => "the wait timed out; the operation goes on",
            Self::Blocked => "blocked until a person acts; the reason is printed",
            Self::Refused => "refused by a guard",
            Self::Conflict => "conflict: it exists already, or something changed it meanwhile",
            Self::Differences => "there are differences (--dry-run --exit-code)",
            Self::Unreachable => "the coordinator could not be reached",
            Self::Detached => "detached with Ctrl-C; the operation goes on",
        }
    }
}

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// The code as people read it.
    pub name: &'static str,
    /// HTTP status of a problem with it; 0 for codes that only the command line uses.
    pub status: u16,
    /// How a command ends with it.
    pub exit: ExitCode,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Why it comes up.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// A command to try.
    pub example: &'static str,
}

/// A text that is no code of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not in the catalogue of this version")]
pub struct UnknownCode {
    /// The text.
    pub text: String,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.entry().name)
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    /// Takes `KEEL-2201`, `keel-2201` and `2201`.
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let upper = text.trim().to_ascii_uppercase();
        let name = if upper.starts_with("KEEL-") { upper } else { format!("KEEL-{upper}") };
        let found = Self::ALL.iter().find(|code| code.entry().name == name);
        found.copied().ok_or_else(|| UnknownCode { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            let entry = code.entry();
            assert_eq!(entry.code, *code);
            assert!(seen.insert(entry.name), "{} is used twice", entry.name);
            let digits = entry.name.strip_prefix("KEEL-").expect("every code begins with KEEL-");
            assert!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()), "{}", entry.name);
            assert_eq!(entry.name.parse::<Code>().as_ref(), Ok(code));
            assert_eq!(digits.parse::<Code>().as_ref(), Ok(code));
        }
    }

    #[test]
    fn every_entry_has_cause_remedy_and_example() {
        for code in Code::ALL {
            let entry = code.entry();
            for (what, text) in [("title", entry.title), ("cause", entry.cause), ("remedy", entry.remedy)] {
                assert!(text.len() > 5, "{code}: {what} is too short");
                assert!(!text.ends_with(' '), "{code}: {what} ends with a space");
            }
            assert!(entry.example.starts_with("keelson"), "{code}: the example is a command");
            assert!(entry.status == 0 || (400..600).contains(&entry.status), "{code}: {}", entry.status);
        }
    }

    #[test]
    fn exit_codes_agree_with_statuses() {
        for code in Code::ALL {
            let entry = code.entry();
            let expected = match entry.status {
                400 | 405 | 413 | 415 | 422 | 426 => ExitCode::Usage,
                401 | 403 => ExitCode::Denied,
                404 => ExitCode::NotFound,
                412 | 428 => ExitCode::Conflict,
                _ => continue,
            };
            assert_eq!(entry.exit, expected, "{code}");
        }
    }

    #[test]
    fn unknown_codes_are_refused() {
        assert!("KEEL-0000".parse::<Code>().is_err());
        assert!("".parse::<Code>().is_err());
    }
}
