//! `keelson events`.

use http_body_util::BodyExt;
use keelson_api::types::{EventView, ListView};
use keelson_api::{Code, ExitCode, Problem};
use serde::Deserialize;

use super::{Work, sort};
use crate::args::EventsArgs;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::sse::{Message, Parser};
use crate::table::Table;

/// Longest text about one event on one line, in characters; `-o wide` has all of it.
const WHAT_CHARS_MAX: usize = 120;
/// So much of a cause is shown when it does not fit.
const CAUSE_CHARS: usize = 60;

/// How often a stream that broke is opened again in a row, before the command gives up.
const RECONNECTS_MAX: u32 = 30;

/// What a `reset` of the stream says.
#[derive(Debug, Deserialize)]
struct Reset {
    newest: u64,
}

/// `keelson events`.
pub(super) async fn run(work: &mut Work<'_>, args: &EventsArgs) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    let call = Call::get("events")
        .query("cluster", args.cluster.clone())
        .query("machine", args.machine.clone())
        .query("incident", args.incident)
        .query("severity", Some(args.severity.as_str()));
    // Asked first, so that nothing that comes between the two reads is missed.
    let mut after = if args.follow { newest(&mut client).await? } else { 0 };
    let shown = call.clone().query("page_size", Some(args.limit));
    let mut list: ListView<EventView> = client.document(&shown).await?;
    if !args.follow {
        sort(&mut list.items, &args.sort)?;
        let names: Vec<String> = list.items.iter().map(|event| format!("event/{}", event.id)).collect();
        work.output().list(&list, &names, "no events", |wide| table(&list.items, wide));
        return Ok(ExitCode::Done);
    }
    for event in &list.items {
        print(work, event);
        after = after.max(event.id);
    }
    if list.items.is_empty() {
        work.output().hint("no such events so far; waiting for them, Ctrl-C ends that");
    }
    follow(work, &mut client, &call, &mut after).await
}

/// Id of the newest event of all, whatever is asked for: the last one that fits may be so old that what came after it is
/// no longer kept.
async fn newest(client: &mut Client) -> Result<u64, Failure> {
    let list: ListView<EventView> = client.document(&Call::get("events").query("page_size", Some(1))).await?;
    Ok(list.items.last().map_or(0, |event| event.id))
}

fn table(events: &[EventView], wide: bool) -> Table {
    const HEAD: [&str; 6] = ["TIME", "SEVERITY", "REASON", "ABOUT", "WHAT", "ID"];
    let mut table = Table::new(&HEAD[..if wide { 6 } else { 5 }]);
    for event in events {
        let mut cells = vec![
            event.at.to_string(),
            event.severity.to_string(),
            event.reason.clone(),
            about(event),
            what(event, wide),
        ];
        if wide {
            cells.push(event.id.to_string());
        }
        table.row(cells);
    }
    table
}

/// What was seen, and what came of it.
fn what(event: &EventView, wide: bool) -> String {
    let text = format!("{}: {}", event.cause, event.outcome);
    if wide || text.chars().count() <= WHAT_CHARS_MAX {
        return text;
    }
    // The outcome is the news; of a long cause the beginning is enough.
    let cause: String = event.cause.chars().take(CAUSE_CHARS).collect();
    let text = format!("{cause}…: {}", event.outcome);
    text.chars().take(WHAT_CHARS_MAX).collect()
}

fn about(event: &EventView) -> String {
    event.machine.as_ref().or(event.cluster.as_ref()).cloned().unwrap_or_else(|| "-".to_owned())
}

/// One event of a stream.
fn print(work: &mut Work<'_>, event: &EventView) {
    work.output().streamed(event, &format!("event/{}", event.id), |wide| {
        let (at, severity, reason) = (event.at, event.severity, &event.reason);
        format!("{at}  {severity:<8}  {reason:<16}  {}  {}", about(event), what(event, wide))
    });
}

/// Prints events as they come, until Ctrl-C. A stream that broke is resumed where it was.
async fn follow(
    work: &mut Work<'_>,
    client: &mut Client,
    call: &Call,
    after: &mut u64,
) -> Result<ExitCode, Failure> {
    let mut interrupt = work.session.interrupt.clone();
    let pause = work.session.poll;
    let mut failed = 0;
    loop {
        let ended = tokio::select! {
            ended = stream(work, client, call, after) => ended,
            Ok(_) = interrupt.wait_for(|pressed| *pressed) => return Ok(ExitCode::Done),
        };
        match ended {
            Ok(got_some) => failed = if got_some { 0 } else { failed + 1 },
            Err(failure) if failure.code() == Some(Code::Unreachable) && failed < RECONNECTS_MAX => {
                if failed == 0 {
                    work.output().hint(&format!("{}; trying again", failure.problem.detail));
                }
                failed += 1;
            }
            Err(failure) => return Err(failure),
        }
        if failed > RECONNECTS_MAX {
            return Err(Problem::from(Code::Unreachable).into());
        }
        tokio::select! {
            () = tokio::time::sleep(pause * failed.clamp(1, 10)) => {}
            Ok(_) = interrupt.wait_for(|pressed| *pressed) => return Ok(ExitCode::Done),
        }
    }
}

/// Reads one stream to its end; says whether anything came.
async fn stream(
    work: &mut Work<'_>,
    client: &mut Client,
    call: &Call,
    after: &mut u64,
) -> Result<bool, Failure> {
    let call = call.clone().header("accept", "text/event-stream").header("last-event-id", after.to_string());
    let mut body = client.send(&call).await?.into_body();
    let (mut parser, mut got_some) = (Parser::default(), false);
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else { continue };
        let no_stream =
            || Failure::new(Code::UnexpectedAnswer, "the coordinator sent something that is no event stream");
        for message in parser.take(&bytes).ok_or_else(no_stream)? {
            got_some = true;
            handle(work, &message, after);
        }
    }
    Ok(got_some)
}

fn handle(work: &mut Work<'_>, message: &Message, after: &mut u64) {
    if let Some(id) = message.id.as_ref().and_then(|id| id.parse().ok()) {
        *after = id;
    }
    if message.event == "reset" {
        let newest = serde_json::from_str(&message.data).map_or(*after, |reset: Reset| reset.newest);
        work.output().hint(&format!("some events are no longer kept; going on after event {newest}"));
        return;
    }
    if let Ok(event) = serde_json::from_str::<EventView>(&message.data) {
        print(work, &event);
    }
}
