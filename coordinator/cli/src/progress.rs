//! Waiting for an operation, and showing how it goes.
//!
//! The wait ends when the operation is done, has failed, or needs a person; when the time is up; or at Ctrl-C, which
//! detaches and never cancels. A coordinator that is away for a moment does not end it: operations outlive it.

use std::time::Duration;

use keelson_api::types::{ConditionState, MachineStep, OperationStateView, OperationView};
use keelson_api::{Code, Problem};
use keelson_protocol::WallTime;

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

/// Waits for an operation and gives it back when it has succeeded.
///
/// `timeout` is for the whole wait.
pub(crate) async fn wait(
    client: &mut Client,
    session: &mut Session,
    id: &str,
    mode: ProgressMode,
    timeout: Option<Duration>,
) -> Result<OperationView, Failure> {
    let mut show = Show::new(style(mode, session), Paint::stderr(session), session.now());
    let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let call = Call::get(format!("operations/{}", segment(id)));
    let mut interrupt = session.interrupt.clone();
    let mut away_since: Option<WallTime> = None;
    loop {
        let read = tokio::select! {
            read = client.document::<OperationView>(&call) => read,
            () = interrupted(&mut interrupt) => { show.end(session); return Err(detached(id)) }
            () = until(deadline) => { show.end(session); return Err(timed_out(id, timeout)) }
        };
        match read {
            Ok(operation) => {
                away_since = None;
                show.operation(session, &operation);
                if operation.done || operation.state == OperationStateView::Blocked {
                    show.end(session);
                    return ended(operation);
                }
            }
            Err(failure) if failure.code() == Some(Code::Unreachable) => {
                let now = session.now();
                let since = *away_since.get_or_insert(now);
                if now.since(since) > AWAY_MAX {
                    show.end(session);
                    return Err(failure);
                }
                show.away(session, &failure, since == now);
            }
            Err(failure) => {
                show.end(session);
                return Err(failure);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(session.poll) => {}
            () = interrupted(&mut interrupt) => { show.end(session); return Err(detached(id)) }
            () = until(deadline) => { show.end(session); return Err(timed_out(id, timeout)) }
        }
    }
}

async fn interrupted(interrupt: &mut tokio::sync::watch::Receiver<bool>) {
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

fn detached(id: &str) -> Failure {
    Problem::new(Code::Detached, format!("detached: operation {id} goes on"))
        .remedy(format!("attach again: keelson operation watch {id}"))
        .instance(format!("/v1/operations/{id}"))
        .into()
}

fn timed_out(id: &str, timeout: Option<Duration>) -> Failure {
    let after = short(timeout.unwrap_or_default());
    Problem::new(Code::WaitTimedOut, format!("operation {id} has not ended after {after} and goes on"))
        .remedy(format!("attach again: keelson operation watch {id}"))
        .instance(format!("/v1/operations/{id}"))
        .into()
}

fn ended(operation: OperationView) -> Result<OperationView, Failure> {
    let code = match operation.state {
        OperationStateView::Succeeded | OperationStateView::Running => return Ok(operation),
        OperationStateView::Blocked => Code::OperationBlocked,
        OperationStateView::Failed => Code::OperationFailed,
        OperationStateView::Cancelled => Code::OperationCancelled,
    };
    let OperationView { id, action, cluster, state, error, metadata, .. } = operation;
    let (verb, remedy) = match state {
        OperationStateView::Cancelled => {
            ("was", format!("look at what is left: keelson operation show {id}"))
        }
        OperationStateView::Failed => {
            ("has", "remove the cause that is named, then run the command again".to_owned())
        }
        _ => ("is", format!("do what the reason says, then: keelson operation watch {id}")),
    };
    let mut problem = Problem::new(code, format!("operation {id} ({action} {cluster}) {verb} {state}"))
        .remedy(remedy)
        .instance(format!("/v1/operations/{id}"));
    if let Some(error) = error {
        problem = problem.because(error.detail);
        for cause in error.causes {
            problem = problem.because(cause);
        }
    }
    for wait in metadata.waiting.iter().filter(|wait| wait.needs_person) {
        let who = wait.machine.as_deref().unwrap_or("the cluster");
        problem = problem.because(format!("{who}: {} ({})", wait.text, wait.code));
    }
    Err(problem.into())
}

/// What was shown so far.
struct Show {
    style: Style,
    paint: Paint,
    rows_drawn: usize,
    last_line: WallTime,
    last: Option<OperationView>,
}

impl Show {
    fn new(style: Style, paint: Paint, now: WallTime) -> Self {
        Self { style, paint, rows_drawn: 0, last_line: now, last: None }
    }

    fn operation(&mut self, session: &mut Session, operation: &OperationView) {
        match self.style {
            Style::Live => self.redraw(session, operation),
            Style::Plain => self.lines(session, operation),
            Style::Json => {
                if self.last.as_ref() != Some(operation) {
                    let line = serde_json::to_string(operation).unwrap_or_default();
                    write(session, &format!("{line}\n"));
                }
            }
            Style::Silent => {}
        }
        self.last = Some(operation.clone());
    }

    fn redraw(&mut self, session: &mut Session, operation: &OperationView) {
        let lines = tree(operation, session.now(), self.paint);
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

    fn lines(&mut self, session: &mut Session, operation: &OperationView) {
        let now = session.now();
        let mut changed = Vec::new();
        let before = self.last.as_ref();
        if before.is_none_or(|before| before.state != operation.state) {
            changed.push(headline(operation, now));
        }
        for step in &operation.metadata.machines {
            let old = before.and_then(|before| {
                before.metadata.machines.iter().find(|other| other.machine == step.machine)
            });
            if old.is_none_or(|old| (&old.step, old.status) != (&step.step, step.status)) {
                changed.push(step_text(step, now));
            }
        }
        if changed.is_empty() && now.since(self.last_line) >= HEARTBEAT {
            changed.push(heartbeat(operation, now));
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

fn headline(operation: &OperationView, now: WallTime) -> String {
    let machines = &operation.metadata.machines;
    let there = machines.iter().filter(|step| step.status == ConditionState::Ok).count();
    let count =
        if machines.is_empty() { String::new() } else { format!("  {there}/{} machines", machines.len()) };
    format!(
        "{} {}  {}  {}  {}{count}",
        operation.action,
        operation.cluster,
        operation.id,
        operation.state,
        ago(operation.ended.map_or(now, |ended| ended.0), operation.created.0)
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

fn heartbeat(operation: &OperationView, now: WallTime) -> String {
    let waits = operation.metadata.waiting.first().map_or_else(String::new, |wait| {
        let who = wait.machine.as_deref().unwrap_or("the cluster");
        format!(", waits for {who}: {} for {}", wait.text, ago(now, wait.since.0))
    });
    format!("{}{waits}", headline(operation, now))
}

/// The live tree: one line a machine in motion, what is there is counted.
fn tree(operation: &OperationView, now: WallTime, paint: Paint) -> Vec<String> {
    let mut lines = vec![paint.bold(&headline(operation, now))];
    let all = &operation.metadata.machines;
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
    for wait in operation.metadata.waiting.iter().filter(|wait| wait.machine.is_none()) {
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
