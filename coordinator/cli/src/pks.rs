//! The verbs of `pks` and `tkgi`, understood as other names of our own, so that scripts written for them go on working.
//!
//! One table says what each verb becomes. The words are rewritten before clap sees them; the native form is printed
//! once on standard error. What has no equal here is refused with what to use instead. A program that was started under
//! the name `pks` or `tkgi` (a link) knows these verbs only.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::Path;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser};
use keelson_api::{Code, Problem};

use crate::args::Cli;
use crate::failure::Failure;
use crate::format::Format;

/// What a command line means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It is our own.
    Native(Vec<OsString>),
    /// It was rewritten to this, which a person would type like that.
    Alias { arguments: Vec<OsString>, native: String },
    /// It asks what these verbs are.
    Help,
    /// It has no equal here.
    Refused { failure: Failure, format: Format },
}

/// A verb and what it becomes.
struct Verb {
    name: &'static str,
    becomes: Becomes,
}

enum Becomes {
    /// A command of ours: its words, what follows them, and what the flags become.
    Command { words: &'static [&'static str], tail: &'static [&'static str], flags: &'static [Flag] },
    /// Nothing; what to use instead.
    Missing(&'static str),
}

/// A flag with its other spelling.
struct Flag(&'static str, &'static str, Effect);

