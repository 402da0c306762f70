//! Rules that a golden file cannot say: exit codes one by one, waits, streams, files, secrets.

// A helper that panics fails its test, which is what it is for.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use keelson_api::fake::{Fault, SECRET_MARKER, TOKEN};
use keelson_cli::ExitCode;
use support::World;

#[tokio::test]
async fn every_exit_code_has_its_case() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let mut seen = std::collections::BTreeSet::new();
    let mut check = async |line: &str, exit: ExitCode| {
        world.keelson(line).run().await.ends(exit);
        seen.insert(exit);
    };
    check("cluster list", ExitCode::Done).await;
    check("cluster list --flag", ExitCode::Usage).await;
    check("cluster show none", ExitCode::NotFound).await;
    check("--context /nowhere cluster list", ExitCode::Denied).await;
    check("cluster create demo", ExitCode::Conflict).await;
    check("cluster create more --plan tiny --dry-run --exit-code", ExitCode::Differences).await;
    check("--server https://localhost:1 status", ExitCode::Unreachable).await;
    check("cluster update demo --deletion-protection on", ExitCode::Done).await;
    check("cluster delete demo --yes", ExitCode::Refused).await;
    world.fleet.fault(Some(Fault::Stuck));
    check("cluster create more --plan tiny --wait=1s --progress none", ExitCode::Timeout).await;
    world.fleet.fault(Some(Fault::Blocked));
    check("operation watch op-2 --progress none", ExitCode::Blocked).await;
    world.fleet.fault(Some(Fault::Fails("it burns".to_owned())));
    check("operation watch op-2 --progress none", ExitCode::Failed).await;
    world.fleet.fault(Some(Fault::Stuck));
    world.keelson("cluster create third --plan tiny --no-wait").run().await.ends(ExitCode::Done);
    world.keelson("operation watch op-3 --progress none").interrupted().run().await.ends(ExitCode::Detached);
    seen.insert(ExitCode::Detached);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ExitCode::ALL);
}

#[tokio::test]
async fn ctrl_c_detaches_and_cancels_nothing() {
    let world = World::new().await;
    world.fleet.fault(Some(Fault::Stuck));
    let run = world.keelson("cluster create demo --plan tiny --wait -o json").interrupted().run().await;
    let run = run.ends(ExitCode::Detached);
    assert_eq!(run.json()["error"]["code"], "KEEL-1008");
    assert!(run.stderr.contains("keelson operation watch op-1"), "{}", run.stderr);
    let operation = world.keelson("operation show op-1 -o json").run().await.json();
    assert_eq!(operation["state"], "running");
}

#[tokio::test]
async fn the_wait_depends_on_the_terminal_and_says_so() {
    let world = World::new().await;
    let pipe = world.keelson("cluster create a --plan tiny").run().await.ends(ExitCode::Done);
    assert!(pipe.stderr.contains("not waiting: standard output is no terminal"), "{}", pipe.stderr);
    let person =
        world.keelson("cluster create b --plan tiny").on_terminal("").run().await.ends(ExitCode::Done);
    assert!(person.stderr.contains("waiting, as standard output is a terminal"), "{}", person.stderr);
    assert!(person.stdout.contains("cluster b is ready"), "{}", person.stdout);
    let left = world.keelson("cluster create c --plan tiny --no-wait").on_terminal("").run().await;
    assert!(left.stdout.contains("operation op-3"), "{}", left.stdout);
}

