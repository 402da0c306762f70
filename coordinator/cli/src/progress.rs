//! Waiting for an operation or a cluster, and showing how it goes.
//!
//! The wait ends when what is watched says so, or needs a person; when the time is up; or at Ctrl-C, which detaches and
//! never cancels. A coordinator that is away for a moment does not end it: operations outlive it.

use std::time::Duration;

use keelson_api::types::{
    ConditionState, MachineStep, OperationStateView, OperationView, Timestamp, WaitingView,
};
use keelson_api::{Code, Problem};
use keelson_protocol::WallTime;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::ProgressMode;
use crate::client::{Call, Client, segment};
use crate::duration::{ago, short};
use crate::failure::Failure;
use crate::paint::Paint;
use crate::session::Session;
use crate::table::one_line;

/// How often a line is written when nothing changes: CI systems end jobs that say nothing.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long a coordinator may be away before the wait ends: a restart takes seconds.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// Most machines of the live tree; the rest is counted.
const ROWS_MAX: usize = 16;

/// What can be waited for.
pub(crate) trait Subject {
    /// Its document.
    type View: DeserializeOwned + Serialize;
    /// What the wait gives back.
    type Done;

    /// Reads it.
    fn call(&self) -> Call;
    /// How far it is, for people.
    fn progress(&self, view: &Self::View) -> Progress;
    /// Whether the wait goes on after this was read.
    fn verdict(&self, read: Result<Self::View, Failure>) -> Verdict<Self::Done>;
    /// Names it in a sentence: `operation op-1`.
    fn name(&self) -> String;
    /// Its path below `/v1/`.
    fn path(&self) -> String;
    /// The command that waits for it again.
    fn again(&self) -> String;
}

/// Whether a wait goes on.
#[derive(Debug)]
pub(crate) enum Verdict<T> {
    /// It does.
    Waits,
    /// It has ended like this.
    Ended(Result<T, Failure>),
}

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// What it is.
    pub(crate) title: String,
    /// Its state in one word.
    pub(crate) state: String,
    /// When it was asked for.
    pub(crate) created: Timestamp,
    /// When it ended.
    pub(crate) ended: Option<Timestamp>,
    /// Its machines.
    pub(crate) machines: Vec<MachineStep>,
    /// What it waits for.
    pub(crate) waiting: Vec<WaitingView>,
}

/// An operation that is waited for.
pub(crate) struct OperationSubject<'a> {
    /// Its id.
    pub(crate) id: &'a str,
}

impl Subject for OperationSubject<'_> {
    type View = OperationView;
    type Done = OperationView;

    fn call(&self) -> Call {
        Call::get(format!("operations/{}", segment(self.id)))
    }

    fn progress(&self, view: &OperationView) -> Progress {
        Progress {
            title: format!("{}  {}", one_line(&view.what()), view.id),
            state: view.state.to_string(),
            created: view.created,
            ended: view.ended,
            machines: view.metadata.machines.clone(),
            waiting: view.metadata.waiting.clone(),
        }
    }

    fn verdict(&self, read: Result<OperationView, Failure>) -> Verdict<OperationView> {
        match read {
            Ok(operation) if operation.done || operation.state == OperationStateView::Blocked => {
                Verdict::Ended(ended(operation))
            }
            Ok(_) => Verdict::Waits,
            Err(failure) => Verdict::Ended(Err(failure)),
        }
    }

    fn name(&self) -> String {
        format!("operation {}", self.id)
    }

    fn path(&self) -> String {
        format!("operations/{}", self.id)
    }

    fn again(&self) -> String {
        format!("keelson operation watch {}", self.id)
    }
}

/// How progress is shown, decided once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Live,
    Plain,
    Json,
    Silent,
}

fn style(mode: ProgressMode, session: &Session) -> Style {
    let live = session.stderr_is_terminal && session.variable("TERM") != Some("dumb");
    match mode {
        ProgressMode::Auto if live => Style::Live,
        ProgressMode::Auto | ProgressMode::Plain => Style::Plain,
        ProgressMode::Json => Style::Json,
        ProgressMode::None => Style::Silent,
    }
}

