//! A fake coordinator, and command lines run against it in this process.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_api::fake::{BEGIN, FakeFleet, TestServer};
use keelson_cli::{ExitCode, Session};
use keelson_protocol::WallTime;
use tokio::sync::watch;

/// A fleet, its server, and a home directory with a context file.
pub(crate) struct World {
    pub(crate) fleet: Arc<FakeFleet>,
    pub(crate) server: TestServer,
    pub(crate) home: tempfile::TempDir,
}

/// How a command line ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) exit: ExitCode,
    pub(crate) passed_on: Option<u8>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Standard output as the one JSON document that it must be.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Ends as expected, or shows everything.
    pub(crate) fn ends(self, exit: ExitCode) -> Self {
        assert_eq!(self.exit, exit, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// A command line with what is around it.
pub(crate) struct Run<'a> {
    world: &'a World,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    stdin: Box<dyn BufRead + Send>,
    terminals: [bool; 3],
    interrupted: bool,
    clock_step_ms: i64,
    poll: Duration,
}

/// What a person types, after `act` has happened.
struct Meanwhile<F> {
    act: Option<F>,
    typed: Box<dyn BufRead + Send>,
}

impl<F: FnOnce()> Read for Meanwhile<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(act) = self.act.take() {
            act();
        }
        self.typed.read(buffer)
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let fleet = FakeFleet::new();
        let server = TestServer::start(fleet.clone()).await;
        let world = Self { fleet, server, home: tempfile::tempdir().unwrap() };
        world.write_context(&world.context_path(), &world.server.context(), 0o600);
        world
    }

    pub(crate) fn context_path(&self) -> PathBuf {
        self.home.path().join(".config/keelson/context.json")
    }

    pub(crate) fn write_context(&self, path: &std::path::Path, content: &str, mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Prepares a command line; words are split at spaces.
    pub(crate) fn keelson(&self, line: &str) -> Run<'_> {
        let home = self.home.path().to_str().unwrap().to_owned();
        Run {
            world: self,
            arguments: std::iter::once("keelson").chain(line.split_whitespace()).map(str::to_owned).collect(),
            environment: [("HOME".to_owned(), home)].into(),
            stdin: Box::new(std::io::empty()),
            terminals: [false; 3],
            interrupted: false,
            clock_step_ms: 0,
            poll: Duration::from_millis(5),
        }
    }

    /// Prepares a command line of which the words may hold spaces.
    pub(crate) fn keelson_words(&self, words: &[&str]) -> Run<'_> {
        let mut run = self.keelson("");
        run.arguments.extend(words.iter().map(|word| (*word).to_owned()));
        run
    }

    /// Starts it under another name.
    pub(crate) fn program(&self, line: &str) -> Run<'_> {
        let mut run = self.keelson("");
        run.arguments = line.split_whitespace().map(str::to_owned).collect();
        run
    }

    /// Takes out of a text what differs from run to run.
    pub(crate) fn stable(&self, text: &str) -> String {
        text.replace(&self.server.url(), "https://COORDINATOR")
            .replace(self.home.path().to_str().unwrap(), "HOME")
    }
}

impl Run<'_> {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Standard input and output and error are a terminal, and a person types this.
    pub(crate) fn on_terminal(mut self, typed: &str) -> Self {
        self.terminals = [true; 3];
        self.stdin(typed)
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        self.stdin = Box::new(Cursor::new(text.to_owned().into_bytes()));
        self
    }

    /// Something happens between what the command has shown and what a person types then.
    pub(crate) fn meanwhile(mut self, act: impl FnOnce() + Send + 'static) -> Self {
        let typed = std::mem::replace(&mut self.stdin, Box::new(std::io::empty()));
        self.stdin = Box::new(BufReader::new(Meanwhile { act: Some(act), typed }));
        self
    }

    /// Ctrl-C was pressed.
    pub(crate) fn interrupted(mut self) -> Self {
        self.interrupted = true;
        self
    }

    /// The clock goes on by this much whenever it is read.
    pub(crate) fn clock_step_ms(mut self, step: i64) -> Self {
        self.clock_step_ms = step;
        self
    }

    pub(crate) async fn run(self) -> Outcome {
        let (stdout, stderr) = (Buffer::default(), Buffer::default());
        let (_interrupt_sender, interrupt) = watch::channel(self.interrupted);
        let now = AtomicI64::new(BEGIN.0 + 100_000);
        let step = self.clock_step_ms;
        let mut session = Session {
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            stdin: Some(self.stdin),
            stdin_is_terminal: self.terminals[0],
            stdout_is_terminal: self.terminals[1],
            stderr_is_terminal: self.terminals[2],
            environment: self.environment,
            columns: 120,
            clock: Arc::new(move || WallTime(now.fetch_add(step, Ordering::Relaxed))),
            interrupt,
            poll: self.poll,
            passed_on: None,
        };
        let arguments = self.arguments.into_iter().map(Into::into).collect();
        let exit = keelson_cli::run(arguments, &mut session).await;
        let (stdout, stderr) = (self.world.stable(&stdout.text()), self.world.stable(&stderr.text()));
        Outcome { exit, passed_on: session.passed_on, stdout, stderr }
    }
}

/// Runs command lines one after the other and writes down everything that came.
pub(crate) async fn record(world: &World, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let outcome: Outcome = world.keelson(line).run().await;
        let _ = writeln!(text, "$ keelson {line}\n[exit {}]", outcome.exit.number());
        for (stream, content) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
            if !content.is_empty() {
                let _ = writeln!(text, "--- {stream}\n{content}");
            }
        }
    }
    text
}

/// Compares with `tests/golden/NAME`, or rewrites it with `KEELSON_UPDATE_GOLDEN=1`.
pub(crate) fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("KEELSON_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, expected,
        "{name} differs; if that is wanted: KEELSON_UPDATE_GOLDEN=1 cargo test -p keelson-cli"
    );
}