#[tokio::test]
async fn progress_is_live_on_a_terminal_and_lines_elsewhere() {
    let world = World::new().await;
    let live = world.keelson("cluster create a --wait").on_terminal("").env("LANG", "C.UTF-8").run().await;
    assert!(live.stderr.contains("\u{1b}["), "the live tree moves the cursor");
    assert!(live.stderr.contains("… progressing"), "{}", live.stderr);
    assert!(live.stderr.contains(", ends when the unit answers"), "{}", live.stderr);
    let forced = world.keelson("cluster create b --wait --progress plain").on_terminal("").run().await;
    assert!(!forced.stderr.contains('\u{1b}'), "{}", forced.stderr);
    let dumb = world.keelson("cluster create c --wait").on_terminal("").env("TERM", "dumb").run().await;
    assert!(!dumb.stderr.contains('\u{1b}'), "{}", dumb.stderr);
    let json = world.keelson("cluster create d --plan tiny --wait --progress json -o json").run().await;
    assert_eq!(json.json()["state"], "succeeded");
    let documents = json.stderr.lines().filter(|line| line.starts_with('{'));
    let states: Vec<serde_json::Value> = documents.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(states.len() >= 3 && states.last().unwrap()["done"] == true);
}

#[tokio::test]
async fn a_silent_wait_says_every_thirty_seconds_that_it_lives() {
    let world = World::new().await;
    world.fleet.fault(Some(Fault::Stuck));
    let line = "cluster create a --plan tiny --wait=1s --progress plain";
    let run = world.keelson(line).clock_step_ms(11_000).run().await.ends(ExitCode::Timeout);
    let heartbeats =
        run.stderr.lines().filter(|line| line.contains("waits for a-node-1: the provider is making it"));
    assert!(heartbeats.count() >= 2, "{}", run.stderr);
}

#[tokio::test]
async fn a_wait_survives_a_coordinator_that_is_away_for_a_moment() {
    let mut world = World::new().await;
    world.keelson("cluster create a --plan tiny --no-wait").run().await.ends(ExitCode::Done);
    let old = world.server.context();
    let fleet = world.fleet.clone();
    let new = keelson_api::fake::TestServer::start(fleet).await;
    // The old coordinator stops; its context points nowhere until the time is up.
    std::mem::replace(&mut world.server, new).stop().await;
    world.write_context(&world.context_path(), &old, 0o600);
    let run = world.keelson("operation watch op-1 --timeout 1s --progress plain").run().await;
    let run = run.ends(ExitCode::Timeout);
    assert!(run.stderr.contains("the operation outlives that, trying again"), "{}", run.stderr);
}

#[tokio::test]
async fn colours_follow_terminal_and_environment() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let check = async |terminal: bool, environment: &[(&str, &str)], coloured: bool| {
        let mut run = world.keelson("cluster show demo");
        for (name, value) in environment {
            run = run.env(name, value);
        }
        let run = if terminal { run.on_terminal("") } else { run };
        let text = run.run().await.stdout;
        assert_eq!(text.contains("\u{1b}["), coloured, "{environment:?}");
        assert!(text.contains(" ok "), "the word stands beside shape and colour: {text}");
    };
    check(true, &[], true).await;
    check(false, &[], false).await;
    check(true, &[("NO_COLOR", "1")], false).await;
    check(true, &[("TERM", "dumb")], false).await;
    check(false, &[("CLICOLOR_FORCE", "1")], true).await;
    check(false, &[("CLICOLOR_FORCE", "0")], false).await;
}

#[tokio::test]
async fn standard_output_is_one_document_whatever_happens() {
    let world = World::new().await;
    world.fleet.add_labelled("one", "tiny", &[("env", "dev")]);
    world.fleet.add_labelled("two", "tiny", &[("env", "dev")]);
    world.fleet.add_ready("demo", "tiny");
    for line in [
        "cluster list -o json",
        "cluster show demo -o json",
        "cluster show none -o json",
        "machine list -o json",
        "cluster create x --plan huge -o json",
        "cluster delete demo -o json",
        "explain 9999 -o json",
        "cluster list --flag -o json",
        "nonsense --output=json",
        "events -o json",
        "version -o json",
        "--server https://localhost:1 status -o json",
        "cluster create y --plan tiny --wait -o json",
        "cluster kubeconfig demo -o json",
        "cluster show -l env=dev -o json",
        "cluster kubeconfig -l env=dev -o json",
        "wait cluster/demo -o json",
        "explain cluster.spec -o json",
        "clusters --json",
        "resize demo --json",
        "cluster delete -l env=dev -o json",
        "cluster delete -l env=dev --dry-run -o json",
        "cluster delete -l env=dev --count 2 --yes -o json",
        "operation watch op-5 -o json",
        "wait cluster/two --for deleted -o json",
    ] {
        let run = world.keelson(line).run().await;
        let document = run.json();
        assert_eq!(document.get("error").is_some(), run.exit != ExitCode::Done, "{line}: {document}");
        if let Some(error) = document.get("error") {
            for field in ["code", "message", "cause", "remedy", "docs"] {
                assert!(error.get(field).is_some(), "{line}: {field}");
            }
        } else {
            assert_eq!(document["apiVersion"], "keelson/v1", "{line}");
        }
    }
}

