//! A typed unit becomes the text of a systemd unit file (systemd.unit(5), systemd.service(5), systemd.exec(5)).
//!
//! Nothing here interprets a value: every argument arrives at the program byte by byte as the config has it.

use std::fmt::Write as _;

use keelson_protocol::config::{Hardening, UnitKind, UnitSpec};

/// Where unit files are written: in memory, because the root may be read-only; a reboot loses them, and the agent
/// writes them again from its ledger.
pub const UNIT_DIRECTORY: &str = "/run/systemd/system";

/// Path of a unit's file.
pub(crate) fn path(unit: &str) -> String {
    format!("{UNIT_DIRECTORY}/{unit}")
}

/// Mode of a unit's folders when they are made: a server's hold what only it may read (etcd insists on it); those of
/// programs that manage the machine hold what containers reach into.
pub(crate) fn directory_mode(unit: &UnitSpec) -> u32 {
    match unit.hardening {
        Hardening::Server => 0o700,
        Hardening::Host => 0o755,
    }
}

/// Renders `unit`. A check has no text: nothing of it is known to systemd.
#[must_use]
pub fn render(unit: &UnitSpec) -> String {
    let mut text = String::with_capacity(1024);
    section_unit(&mut text, unit);
    section_service(&mut text, unit);
    text
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    writeln!(text, "{key}={value}").expect("a String takes any text");
}

fn section_unit(text: &mut String, unit: &UnitSpec) {
    text.push_str("# Written by keelson-agent. Changes are undone.\n[Unit]\n");
    line(text, "Description", plain(&unit.description));
    // systemd's own limit would leave a unit dead for good; the agent counts and waits instead.
    line(text, "StartLimitIntervalSec", 0);
}

fn section_service(text: &mut String, unit: &UnitSpec) {
    text.push_str("\n[Service]\n");
    match unit.kind {
        UnitKind::Exec => line(text, "Type", "exec"),
        UnitKind::Notify => line(text, "Type", "notify"),
        UnitKind::Oneshot => {
            line(text, "Type", "oneshot");
            line(text, "RemainAfterExit", "yes");
        }
        UnitKind::Check => {}
    }
    line(text, "ExecStart", command_line(&unit.command));
    for (name, value) in &unit.environment {
        line(text, "Environment", quoted(&format!("{name}={value}"), Dollar::Literal));
    }
    // The agent sees by probes whether a start takes too long; systemd must not decide it a second time.
    line(text, "TimeoutStartSec", "infinity");
    line(text, "TimeoutStopSec", unit.stop_timeout_s);
    if let Some(watchdog_s) = unit.watchdog_s {
        line(text, "WatchdogSec", watchdog_s);
    }
    if unit.kind != UnitKind::Oneshot {
        // The net below the agent: a program that ends is back after a second even when the agent is not.
        line(text, "Restart", "always");
        line(text, "RestartSec", 1);
    }
    line(text, "KillMode", if unit.children_survive { "process" } else { "control-group" });
    if unit.delegate {
        line(text, "Delegate", "yes");
    }
    if let Some(open_files_max) = unit.open_files_max {
        line(text, "LimitNOFILE", open_files_max);
    }
    if unit.hardening == Hardening::Server {
        line(text, "NoNewPrivileges", "yes");
        line(text, "ProtectSystem", "strict");
        line(text, "ProtectHome", "yes");
        line(text, "PrivateTmp", "yes");
        for directory in &unit.state_directories {
            line(text, "ReadWritePaths", quoted(directory, Dollar::Literal));
        }
    }
}

/// One argument on each line, so that a person can read it.
fn command_line(command: &[String]) -> String {
    let mut words = command.iter();
    let program = words.next().map(|program| quoted(program, Dollar::Literal)).unwrap_or_default();
    words.fold(program, |line, word| format!("{line} \\\n    {}", quoted(word, Dollar::Doubled)))
}

/// Whether a place replaces `$NAME`, so that a dollar must be doubled there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dollar {
    Literal,
    Doubled,
}

/// A value as one word: `%` is doubled everywhere (specifiers), `$` where variables are replaced, and anything that
/// systemd could take apart is put in double quotes with C escapes (systemd.syntax(7), "Quoting").
fn quoted(value: &str, dollar: Dollar) -> String {
    let bare = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.,:=+@%$".contains(&byte));
    let mut word = String::with_capacity(value.len() + 2);
    for character in value.chars() {
        match character {
            '%' => word.push_str("%%"),
            '$' if dollar == Dollar::Doubled => word.push_str("$$"),
            '"' => word.push_str("\\\""),
            '\\' => word.push_str("\\\\"),
            '\n' => word.push_str("\\n"),
            '\r' => word.push_str("\\r"),
            '\t' => word.push_str("\\t"),
            other if other.is_ascii_control() => {
                write!(word, "\\x{:02x}", u32::from(other)).expect("a String takes any text");
            }
            other => word.push(other),
        }
    }
    if bare { word } else { format!("\"{word}\"") }
}

/// A text for people: no specifiers, one line.
fn plain(value: &str) -> String {
    let one_line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    one_line.trim_end_matches('\\').replace('%', "%%")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests rewrite golden files")]
mod tests {
    use super::*;

    fn sample(kind: UnitKind, hardening: Hardening) -> UnitSpec {
        UnitSpec {
            name: "sample.service".to_owned(),
            description: "A sample, 100%\nor so \\".to_owned(),
            kind,
            command: [
                "/usr/bin/sample",
                "--plain=1",
                "two words",
                "100%",
                "$HOME and ${X}",
                "say \"hi\"",
                "",
                ";",
            ]
            .map(str::to_owned)
            .to_vec(),
            environment: vec![("GREETING".to_owned(), "it's $5 & 10%\\\n".to_owned())],
            hardening,
            state_directories: vec!["/var/lib/sample".to_owned(), "/run/my sample".to_owned()],
            delegate: hardening == Hardening::Host,
            children_survive: hardening == Hardening::Host,
            open_files_max: Some(20_000),
            stop_timeout_s: 30,
            watchdog_s: (kind == UnitKind::Notify).then_some(180),
            needs: Vec::new(),
            health: None,
            alive: None,
            restart_on: Vec::new(),
        }
    }

    fn check(name: &str, unit: &UnitSpec) {
        let path = format!("{}/golden/{name}.service", env!("CARGO_MANIFEST_DIR"));
        let text = render(unit);
        if std::env::var_os("KEELSON_GOLDEN_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
    }

    #[test]
    fn texts_are_as_recorded() {
        check("server", &sample(UnitKind::Notify, Hardening::Server));
        check("host", &sample(UnitKind::Exec, Hardening::Host));
        check("oneshot", &sample(UnitKind::Oneshot, Hardening::Server));
    }

    #[test]
    fn no_value_can_add_a_line() {
        let mut unit = sample(UnitKind::Exec, Hardening::Server);
        let evil = "x\nExecStartPre=/bin/evil";
        unit.description = evil.to_owned();
        unit.command.push(evil.to_owned());
        unit.environment.push(("A".to_owned(), evil.to_owned()));
        unit.state_directories.push(evil.to_owned());
        assert!(!render(&unit).lines().any(|line| line.starts_with("ExecStartPre")));
    }
}
