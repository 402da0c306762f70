//! What a person sees: `status`, `version`, errors.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use keelson_agent_core::{AgentStatus, IsolationStatus, LinkStatus, UnitStatus};
use keelson_protocol::WallTime;
use keelson_protocol::health::UnitState;

use crate::clock;
use crate::paths::Paths;

/// An agent that takes longer to answer is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the running agent and prints what it says.
pub(crate) fn print(paths: &Paths, json: bool) -> anyhow::Result<()> {
    let text = ask(paths)?;
    if json {
        return out(&format!("{text}\n"));
    }
    let status: AgentStatus =
        serde_json::from_str(&text).context("the running agent speaks another version; restart it")?;
    out(&render(&status, clock::wall()))
}

/// Prints the version.
pub(crate) fn print_version() -> anyhow::Result<()> {
    out(&format!("keelson-agent {}\n", env!("CARGO_PKG_VERSION")))
}

/// Prints an error with its causes.
pub(crate) fn print_error(error: &anyhow::Error) {
    // Nobody is left to hear that this failed.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}

fn out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `keelson-agent status | head -1` is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn ask(paths: &Paths) -> anyhow::Result<String> {
    let socket = paths.socket();
    let mut stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!("only root may ask the agent; try again with sudo");
        }
        Err(error) => bail!(
            "the agent does not run on this machine ({}: {error}); see `systemctl status keelson-agent`",
            socket.display()
        ),
    };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut text = String::new();
    let asked = stream.read_to_string(&mut text);
    asked.context("the agent does not answer; see `journalctl -u keelson-agent`")?;
    if text.is_empty() {
        bail!("the agent closed the connection; it may be stopping right now");
    }
    Ok(text)
}

fn render(status: &AgentStatus, now: WallTime) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        writeln!(text, "{key:<12} {value}").expect("a String takes any text");
    };
    line("machine", format!("{} (incarnation {})", status.machine, status.incarnation));
    line("boot", status.boot.clone());
    if let (Some(cluster), Some(release), Some(generation)) =
        (&status.cluster, &status.release, status.generation)
    {
        line("cluster", format!("{cluster}, release {release}, generation {generation}"));
    } else {
        line("cluster", "none yet: the coordinator has sent no config".to_owned());
    }
    let why = status.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    line("state", format!("{}{why}", status.state));
    line("coordinator", link(&status.link, now));
    if let Some(peers) = peers(&status.isolation, now) {
        line("peers", peers);
    }
    if let Some(since) = status.fenced_since_ms {
        let fenced =
            "has given up its work, which may run elsewhere; it goes on when somebody can be reached";
        line("fence", format!("{fenced}, for {}", age(since, now)));
    }
    if let Some(remedy) = &status.remedy {
        line("remedy", remedy.clone());
    }
    if let Some(room) = status.pressure {
        line(
            "room",
            format!(
                "disk {} % used, inodes {} % used, memory {} % available",
                room.disk_used_percent, room.inodes_used_percent, room.memory_available_percent
            ),
        );
    }
    if let Some(offset) = status.clock_offset_ms {
        line("clock", clock_offset(offset));
    }
    if status.events_waiting > 0 {
        line("events", format!("{} wait for the coordinator", status.events_waiting));
    }
    units(&mut text, &status.units, now);
    certificates(&mut text, status, now);
    events(&mut text, status, now);
    text
}

/// A clock that is off by half a minute makes programs refuse each other's certificates.
fn clock_offset(offset_ms: i64) -> String {
    let off = Duration::from_millis(offset_ms.unsigned_abs());
    if off <= Duration::from_secs(30) {
        return format!("{offset_ms:+} ms against the coordinator");
    }
    let direction = if offset_ms < 0 { "behind" } else { "ahead of" };
    format!("{} {direction} the coordinator's: set the clock of this machine", duration(off))
}

fn link(link: &LinkStatus, now: WallTime) -> String {
    match link {
        LinkStatus::Connected { coordinator, since_ms } => {
            format!("connected to {coordinator} for {}", age(*since_ms, now))
        }
        LinkStatus::Disconnected { since_ms, why, retry_at_ms } => {
            let next = retry_at_ms.map(|at| WallTime(at).since(now).as_secs());
            let next = next.map(|seconds| format!("; next try in {seconds} s")).unwrap_or_default();
            format!("not connected for {}: {why}{next}", age(*since_ms, now))
        }
    }
}

/// What the neighbours say; nothing while the coordinator is there, because nobody asks them then.
fn peers(isolation: &IsolationStatus, now: WallTime) -> Option<String> {
    match isolation {
        IsolationStatus::Connected => None,
        IsolationStatus::Unknown { .. } => {
            Some("not known yet whether this machine can reach its neighbours".to_owned())
        }
        IsolationStatus::LinkOnly { since_ms } => Some(format!(
            "neighbours can be reached for {}: only the coordinator is lost",
            age(*since_ms, now)
        )),
        IsolationStatus::Alone { since_ms } => Some(format!(
            "no neighbour can be reached for {}: this machine is cut off; look at its network",
            age(*since_ms, now)
        )),
    }
}