#[tokio::test]
async fn deletion_is_confirmed_by_name() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "small");
    let pipe = world.keelson("cluster delete demo").stdin("demo\n").run().await.ends(ExitCode::Usage);
    assert!(pipe.stderr.contains("KEEL-1005") && pipe.stderr.contains("--yes"), "{}", pipe.stderr);
    let wrong = world.keelson("cluster delete demo").on_terminal("dem\n").run().await.ends(ExitCode::Usage);
    assert!(
        wrong.stderr.contains("4 machines with disks) at coordinator https://COORDINATOR"),
        "{}",
        wrong.stderr
    );
    assert!(wrong.stderr.contains("nothing was done"), "{}", wrong.stderr);
    let right = world.keelson("cluster delete demo").on_terminal("demo\n").run().await.ends(ExitCode::Done);
    assert!(right.stdout.contains("cluster demo is gone"), "{}", right.stdout);
}

#[tokio::test]
async fn cancelling_a_create_is_confirmed_as_a_deletion_is() {
    let world = World::new().await;
    world.fleet.fault(Some(Fault::Stuck));
    world.keelson("cluster create demo --plan small --no-wait").run().await.ends(ExitCode::Done);
    let line = "operation cancel op-1";
    let pipe = world.keelson(line).stdin("demo\n").run().await.ends(ExitCode::Usage);
    for told in
        ["KEEL-1005", "cluster demo (creating, 4 machines with disks)", "keelson operation cancel op-1 --yes"]
    {
        assert!(pipe.stderr.contains(told), "{}", pipe.stderr);
    }
    let wrong = world.keelson(line).on_terminal("op-1\n").run().await.ends(ExitCode::Usage);
    assert!(wrong.stderr.contains("nothing was done"), "{}", wrong.stderr);
    let state = world.keelson("operation show op-1 -o jsonpath={.state}").run().await.stdout;
    assert_eq!(state.trim(), "running");
    let right = world.keelson(line).on_terminal("demo\n").run().await.ends(ExitCode::Done);
    assert!(right.stdout.contains("what was made so far is being removed"), "{}", right.stdout);
    assert!(right.stderr.contains("keelson wait cluster/demo --for deleted"), "{}", right.stderr);
    // What has ended, or removes nothing, is not asked for.
    world.keelson(line).run().await.ends(ExitCode::Done);
    world.keelson("operation cancel op-2").run().await.ends(ExitCode::Refused);
    world.keelson("cluster create next --plan tiny --no-wait").run().await.ends(ExitCode::Done);
    world.keelson("operation cancel op-3 --yes").run().await.ends(ExitCode::Done);
}

