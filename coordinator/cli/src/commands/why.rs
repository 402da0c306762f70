//! `keelson why`: why a cluster or a machine is as it is.
//!
//! An explanation is a success whatever it says, so that somebody on call sees it and scripts tell it from an error: how
//! something is stands in the document, not in the exit code.

use std::ops::Range;

use keelson_api::types::{ClusterView, EventView, ListView, MachineView, PAGE_SIZE_MAX, Timestamp};
use keelson_api::{Code, ExitCode, Problem};
use keelson_protocol::WallTime;

use super::{Work, cluster, why_cluster, why_machine};
use crate::args_repair::Asked;
use crate::client::{Call, Client, segment};
use crate::failure::Failure;
use crate::table::one_line;

/// `keelson why`.
pub(super) async fn run(work: &mut Work<'_>, asked: &Asked) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match asked {
        Asked::Cluster(name) => {
            let view: ClusterView = client.document(&Call::get(cluster::path(name))).await?;
            why_cluster::show(work, &mut client, view).await
        }
        Asked::Machine(id) => {
            let view: MachineView = client.document(&Call::get(machine_path(id))).await?;
            why_machine::show(work, &mut client, view).await
        }
        Asked::Either(name) => either(work, &mut client, name).await,
    }
}

/// Path of a machine below `/v1/`.
pub(super) fn machine_path(id: &str) -> String {
    format!("machines/{}", segment(id))
}

/// A cluster and a machine may have the same name: then it is the cluster, and the other one is named.
async fn either(work: &mut Work<'_>, client: &mut Client, name: &str) -> Result<ExitCode, Failure> {
    let machine = found(client.document::<MachineView>(&Call::get(machine_path(name))).await)?;
    let found_cluster = found(client.document::<ClusterView>(&Call::get(cluster::path(name))).await)?;
    match (found_cluster, machine) {
        (Some(view), other) => {
            let code = why_cluster::show(work, client, view).await?;
            if other.is_some() && work.for_people() {
                work.output().hint(&format!("a machine has this name too: keelson why machine/{name}"));
            }
            Ok(code)
        }
        (None, Some(view)) => why_machine::show(work, client, view).await,
        (None, None) => {
            let what = format!("there is neither a cluster nor a machine `{name}`");
            Err(Problem::new(Code::MachineNotFound, what)
                .remedy("look at what there is: keelson cluster list, keelson machine list")
                .into())
        }
    }
}

/// `None` when there is no such thing.
fn found<T>(read: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match read {
        Ok(view) => Ok(Some(view)),
        Err(failure) if failure.exit == ExitCode::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Events that `ask` chooses, the newest of them, oldest first.
pub(super) async fn events(
    client: &mut Client,
    ask: impl FnOnce(Call) -> Call,
) -> Result<Vec<EventView>, Failure> {
    let call = ask(Call::get("events")).query("page_size", Some(PAGE_SIZE_MAX));
    Ok(client.document::<ListView<EventView>>(&call).await?.items)
}

/// A moment as people need it: the clock, and the date when that is not today's. In UTC, as all times.
pub(super) fn moment(at: WallTime, now: WallTime) -> String {
    let (date, clock) = date_and_clock(at);
    if date == date_and_clock(now).0 { clock } else { format!("{date} {clock}") }
}

fn date_and_clock(at: WallTime) -> (String, String) {
    let stamp = Timestamp(at).to_string();
    let part = |range: Range<usize>| stamp.get(range).unwrap_or_default().to_owned();
    (part(0..10), part(11..19))
}

/// A time line: when, how long after the beginning, what, why, and what came of it. One that did not begin today has the
/// date on its first line and on the first of each further day.
pub(super) fn timeline(events: &[EventView], now: WallTime) -> String {
    let Some(first) = events.first() else { return String::new() };
    let mut text = String::new();
    let mut day = date_and_clock(now).0;
    for event in events {
        let after = event.at.0.since(first.at.0).as_secs_f64();
        let ((date, at), reason) = (date_and_clock(event.at.0), &event.reason);
        if date != day {
            text += &format!("  {date}\n");
            day = date;
        }
        text += &format!("  {at}  {:>9}  {reason:<17} {}\n", format!("+{after:.1}s"), one_line(&event.cause));
        text += &format!("{:>41}so: {}\n", "", one_line(&event.outcome));
    }
    text
}

#[cfg(test)]
mod tests {
    use keelson_api::types::{API_VERSION, SeverityView};

    use super::*;

    /// 2026-11-23T12:04:11Z.
    const NOW: WallTime = WallTime(1_795_435_451_000);
    const HOUR_MS: i64 = 3_600_000;

    fn hours_ago(hours: i64) -> WallTime {
        WallTime(NOW.0 - hours * HOUR_MS)
    }

    #[test]
    fn moments_of_another_day_have_their_date() {
        assert_eq!(moment(hours_ago(12), NOW), "00:04:11");
        assert_eq!(moment(hours_ago(13), NOW), "2026-11-22 23:04:11");
        assert_eq!(moment(hours_ago(24 * 365), NOW), "2025-11-23 12:04:11");
    }

    #[test]
    fn a_time_line_has_the_date_of_each_day_that_is_not_today() {
        let event = |hours: i64| EventView {
            api_version: API_VERSION.to_owned(),
            kind: "Event".to_owned(),
            id: 1,
            at: hours_ago(hours).into(),
            severity: SeverityView::Warning,
            reason: "RepairHeld".to_owned(),
            cluster: None,
            machine: None,
            incident: Some(7),
            cause: "cause".to_owned(),
            outcome: "outcome".to_owned(),
        };
        let dates = |hours: &[i64]| {
            let events: Vec<EventView> = hours.iter().map(|hours| event(*hours)).collect();
            let text = timeline(&events, NOW);
            text.lines()
                .filter(|line| line.len() == 12)
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(dates(&[2, 1]), Vec::<String>::new());
        assert_eq!(dates(&[50, 49, 25, 1]), ["2026-11-21", "2026-11-22", "2026-11-23"]);
    }
}