fn units(text: &mut String, units: &[UnitStatus], now: WallTime) {
    if units.is_empty() {
        return;
    }
    let rows = units.iter().map(|unit| {
        let (state, why) = in_words(&unit.state);
        [
            unit.name.clone(),
            state.to_owned(),
            age(unit.since_ms, now),
            unit.restarts.to_string(),
            why.to_owned(),
        ]
    });
    table(text, ["UNIT", "STATE", "FOR", "RESTARTS", "WHY"], rows.collect());
}

fn in_words(state: &UnitState) -> (&'static str, &str) {
    match state {
        UnitState::Waiting { on } => ("waiting for", on),
        UnitState::Starting => ("starting", ""),
        UnitState::Healthy => ("healthy", ""),
        UnitState::Unhealthy { why } => ("unhealthy", why),
        UnitState::Down { why } => ("down", why),
        UnitState::GivenUp { why } => ("given up", why),
    }
}

fn certificates(text: &mut String, status: &AgentStatus, now: WallTime) {
    if status.certificates.is_empty() {
        return;
    }
    let ahead = |at: Option<i64>| at.map_or_else(|| "-".to_owned(), |at| duration(WallTime(at).since(now)));
    let rows = status.certificates.iter().map(|certificate| {
        let note = match (&certificate.refused, certificate.not_after_ms) {
            (Some(why), _) => format!("refused: {why}"),
            (None, None) => "not held yet".to_owned(),
            (None, Some(at)) if WallTime(at) <= now => "expired".to_owned(),
            (None, Some(_)) => String::new(),
        };
        [certificate.name.clone(), ahead(certificate.not_after_ms), ahead(certificate.renew_at_ms), note]
    });
    table(text, ["CERTIFICATE", "ENDS IN", "RENEWED IN", ""], rows.collect());
}

fn events(text: &mut String, status: &AgentStatus, now: WallTime) {
    if status.events.is_empty() {
        return;
    }
    let rows = status.events.iter().map(|event| {
        let kind = serde_json::to_value(event.kind).ok();
        let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("?").to_owned();
        [age(event.at_ms, now), kind, event.subject.clone(), format!("{} -> {}", event.cause, event.outcome)]
    });
    table(text, ["AGO", "EVENT", "OF", "CAUSE -> OUTCOME"], rows.collect());
}

/// Columns as wide as their widest word; the last one is left as it is.
fn table<const N: usize>(text: &mut String, head: [&str; N], rows: Vec<[String; N]>) {
    let mut widths = head.map(|word| word.chars().count());
    for row in &rows {
        for (width, word) in widths.iter_mut().zip(row) {
            *width = (*width).max(word.chars().count());
        }
    }
    text.push('\n');
    for row in std::iter::once(head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (word, width) in row.iter().zip(widths) {
            write!(line, "{word:<width$}  ").expect("a String takes any text");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn age(since_ms: i64, now: WallTime) -> String {
    duration(now.since(WallTime(since_ms)))
}

/// The two largest units, as `kubectl` shows ages.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        7_200..172_800 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m00s"),
            (7_199, "119m59s"),
            (7_200, "2h00m"),
            (200_000, "2d07h"),
        ];
        for (seconds, expected) in table {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_status_reads_well() {
        let json = r#"{"machine":"demo-worker-1","incarnation":1,"boot":"00ff","cluster":"demo","release":"1.37.2",
            "generation":3,"state":"degraded","why":"kubelet.service is not healthy yet",
            "link":{"state":"disconnected","sinceMs":0,"why":"10.0.0.1:7443: no answer within 3s","retryAtMs":104000},
            "isolation":{"state":"alone","sinceMs":10000},"fencedSinceMs":90000,
            "remedy":"disk: 1 of 4 acts are done",
            "units":[{"name":"kubelet.service","state":{"down":{"why":"it was killed by signal 9"}},"sinceMs":98000,
            "restarts":2}],"certificates":[{"name":"link","notAfterMs":7300000,"renewAtMs":50000,"refused":null}],
            "pressure":{"diskUsedPercent":40,"inodesUsedPercent":3,"memoryAvailablePercent":60},"clockOffsetMs":-4000000,
            "eventsWaiting":1,"events":[{"sequence":9,"atMs":98000,"kind":"unitFailed","subject":"kubelet.service",
            "cause":"it was killed by signal 9","outcome":"started again within 3 s"}]}"#;
        let status: AgentStatus = serde_json::from_str(json).unwrap();
        let expected = "\
machine      demo-worker-1 (incarnation 1)
boot         00ff
cluster      demo, release 1.37.2, generation 3
state        degraded: kubelet.service is not healthy yet
coordinator  not connected for 100s: 10.0.0.1:7443: no answer within 3s; next try in 4 s
peers        no neighbour can be reached for 90s: this machine is cut off; look at its network
fence        has given up its work, which may run elsewhere; it goes on when somebody can be reached, for 10s
remedy       disk: 1 of 4 acts are done
room         disk 40 % used, inodes 3 % used, memory 60 % available
clock        66m40s behind the coordinator's: set the clock of this machine
events       1 wait for the coordinator

UNIT             STATE  FOR  RESTARTS  WHY
kubelet.service  down   2s   2         it was killed by signal 9

CERTIFICATE  ENDS IN  RENEWED IN
link         2h00m    0s

AGO  EVENT       OF               CAUSE -> OUTCOME
2s   unitFailed  kubelet.service  it was killed by signal 9 -> started again within 3 s
";
        assert_eq!(render(&status, WallTime(100_000)), expected);
    }
}