#[tokio::test]
async fn the_kubeconfig_is_merged_and_cleaned_up() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let kube = world.home.path().join(".kube/config");
    std::fs::create_dir_all(kube.parent().unwrap()).unwrap();
    let before =
        "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\ncurrent-context: prod\n";
    std::fs::write(&kube, before).unwrap();

    let merged = world.keelson("cluster kubeconfig demo").run().await.ends(ExitCode::Done);
    assert!(merged.stdout.contains("context keelson-demo is in HOME/.kube/config"), "{}", merged.stdout);
    assert!(!merged.stdout.contains(SECRET_MARKER) && !merged.stderr.contains(SECRET_MARKER));
    let text = std::fs::read_to_string(&kube).unwrap();
    assert!(
        text.contains("current-context: prod")
            && text.contains("keelson-demo")
            && text.contains(SECRET_MARKER)
    );
    assert_eq!(std::fs::metadata(&kube).unwrap().permissions().mode() & 0o777, 0o600);

    world.keelson("cluster kubeconfig demo --set-context").run().await.ends(ExitCode::Done);
    assert!(std::fs::read_to_string(&kube).unwrap().contains("current-context: keelson-demo"));

    let own = world.home.path().join("own");
    world
        .keelson(&format!("cluster kubeconfig demo --file {}", own.display()))
        .run()
        .await
        .ends(ExitCode::Done);
    assert!(std::fs::read_to_string(&own).unwrap().contains("current-context: keelson-demo"));

    let list = format!("{}:{}", own.display(), kube.display());
    let printed = world.keelson("cluster kubeconfig demo --print").env("KUBECONFIG", &list).run().await;
    assert!(printed.stdout.starts_with("apiVersion: v1") && printed.stdout.contains(SECRET_MARKER));

    let line = "cluster delete demo --yes --wait --progress none";
    world.keelson(line).env("KUBECONFIG", &list).run().await.ends(ExitCode::Done);
    for file in [&own, &kube] {
        assert!(!std::fs::read_to_string(file).unwrap().contains("keelson-demo"), "{}", file.display());
    }
    world.keelson("cluster kubeconfig demo").run().await.ends(ExitCode::NotFound);
}

#[tokio::test]
async fn contexts_that_cannot_be_used_are_refused_with_a_remedy() {
    let world = World::new().await;
    let path = world.home.path().join("context");
    let check = async |content: &str, mode: u32, exit: ExitCode, says: &str| {
        world.write_context(&path, content, mode);
        let run =
            world.keelson("status").env("KEELSON_CONTEXT", path.to_str().unwrap()).run().await.ends(exit);
        assert!(run.stderr.contains(says), "{says}: {}", run.stderr);
        assert!(!run.stderr.contains(TOKEN), "{}", run.stderr);
    };
    let good = world.server.context();
    check(&good, 0o600, ExitCode::Done, "").await;
    check(&good, 0o644, ExitCode::Denied, "chmod 600").await;
    check("", 0o600, ExitCode::Denied, "KEEL-1002").await;
    check(&format!("server: [{TOKEN}"), 0o600, ExitCode::Denied, "KEEL-1002").await;
    check(&good.replace("https:", "http:"), 0o600, ExitCode::Denied, "must begin with https").await;
    check(
        &good.replace(TOKEN, "wrong-token-0123456789abcdef0123456789"),
        0o600,
        ExitCode::Denied,
        "KEEL-2001",
    )
    .await;
    let other = keelson_api::fake::TestServer::start(world.fleet.clone()).await;
    check(&good.replace(&world.server.url(), &other.url()), 0o600, ExitCode::Unreachable, "KEEL-1004").await;
    let missing =
        world.keelson("status").env("KEELSON_CONTEXT", "/nowhere").run().await.ends(ExitCode::Denied);
    assert!(missing.stderr.contains("cargo xtask up"), "{}", missing.stderr);
    let server = world.server.url();
    world.write_context(&path, &good.replace(&server, "https://nowhere.invalid"), 0o600);
    let line = format!("--server {server} --context {} status", path.display());
    world.keelson(&line).run().await.ends(ExitCode::Done);
}

/// The program itself, as a child.
fn program(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
    command.args(arguments).env_clear().env("HOME", world.home.path()).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Lines of a child's stream, up to the first with `words` in it.
fn lines_until(stream: &mut impl BufRead, words: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in stream.lines() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.contains(words)) {
            return lines;
        }
    }
    panic!("`{words}` did not come: {lines:#?}");
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
}

