//! A cluster that cannot be reached: every check is told, nothing hangs.

use std::net::TcpListener;
use std::time::Duration;

use keelson_check::{NAMES, Outcome, Report, connect, run};

/// A kubeconfig that leads to a port of this machine.
fn kubeconfig(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    )
}

fn outcomes(report: &Report) -> Vec<Outcome> {
    report.checks.iter().map(|check| check.outcome).collect()
}

#[tokio::test]
async fn nobody_listens() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let client = connect(&kubeconfig(port)).await.unwrap();
    let mut told = Vec::new();
    let report =
        run(client, Duration::from_secs(60), std::future::pending(), |check| told.push(check.clone())).await;
    assert!(!report.passed());
    assert_eq!(told, report.checks);
    assert_eq!(report.checks.iter().map(|check| check.name).collect::<Vec<_>>(), NAMES);
    let first = &report.checks[0];
    assert_eq!(first.outcome, Outcome::Failed);
    assert!(first.detail.contains("refused"), "{}", first.detail);
    assert!(first.remedy.is_some());
    assert!(outcomes(&report)[1..12].iter().all(|outcome| *outcome == Outcome::Skipped));
    assert_eq!(report.checks[1].detail, "not tried: api-server failed");
}

#[tokio::test]
async fn somebody_listens_and_never_answers() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = connect(&kubeconfig(socket.local_addr().unwrap().port())).await.unwrap();
    let report = run(client.clone(), Duration::from_millis(50), std::future::pending(), |_| {}).await;
    assert_eq!(report.checks[0].outcome, Outcome::Failed);
    assert!(report.checks[0].remedy.as_deref().unwrap().contains("--timeout"));
    // Somebody who interrupts is obeyed at once.
    let report = run(client, Duration::from_secs(60), std::future::ready(()), |_| {}).await;
    assert_eq!(outcomes(&report)[0], Outcome::Skipped);
    assert_eq!(report.checks[0].detail, "not tried: interrupted");
}

#[tokio::test]
async fn what_is_no_kubeconfig_is_refused() {
    assert!(connect("certainly: not").await.is_err());
}