enum Effect {
    /// A switch that becomes these words.
    Switch(&'static [&'static str]),
    /// A value that goes to this flag.
    Value(&'static str),
    /// `key:value,key:value`, each a `--label`.
    Tags,
    /// A switch that says to wait. Without it these tools never do, and ours does on a terminal.
    Wait,
    /// Nothing like it; what to do instead.
    Refused(&'static str),
}

use Effect::{Refused, Switch, Tags, Value, Wait};

const JSON: Flag = Flag("--json", "", Switch(&["--output", "json"]));
const QUIET: Flag = Flag("--non-interactive", "", Switch(&[]));
const READ: &[Flag] = &[JSON, QUIET];
const NO_PROFILES: &str = "leave it out: a plan holds what profiles hold (keelson plan list)";
const NO_PASSWORD: &str =
    "leave it out: a password on a command line can be read by others; the context file holds a token";
const NO_USER: &str = "leave it out: the token of the context file says who asks";
const NO_LOGIN: &str = "the context file holds coordinator and token: keelson --context FILE status";
const NO_UPGRADE: &str =
    "clusters cannot be upgraded yet; see which releases there are: keelson release list";
const NO_CERTIFICATES: &str =
    "certificates are renewed by themselves; when they end: keelson machine show ID -o yaml";
const PLANS: &str = "plans hold what profiles hold: keelson plan list";

const CREATE: &[Flag] = &[
    JSON,
    QUIET,
    Flag("--plan", "-p", Value("--plan")),
    Flag("--num-nodes", "-n", Value("--workers")),
    Flag("--tags", "", Tags),
    Flag("--wait", "", Wait),
    Flag(
        "--external-hostname",
        "-e",
        Refused("leave it out: the address is given, and stands in keelson cluster show NAME"),
    ),
    Flag("--network-profile", "", Refused(NO_PROFILES)),
    Flag("--compute-profile", "", Refused(NO_PROFILES)),
    Flag("--kubernetes-profile", "", Refused(NO_PROFILES)),
    Flag("--config-file", "", Refused("leave it out, and give its values as flags")),
];
const DELETE: &[Flag] = &[JSON, Flag("--non-interactive", "", Switch(&["--yes"])), Flag("--wait", "", Wait)];
const CANCEL: &[Flag] = &[JSON, Flag("--non-interactive", "", Switch(&["--yes"]))];
const RESIZE: &[Flag] = &[
    JSON,
    Flag("--num-nodes", "-n", Value("--count")),
    Flag("--non-interactive", "", Switch(&["--yes"])),
    Flag("--wait", "", Wait),
];
const CREDENTIALS: &[Flag] = &[
    JSON,
    QUIET,
    Flag("--password", "-p", Refused(NO_PASSWORD)),
    Flag("--username", "-u", Refused(NO_USER)),
    Flag("--api", "-a", Refused(NO_LOGIN)),
    Flag("--sso", "", Refused(NO_LOGIN)),
    Flag("--sso-auto", "", Refused(NO_LOGIN)),
    Flag("--sso-passcode", "", Refused(NO_LOGIN)),
];
const SHOW_CLUSTER: &[Flag] = &[JSON, QUIET, Flag("--details", "", Switch(&["--all"]))];

const fn command(name: &'static str, words: &'static [&'static str], flags: &'static [Flag]) -> Verb {
    Verb { name, becomes: Becomes::Command { words, tail: &[], flags } }
}

const fn missing(name: &'static str, instead: &'static str) -> Verb {
    Verb { name, becomes: Becomes::Missing(instead) }
}

/// These tools make the cluster's context the current one, and scripts rely on it.
const fn credentials(name: &'static str) -> Verb {
    let (words, tail) = (&["cluster", "kubeconfig"] as &[_], &["--set-context"] as &[_]);
    Verb { name, becomes: Becomes::Command { words, tail, flags: CREDENTIALS } }
}

const VERBS: &[Verb] = &[
    command("clusters", &["cluster", "list"], READ),
    command("cluster", &["cluster", "show"], SHOW_CLUSTER),
    command("create-cluster", &["cluster", "create"], CREATE),
    // Their size is the number of workers, and the built-in plans call that pool so.
    Verb {
        name: "resize",
        becomes: Becomes::Command {
            words: &["cluster", "scale"],
            tail: &["--pool", "worker"],
            flags: RESIZE,
        },
    },
    command("delete-cluster", &["cluster", "delete"], DELETE),
    credentials("get-credentials"),
    credentials("get-kubeconfig"),
    command("plans", &["plan", "list"], READ),
    command("tasks", &["operation", "list"], READ),
    command("task", &["operation", "show"], READ),
    command("cancel-task", &["operation", "cancel"], CANCEL),
    missing("login", NO_LOGIN),
    missing("logout", "remove the context file when the token shall no longer be here"),
    missing("update-cluster", "what can be changed: keelson cluster update NAME --label KEY=VALUE"),
    missing("upgrade-cluster", NO_UPGRADE),
    missing("upgrade-clusters", NO_UPGRADE),
    missing("certificates", NO_CERTIFICATES),
    missing("rotate-certificates", NO_CERTIFICATES),
    missing("network-profile", PLANS),
    missing("network-profiles", PLANS),
    missing("create-network-profile", PLANS),
    missing("delete-network-profile", PLANS),
    missing("compute-profile", PLANS),
    missing("compute-profiles", PLANS),
    missing("create-compute-profile", PLANS),
    missing("delete-compute-profile", PLANS),
    missing("kubernetes-profile", PLANS),
    missing("kubernetes-profiles", PLANS),
    missing("create-kubernetes-profile", PLANS),
    missing("delete-kubernetes-profile", PLANS),
    missing("promote-cluster-to-policy", "clusters are kept by the coordinator without such a step"),
];

/// Reads a command line, of which the first word is the program.
pub(crate) fn read(arguments: Vec<OsString>) -> Reading {
    let program = arguments.first().map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str);
    let only = matches!(program, Some("pks" | "tkgi"));
    let texts: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
    let Some(words) = texts else { return Reading::Native(arguments) };
    let at = verb_at(&words);
    let word = at.and_then(|at| words.get(at).copied());
    if only
        && matches!(word, None | Some("help"))
        && !words.iter().any(|word| ["-V", "--version"].contains(word))
    {
        return Reading::Help;
    }
    let (Some(at), Some(word)) = (at, word) else { return Reading::Native(arguments) };
    let verb = VERBS.iter().find(|verb| verb.name == word);
    let format = if words.contains(&"--json") { Format::Json } else { Format::Table };
    let Some(verb) = verb else {
        if only {
            let what = format!("there is no verb `{word}`");
            return refused(what, "see which there are: keelson help pks", format);
        }
        return Reading::Native(arguments);
    };
    if !only && is_ours(&arguments, &words, at) {
        return Reading::Native(arguments);
    }
    match &verb.becomes {
        Becomes::Missing(instead) => refused(format!("Keelson has no `{word}`"), instead, format),
        Becomes::Command { words: own, tail, flags } => match rewrite(&words, at, own, tail, flags) {
            Ok(native) => alias(native),
            Err((what, instead)) => refused(what, instead, format),
        },
    }
}

fn alias(words: Vec<String>) -> Reading {
    let plain = |word: &str| {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.,:/@%+".contains(&byte);
        !word.is_empty() && word.bytes().all(safe)
    };
    let quoted = |word: &String| match plain(word) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let native = words.iter().map(quoted).collect::<Vec<_>>().join(" ");
    Reading::Alias { arguments: words.into_iter().map(Into::into).collect(), native }
}

fn refused(what: String, instead: &str, format: Format) -> Reading {
    Reading::Refused { failure: Problem::new(Code::CommandLine, what).remedy(instead).into(), format }
}

/// Where the first word is that is no flag and no value of a global flag.
fn verb_at(words: &[&str]) -> Option<usize> {
    let command = Cli::command();
    let valued: Vec<String> = command
        .get_arguments()
        .filter(|argument| argument.get_action().takes_values())
        .flat_map(|argument| {
            let long = argument.get_long().map(|long| format!("--{long}"));
            long.into_iter().chain(argument.get_short().map(|short| format!("-{short}")))
        })
        .collect();
    let mut at = 1;
    while let Some(word) = words.get(at) {
        if !word.starts_with('-') {
            return Some(at);
        }
        at += if valued.iter().any(|flag| flag == word) { 2 } else { 1 };
    }
    None
}

/// Whether a verb that is a noun of ours too (`cluster`, `clusters`, `plans`) is meant as ours: a verb of ours follows,
/// or something that looks like one that was misspelt.
fn is_ours(arguments: &[OsString], words: &[&str], at: usize) -> bool {
    let command = Cli::command();
    let Some(noun) = command.find_subcommand(words[at]) else { return false };
    let plain = |word: &&&str| !word.starts_with('-');
    let mut behind = words[at + 1..].iter().skip_while(|word| !plain(word));
    let next = behind.next();
    // Two words in a row are a verb, perhaps a misspelt one, and a name; theirs have a name only.
    let verb_and_name = behind.next().as_ref().is_some_and(plain);
    if verb_and_name || next.is_some_and(|next| noun.find_subcommand(next).is_some()) {
        return true;
    }
    // `cluster` alone is our noun without its verb; `clusters` and `plans` alone are their verbs.
    let nothing_named = words[at] == "cluster" && next.is_none();
    let Err(error) = Cli::try_parse_from(arguments) else { return true };
    match error.kind() {
        ErrorKind::InvalidSubcommand => error.get(ContextKind::SuggestedSubcommand).is_some(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand
        | ErrorKind::UnknownArgument => nothing_named,
        _ => true,
    }
}

/// The words of ours, or what cannot be said in them and what to do instead.
fn rewrite(
    words: &[&str],
    at: usize,
    own: &[&str],
    tail: &[&str],
    flags: &[Flag],
) -> Result<Vec<String>, (String, &'static str)> {
    let mut native = vec!["keelson".to_owned()];
    native.extend(words[1..at].iter().chain(own).map(|word| (*word).to_owned()));
    let mut rest = words[at + 1..].iter();
    let mut waits = false;
    while let Some(word) = rest.next() {
        let (name, attached) =
            word.split_once('=').map_or((*word, None), |(name, value)| (name, Some(value)));
        let (name, attached) = short_value(flags, name, attached);
        let known =
            flags.iter().find(|Flag(long, short, _)| name == *long || (!short.is_empty() && name == *short));
        let Some(Flag(_, _, effect)) = known else {
            native.push((*word).to_owned());
            continue;
        };
        let mut value = || {
            let value = attached.or_else(|| rest.next().copied());
            value.ok_or_else(|| (format!("{name} needs a value"), "give it one: keelson help pks"))
        };
        match effect {
            Switch(becomes) if is_on(name, attached)? => {
                native.extend(becomes.iter().map(|word| (*word).to_owned()));
            }
            Switch(_) => {}
            Value(flag) => {
                let value = value()?.to_owned();
                native.extend([(*flag).to_owned(), value]);
            }
            Tags => {
                for tag in value()?.split(',') {
                    native.extend(["--label".to_owned(), tag.replacen(':', "=", 1)]);
                }
            }
            Wait => waits = is_on(name, attached)?,
            Refused(instead) => return Err((format!("Keelson has no `{name}` here"), instead)),
        }
    }
    let takes_wait = flags.iter().any(|Flag(_, _, effect)| matches!(effect, Wait));
    native.extend(tail.iter().map(|word| (*word).to_owned()));
    if takes_wait {
        native.push(if waits { "--wait" } else { "--no-wait" }.to_owned());
    }
    Ok(native)
}

/// A short flag with its value behind it (`-pVALUE`), taken apart.
fn short_value<'w>(flags: &[Flag], name: &'w str, attached: Option<&'w str>) -> (&'w str, Option<&'w str>) {
    let takes = |effect: &Effect| matches!(effect, Value(_) | Tags | Refused(_));
    let is_short = name.len() > 2 && !name.starts_with("--") && name.is_char_boundary(2);
    let known = flags.iter().any(|Flag(_, short, effect)| is_short && name[..2] == **short && takes(effect));
    if known { (&name[..2], Some(&name[2..])) } else { (name, attached) }
}

/// Whether a switch is on: `--flag`, `--flag=true` or `--flag=false`.
fn is_on(name: &str, attached: Option<&str>) -> Result<bool, (String, &'static str)> {
    match attached {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => Err((format!("{name} is a switch"), "give it no value, or true or false")),
    }
}

/// `keelson help pks`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Verbs of pks and tkgi that are understood, and their native form. This program, started by a\n\
         link named pks or tkgi, knows only these.\n\n",
    );
    for verb in VERBS {
        if let Becomes::Command { words, tail, flags } = &verb.becomes {
            let native: Vec<&str> = words.iter().chain(*tail).copied().collect();
            let _ = writeln!(text, "  {:<17} keelson {}", verb.name, native.join(" "));
            let understood = flags.iter().filter(|Flag(_, _, effect)| !matches!(effect, Refused(_)));
            let names: Vec<&str> = understood.map(|Flag(long, _, _)| *long).collect();
            let _ = writeln!(text, "  {:<17}   {}", "", names.join(" "));
        }
    }
    text.push_str("\nNot here, and what to use:\n\n");
    for verb in VERBS {
        if let Becomes::Missing(instead) = verb.becomes {
            let _ = writeln!(text, "  {:<25} {instead}", verb.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(line: &str) -> Reading {
        read(line.split(' ').map(OsString::from).collect())
    }

    fn becomes(line: &str, native: &str) {
        match reading(line) {
            Reading::Alias { native: found, arguments } => {
                assert_eq!(found, native, "{line}");
                if let Err(error) = Cli::try_parse_from(&arguments) {
                    panic!("{line}: {error}");
                }
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn verbs_become_native_forms_that_can_be_typed() {
        becomes("keelson clusters", "keelson cluster list");
        becomes("keelson clusters --json", "keelson cluster list --output json");
        becomes("keelson --context f -o yaml clusters", "keelson --context f -o yaml cluster list");
        becomes("keelson cluster demo", "keelson cluster show demo");
        becomes("keelson cluster demo --details --json", "keelson cluster show demo --all --output json");
        becomes("keelson cluster --json demo", "keelson cluster show --output json demo");
        becomes(
            "keelson create-cluster demo --plan small --num-nodes 3",
            "keelson cluster create demo --plan small --workers 3 --no-wait",
        );
        becomes(
            "keelson create-cluster demo -p small -n 3 --wait --non-interactive --json",
            "keelson cluster create demo --plan small --workers 3 --output json --wait",
        );
        becomes(
            "keelson create-cluster demo --plan=small --tags env:prod,team:web",
            "keelson cluster create demo --plan small --label env=prod --label team=web --no-wait",
        );
        becomes(
            "keelson delete-cluster demo --non-interactive",
            "keelson cluster delete demo --yes --no-wait",
        );
        becomes(
            "keelson resize demo -n 3 --non-interactive",
            "keelson cluster scale demo --count 3 --yes --pool worker --no-wait",
        );
        becomes("keelson get-credentials demo", "keelson cluster kubeconfig demo --set-context");
        becomes("keelson get-kubeconfig demo", "keelson cluster kubeconfig demo --set-context");
        becomes("keelson plans", "keelson plan list");
        becomes("keelson tasks --json", "keelson operation list --output json");
        becomes("keelson task op-1", "keelson operation show op-1");
        becomes("keelson cancel-task op-1", "keelson operation cancel op-1");
        becomes("keelson cancel-task op-1 --non-interactive", "keelson operation cancel op-1 --yes");
        becomes("/usr/bin/pks cluster list", "keelson cluster show list");
        becomes("tkgi clusters", "keelson cluster list");
    }

    #[test]
    fn a_switch_that_is_off_is_off_and_no_password_is_repeated() {
        becomes(
            "keelson delete-cluster demo --non-interactive=false --wait=false",
            "keelson cluster delete demo --no-wait",
        );
        becomes(
            "keelson create-cluster demo -psmall --wait=true",
            "keelson cluster create demo --plan small --wait",
        );
        assert!(matches!(reading("keelson delete-cluster demo --wait=maybe"), Reading::Refused { .. }));
        let refused = reading("keelson get-credentials demo -psecret");
        assert!(matches!(refused, Reading::Refused { .. }), "{refused:?}");
        assert!(!format!("{refused:?}").contains("secret\""), "{refused:?}");
    }

    #[test]
    fn our_own_words_stay_ours() {
        for line in [
            "keelson",
            "keelson cluster",
            "keelson cluster list",
            "keelson cluster lst",
            "keelson cluster remove demo",
            "keelson clusters ls -o wide",
            "keelson clusters list --colour",
            "keelson cluster --help",
            "keelson plans --help",
            "keelson plan list",
            "keelson status",
            "keelson help clusters",
            "pks --version",
        ] {
            assert_eq!(
                reading(line),
                Reading::Native(line.split(' ').map(OsString::from).collect()),
                "{line}"
            );
        }
        for line in ["pks", "tkgi --help", "pks help"] {
            assert_eq!(reading(line), Reading::Help, "{line}");
        }
    }

    #[test]
    fn what_has_no_equal_is_a_usage_error_with_a_remedy() {
        for (line, remedy) in [
            ("keelson create-cluster demo --external-hostname h", "the address is given"),
            ("keelson create-cluster demo -e h --json", "the address is given"),
            ("keelson get-kubeconfig demo -p secret", "a password on a command line"),
            ("keelson get-kubeconfig demo -u me -p secret", "says who asks"),
            ("keelson create-cluster demo --plan", "give it one"),
            ("keelson resize demo --num-nodes", "give it one"),
            ("pks login -a x", "--context FILE"),
            ("pks status", "keelson help pks"),
        ] {
            let Reading::Refused { failure, format } = reading(line) else { panic!("{line}") };
            assert_eq!(failure.exit, keelson_api::ExitCode::Usage, "{line}");
            assert!(failure.problem.remedy.contains(remedy), "{line}: {}", failure.problem.remedy);
            assert!(!failure.to_string().contains("secret"), "{line}");
            assert_eq!(format == Format::Json, line.contains("--json"), "{line}");
        }
        assert!(VERBS.iter().all(|verb| help().contains(verb.name)));
    }
}