#[tokio::test]
async fn events_are_followed_from_the_newest_on() {
    let world = World::new().await;
    world.fleet.add_events("demo", 2);
    let mut command = program(&world, &["events", "--follow", "-o", "name"]);
    let fleet = world.fleet.clone();
    let followed = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut shown = BufReader::new(child.stdout.take().unwrap());
        let before = lines_until(&mut shown, "event/2");
        fleet.add_events("demo", 1);
        let after = lines_until(&mut shown, "event/3");
        interrupt(&child);
        (before, after, child.wait().unwrap())
    });
    let (before, after, status) = followed.await.unwrap();
    assert_eq!(
        (before, after),
        (vec!["event/1".to_owned(), "event/2".to_owned()], vec!["event/3".to_owned()])
    );
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn following_what_has_not_happened_yet_misses_nothing() {
    let world = World::new().await;
    world.fleet.add_events("other", 10);
    world.fleet.forget_events(3);
    let mut command = program(&world, &["events", "--follow", "--cluster", "demo", "-o", "name"]);
    let fleet = world.fleet.clone();
    let followed = tokio::task::spawn_blocking(move || {
        let (shown, writer) = std::io::pipe().unwrap();
        let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        let mut shown = BufReader::new(shown);
        lines_until(&mut shown, "no such events so far");
        fleet.add_events("demo", 1);
        let mut next = String::new();
        shown.read_line(&mut next).unwrap();
        interrupt(&child);
        child.wait().unwrap();
        next
    });
    assert_eq!(followed.await.unwrap(), "event/11\n");
}

async fn output(mut command: Command, stdin: &'static str) -> std::process::Output {
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A program that needs no input may have ended already.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_shell_passes_keys_output_and_exit_code_on() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let id = "demo-node-1";
    let echo = output(program(&world, &["machine", "shell", id, "--", "echo", "a", "b"]), "").await;
    assert_eq!(
        (echo.status.code(), String::from_utf8_lossy(&echo.stdout).into_owned()),
        (Some(0), "a b\n".to_owned())
    );
    let exit = output(program(&world, &["machine", "shell", id, "--", "exit", "42"]), "").await;
    assert_eq!(exit.status.code(), Some(42));
    let keys = output(program(&world, &["machine", "shell", id]), "hello\nq").await;
    assert_eq!(keys.status.code(), Some(7), "{}", String::from_utf8_lossy(&keys.stderr));
    let cut = output(program(&world, &["machine", "shell", id, "--", "poweroff"]), "").await;
    let told = String::from_utf8(cut.stderr).unwrap();
    assert!(told.contains("ended under `poweroff`") && told.contains("KEEL-1023"), "{told}");
    assert_eq!(cut.status.code(), Some(11), "that nothing is known is told apart from a command that failed");
    let none = output(program(&world, &["machine", "shell", "none"]), "").await;
    assert_eq!(none.status.code(), Some(3));
}

#[tokio::test]
async fn a_shell_on_a_terminal_is_raw_and_leaves_the_terminal_as_it_was() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    let program = env!("CARGO_BIN_EXE_keelson");
    // `script` gives the program a terminal of its own; `stty` says what the terminal is like before and after.
    let line = format!("stty -g; {program} machine shell demo-node-1; code=$?; stty -g; exit $code");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("HOME", world.home.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut shown = Vec::new();
        let mut byte = [0_u8];
        while !shown.ends_with(b"fake shell\r\n") {
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        // Ctrl-C and Ctrl-D are keys like any other here.
        keys.write_all(b"\x03\x04hi").unwrap();
        while !shown.ends_with(b"hi") {
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        keys.write_all(b"q").unwrap();
        screen.read_to_end(&mut shown).unwrap();
        (child.wait().unwrap(), String::from_utf8_lossy(&shown).into_owned())
    });
    let (status, shown) = ended.await.unwrap();
    assert_eq!(status.code(), Some(7), "{shown}");
    assert!(shown.contains("\x03\x04hi"), "{shown:?}");
    let settings: Vec<&str> = shown.lines().filter(|line| line.matches(':').count() > 10).collect();
    assert_eq!(settings.len(), 2, "{shown:?}");
    assert!(settings[1].ends_with(settings[0].trim()), "{settings:?}");
}