/// Waits for `subject` and gives back what it became when that is a success.
///
/// `timeout` is for the whole wait.
pub(crate) async fn wait<S: Subject>(
    client: &mut Client,
    session: &mut Session,
    subject: &S,
    mode: ProgressMode,
    timeout: Option<Duration>,
) -> Result<S::Done, Failure> {
    let mut show = Show::new(style(mode, session), Paint::stderr(session), session.now());
    let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let call = subject.call();
    let mut interrupt = session.interrupt.clone();
    let mut away_since: Option<WallTime> = None;
    loop {
        let read = tokio::select! {
            read = client.document::<S::View>(&call) => read,
            () = interrupted(&mut interrupt) => { show.end(session); return Err(detached(subject)) }
            () = until(deadline) => { show.end(session); return Err(timed_out(subject, timeout)) }
        };
        match read {
            Err(failure) if failure.code() == Some(Code::Unreachable) => {
                let now = session.now();
                let since = *away_since.get_or_insert(now);
                if now.since(since) > AWAY_MAX {
                    show.end(session);
                    return Err(failure);
                }
                show.away(session, &failure, since == now);
            }
            read => {
                away_since = None;
                if let Ok(view) = &read {
                    show.document(session, view, subject.progress(view));
                }
                if let Verdict::Ended(ended) = subject.verdict(read) {
                    show.end(session);
                    return ended;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(session.poll) => {}
            () = interrupted(&mut interrupt) => { show.end(session); return Err(detached(subject)) }
            () = until(deadline) => { show.end(session); return Err(timed_out(subject, timeout)) }
        }
    }
}

/// Done when Ctrl-C was pressed.
pub(crate) async fn interrupted(interrupt: &mut tokio::sync::watch::Receiver<bool>) {
    if interrupt.wait_for(|pressed| *pressed).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn detached(subject: &impl Subject) -> Failure {
    Problem::new(Code::Detached, format!("detached: {} goes on", subject.name()))
        .remedy(format!("attach again: {}", subject.again()))
        .instance(format!("/v1/{}", subject.path()))
        .into()
}

fn timed_out(subject: &impl Subject, timeout: Option<Duration>) -> Failure {
    let after = short(timeout.unwrap_or_default());
    Problem::new(Code::WaitTimedOut, format!("{} has not ended after {after} and goes on", subject.name()))
        .remedy(format!("attach again: {}", subject.again()))
        .instance(format!("/v1/{}", subject.path()))
        .into()
}

fn ended(operation: OperationView) -> Result<OperationView, Failure> {
    let code = match operation.state {
        OperationStateView::Succeeded | OperationStateView::Running => return Ok(operation),
        OperationStateView::Blocked => Code::OperationBlocked,
        OperationStateView::Failed => Code::OperationFailed,
        OperationStateView::Cancelled => Code::OperationCancelled,
    };
    let what = operation.what();
    let OperationView { id, state, error, metadata, .. } = operation;
    let (verb, remedy) = match state {
        OperationStateView::Cancelled => {
            ("was", format!("look at what is left: keelson operation show {id}"))
        }
        OperationStateView::Failed => {
            ("has", "remove the cause that is named, then run the command again".to_owned())
        }
        _ => ("is", format!("do what the reason says, then: keelson operation watch {id}")),
    };
    let mut problem = Problem::new(code, format!("operation {id} ({what}) {verb} {state}"))
        .remedy(remedy)
        .instance(format!("/v1/operations/{id}"));
    if let Some(error) = error {
        problem = problem.because(error.detail);
        for cause in error.causes {
            problem = problem.because(cause);
        }
    }
    Err(needs_person(problem, &metadata.waiting).into())
}

/// Adds what only a person can end to the reasons of a problem.
pub(crate) fn needs_person(mut problem: Problem, waiting: &[WaitingView]) -> Problem {
    for wait in waiting.iter().filter(|wait| wait.needs_person) {
        let who = wait.machine.as_deref().unwrap_or("the cluster");
        problem = problem.because(format!("{who}: {} ({})", wait.text, wait.code));
    }
    problem
}

/// What was shown so far.
struct Show {
    style: Style,
    paint: Paint,
    rows_drawn: usize,
    last_line: WallTime,
    last: Option<Progress>,
    last_json: String,
}

impl Show {
    fn new(style: Style, paint: Paint, now: WallTime) -> Self {
        Self { style, paint, rows_drawn: 0, last_line: now, last: None, last_json: String::new() }
    }

    fn document(&mut self, session: &mut Session, view: &impl Serialize, progress: Progress) {
        match self.style {
            Style::Live => self.redraw(session, &progress),
            Style::Plain => self.lines(session, &progress),
            Style::Json => {
                let line = serde_json::to_string(view).unwrap_or_default();
                if self.last_json != line {
                    write(session, &format!("{line}\n"));
                    self.last_json = line;
                }
            }
            Style::Silent => {}
        }
        self.last = Some(progress);
    }

    fn redraw(&mut self, session: &mut Session, progress: &Progress) {
        let lines = tree(progress, session.now(), self.paint);
        let width = usize::from(session.columns.max(20));
        let mut text = self.erase();
        for line in &lines {
            text.push_str(&cut(line, width));
            text.push('\n');
        }
        self.rows_drawn = lines.len();
        write(session, &text);
    }

    /// Moves to the first line that was drawn and clears from there.
    fn erase(&mut self) -> String {
        let rows = std::mem::take(&mut self.rows_drawn);
        if rows == 0 { String::new() } else { format!("\u{1b}[{rows}A\u{1b}[J") }
    }

    /// The last tree stays as it is.
    fn end(&mut self, _: &mut Session) {
        self.rows_drawn = 0;
    }

    fn lines(&mut self, session: &mut Session, progress: &Progress) {
        let now = session.now();
        let mut changed = Vec::new();
        let before = self.last.as_ref();
        if before.is_none_or(|before| before.state != progress.state) {
            changed.push(headline(progress, now));
        }
        for step in &progress.machines {
            let old =
                before.and_then(|before| before.machines.iter().find(|other| other.machine == step.machine));
            if old.is_none_or(|old| (&old.step, old.status) != (&step.step, step.status)) {
                changed.push(step_text(step, now));
            }
        }
        if changed.is_empty() && now.since(self.last_line) >= HEARTBEAT {
            changed.push(heartbeat(progress, now));
        }
        for line in changed {
            self.last_line = now;
            write(session, &format!("{}  {}\n", clock(now), one_line(&line)));
        }
    }

    fn away(&mut self, session: &mut Session, failure: &Failure, first: bool) {
        let now = session.now();
        let due = now.since(self.last_line) >= HEARTBEAT;
        if self.style == Style::Silent || self.style == Style::Json || !(first || due) {
            return;
        }
        self.last_line = now;
        self.rows_drawn = 0;
        let why = &failure.problem.detail;
        write(session, &format!("{}  {why}; the operation outlives that, trying again\n", clock(now)));
    }
}

fn write(session: &mut Session, text: &str) {
    let _ = session.stderr.write_all(text.as_bytes()).and_then(|()| session.stderr.flush());
}

fn clock(now: WallTime) -> String {
    let stamp = keelson_api::types::Timestamp(now).to_string();
    stamp.get(11..19).unwrap_or_default().to_owned()
}

fn headline(progress: &Progress, now: WallTime) -> String {
    let machines = &progress.machines;
    let there = machines.iter().filter(|step| step.status == ConditionState::Ok).count();
    let count =
        if machines.is_empty() { String::new() } else { format!("  {there}/{} machines", machines.len()) };
    format!(
        "{}  {}  {}{count}",
        progress.title,
        progress.state,
        ago(progress.ended.map_or(now, |ended| ended.0), progress.created.0)
    )
}

fn step_text(step: &MachineStep, now: WallTime) -> String {
    match &step.ends_when {
        None => format!("{}  {}  {}", step.machine, step.status, step.step),
        Some(ends_when) => format!(
            "{}  {}  {} for {}, ends when {ends_when}",
            step.machine,
            step.status,
            step.step,
            ago(now, step.since.0)
        ),
    }
}

fn heartbeat(progress: &Progress, now: WallTime) -> String {
    let waits = progress.waiting.first().map_or_else(String::new, |wait| {
        let who = wait.machine.as_deref().unwrap_or("the cluster");
        format!(", waits for {who}: {} for {}", wait.text, ago(now, wait.since.0))
    });
    format!("{}{waits}", headline(progress, now))
}

/// The live tree: one line a machine in motion, what is there is counted.
fn tree(progress: &Progress, now: WallTime, paint: Paint) -> Vec<String> {
    let mut lines = vec![paint.bold(&headline(progress, now))];
    let all = &progress.machines;
    let moving: Vec<&MachineStep> = all.iter().filter(|step| step.status != ConditionState::Ok).collect();
    for step in moving.iter().take(ROWS_MAX) {
        let ends = step.ends_when.as_ref().map_or_else(String::new, |ends| format!(", ends when {ends}"));
        lines.push(format!(
            "  {} {:<20} {:<8} {} for {}{}",
            paint.state(step.status),
            step.machine,
            step.role,
            one_line(&step.step),
            ago(now, step.since.0),
            one_line(&ends),
        ));
    }
    if moving.len() > ROWS_MAX {
        lines.push(format!("  and {} more", moving.len() - ROWS_MAX));
    }
    for wait in progress.waiting.iter().filter(|wait| wait.machine.is_none()) {
        let state = if wait.needs_person { ConditionState::Bad } else { ConditionState::Progressing };
        let text = one_line(&wait.text);
        lines.push(format!("  {} {text} {}", paint.state(state), ago(now, wait.since.0)));
    }
    lines
}

/// Cuts a line to the terminal's width; escape sequences take no room.
fn cut(line: &str, width: usize) -> String {
    let (mut shown, mut text, mut escape) = (0, String::new(), false);
    for letter in line.chars() {
        if letter == '\u{1b}' {
            escape = true;
        }
        if !escape {
            shown += 1;
            if shown > width {
                continue;
            }
        }
        text.push(letter);
        if escape && letter.is_ascii_alphabetic() {
            escape = false;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_width_and_colours_are_closed() {
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("\u{1b}[32mab\u{1b}[0mcdef", 3), "\u{1b}[32mab\u{1b}[0mc");
        assert_eq!(cut("\u{1b}[32mabcdef\u{1b}[0m", 3), "\u{1b}[32mabc\u{1b}[0m");
    }
}