#[tokio::test]
async fn the_program_detaches_at_sigint() {
    let world = World::new().await;
    world.fleet.fault(Some(Fault::Stuck));
    let mut command = program(&world, &["cluster", "create", "demo", "--wait", "--progress", "plain"]);
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        // It waits from the first line of progress on.
        lines_until(&mut told, "create cluster demo");
        interrupt(&child);
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        (child.wait().unwrap(), rest)
    });
    let (status, rest) = ended.await.unwrap();
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(rest.contains("keelson operation watch op-1"), "{rest}");
}

#[tokio::test]
async fn completions_are_made_for_every_shell() {
    let world = World::new().await;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = world.keelson(&format!("completion {shell}")).run().await.ends(ExitCode::Done);
        assert!(run.stdout.contains("KEELSON_COMPLETE") && run.stdout.contains("keelson"), "{shell}");
    }
}

/// What a shell would offer after these words.
async fn completed(world: &World, words: &[&str]) -> Vec<String> {
    let mut command = program(world, &["--", "keelson"]);
    command.args(words).env("KEELSON_COMPLETE", "fish");
    // What is tested is which names come, not how fast a machine is that tests other things beside.
    command.env("KEELSON_COMPLETE_MS", "30000");
    let ended = output(command, "").await;
    assert_eq!((ended.status.code(), ended.stderr.len()), (Some(0), 0), "silent whatever happens");
    let text = String::from_utf8(ended.stdout).unwrap();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn names_are_completed_and_kept_for_a_moment() {
    let world = World::new().await;
    world.fleet.add_ready("demo", "tiny");
    world.fleet.add_ready("dev", "tiny");
    world.fleet.add_ready("other", "tiny");
    assert_eq!(completed(&world, &["cluster", "show", "de"]).await, ["demo", "dev"]);
    assert_eq!(completed(&world, &["machine", "logs", "o"]).await, ["other-node-1"]);
    assert_eq!(completed(&world, &["operation", "watch", "op-3"]).await, ["op-3"]);
    assert_eq!(completed(&world, &["why", "dem"]).await, ["demo", "demo-node-1"]);
    assert_eq!(completed(&world, &["why", "machine/o"]).await, ["machine/other-node-1"]);
    assert_eq!(completed(&world, &["cluster", "create", "x", "--plan", "t"]).await, ["tiny"]);
    assert_eq!(completed(&world, &["release", "show", "1.37"]).await, ["1.37.2"]);
    assert_eq!(completed(&world, &["wait", "cluster/o"]).await, ["cluster/other"]);
    assert_eq!(completed(&world, &["cluster", "list", "-o", "ya"]).await, ["yaml"]);

    let cache = world.home.path().join(".cache/keelson");
    for file in std::fs::read_dir(&cache).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!std::fs::read_to_string(file.path()).unwrap().contains(TOKEN));
    }
    // The coordinator is gone: what is kept still answers, for the same context only, and the rest is silence.
    std::fs::remove_dir_all(&cache).unwrap();
    completed(&world, &["plan", "show", ""]).await;
    let context = world.server.context();
    let away = context.replace(&world.server.url(), "https://localhost:1");
    world.server.stop().await;
    let world = World { server: keelson_api::fake::TestServer::start(world.fleet.clone()).await, ..world };
    let plans = completed(&world, &["plan", "show", "t"]).await;
    assert_eq!(plans, ["tiny"], "kept");
    world.write_context(&world.context_path(), &away, 0o600);
    assert!(completed(&world, &["plan", "show", "t"]).await.is_empty());
    world.write_context(&world.context_path(), "no context", 0o600);
    assert!(completed(&world, &["cluster", "show", "d"]).await.is_empty());
}

#[tokio::test]
async fn a_wait_ends_in_the_code_that_says_why() {
    let world = World::new().await;
    let check = async |line: &str, exit: ExitCode, says: &str| {
        let run = world.keelson(&format!("{line} --progress none")).run().await.ends(exit);
        assert!(
            format!("{}{}", run.stdout, run.stderr).contains(says),
            "{line}: {}{}",
            run.stdout,
            run.stderr
        );
    };
    check("wait cluster/demo", ExitCode::NotFound, "KEEL-2201").await;
    check("wait cluster/demo --for deleted", ExitCode::Done, "cluster demo is gone").await;
    world.fleet.add_ready("demo", "tiny");
    check("wait cluster/demo --for ready", ExitCode::Done, "cluster demo is ready").await;
    check("wait operation/op-1", ExitCode::Done, "cluster demo is ready (op-1").await;
    check("wait cluster/demo --for deleted --timeout 1s", ExitCode::Timeout, "keelson wait cluster/demo")
        .await;
    check("wait operation/op-1 --for ready", ExitCode::Usage, "--for is for clusters").await;
    check("wait demo", ExitCode::Usage, "cluster/NAME or operation/ID").await;
    world.fleet.fault(Some(Fault::Stuck));
    world.keelson("cluster create more --plan tiny --no-wait").run().await.ends(ExitCode::Done);
    check("wait cluster/more --timeout 1s", ExitCode::Timeout, "has not ended after 1s").await;
    let run = world.keelson("wait cluster/more -o json").interrupted().run().await.ends(ExitCode::Detached);
    assert_eq!(run.json()["error"]["remedy"], "attach again: keelson wait cluster/more --for ready");
    world.fleet.fault(Some(Fault::Blocked));
    check("wait cluster/more", ExitCode::Blocked, "waits for a person").await;
    check("wait operation/op-2", ExitCode::Blocked, "KEEL-1012").await;
    world.fleet.fault(Some(Fault::Fails("it burns".to_owned())));
    check("wait cluster/more", ExitCode::Failed, "cluster more has failed").await;
    world.fleet.fault(Some(Fault::Stuck));
    world.keelson("cluster delete demo --yes --no-wait").run().await.ends(ExitCode::Done);
    check("wait cluster/demo", ExitCode::Failed, "cluster demo is being removed").await;
}

#[tokio::test]
async fn a_wait_for_a_cluster_shows_its_machines() {
    let world = World::new().await;
    world.fleet.fault(Some(Fault::Stuck));
    world.keelson("cluster create demo --plan tiny --no-wait").run().await.ends(ExitCode::Done);
    let line = "wait cluster/demo --timeout 1s --progress plain";
    let run = world.keelson(line).clock_step_ms(11_000).run().await.ends(ExitCode::Timeout);
    assert!(run.stderr.contains("cluster demo  creating"), "{}", run.stderr);
    assert!(run.stderr.contains("demo-node-1  progressing  the provider is making it"), "{}", run.stderr);
}

#[tokio::test]
async fn several_clusters_are_removed_by_a_person_who_types_their_number() {
    let world = World::new().await;
    world.fleet.add_labelled("one", "tiny", &[("env", "dev")]);
    world.fleet.add_labelled("two", "tiny", &[("env", "dev")]);
    let line = "cluster delete -l env=dev --count 2 --progress none";
    let wrong = world.keelson(line).on_terminal("one\n").run().await.ends(ExitCode::Usage);
    assert!(wrong.stderr.contains("2 clusters (one, two; 2 machines with disks)"), "{}", wrong.stderr);
    assert_eq!(world.fleet.operation_count(), 2, "nothing was done");
    world.keelson(line).on_terminal("2\n").run().await.ends(ExitCode::Done);
    assert_eq!(world.keelson("cluster list -o name").run().await.stdout, "");
}

#[tokio::test]
async fn events_are_followed_in_every_format() {
    let world = World::new().await;
    world.fleet.add_events("demo", 2);
    for (format, text) in [
        ("name", "event/1\nevent/2\n"),
        ("jsonpath={.id},", "1,2,"),
        ("custom-columns=ID:.id,R:.reason", "1  Tested\n2  Tested\n"),
    ] {
        let line = format!("events --follow -o {format}");
        let run = world.keelson(&line).interrupted().run().await.ends(ExitCode::Done);
        assert_eq!(run.stdout, text, "{format}");
    }
}
