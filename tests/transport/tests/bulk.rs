//! Bulk streams: large content, terminals, and what they must never do to heartbeats and messages.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use keelson_protocol::WallTime;
use keelson_protocol::limits::HEARTBEAT_INTERVAL;
use keelson_protocol::message::{BulkRequest, ShellFrame, ToAgent, ToCoordinator};
use keelson_transport::settings::{BULK_OPEN_TIMEOUT, BULK_STREAMS_MAX};
use keelson_transport::{BulkError, LinkError, SessionHandle};
use keelson_transport_tests::network::Bandwidth;
use keelson_transport_tests::{Agent, Coordinator, LinkModel, Seen, World, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const CONTENT_BYTES: usize = 10 * 1024 * 1024;

fn content() -> Vec<u8> {
    (0..CONTENT_BYTES).map(|index| (index % 251) as u8).collect()
}

/// A line of 20 Mbit/s with 20 ms each way and a buffer of 100 ms, as of a branch office.
const NARROW: LinkModel = LinkModel {
    delay: Duration::from_millis(20),
    bandwidth: Some(Bandwidth { bytes_per_second: 2_500_000, queue_max: Duration::from_millis(100) }),
    ..LinkModel::GOOD
};

async fn pair(world: &World) -> (Coordinator, Agent, SessionHandle) {
    let mut coordinator = Coordinator::start(world, 1);
    let mut agent = Agent::start(world, 1, &[coordinator.address]);
    agent.connected().await;
    let session = coordinator.opened().await.1;
    (coordinator, agent, session)
}

#[tokio::test(start_paused = true)]
async fn ten_megabytes_from_the_machine_delay_no_heartbeat() {
    let world = World::new(1);
    let (mut coordinator, mut agent, session) = pair(&world).await;
    world.network.set_default(NARROW);
    let begin = Instant::now();
    let machine = async {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        let (send_done, mut done) = tokio::sync::oneshot::channel();
        let mut send_done = Some(send_done);
        loop {
            // biased: a heartbeat that is due goes first. All are cancel-safe.
            tokio::select! {
                biased;
                _ = ticks.tick() => agent.beat(),
                _ = &mut done => return,
                (_, mut stream) = agent.bulk() => {
                    let send_done = send_done.take().expect("one stream");
                    tokio::spawn(async move {
                        stream.accept().await.unwrap();
                        let (_reader, mut writer) = stream.split();
                        writer.write_all(&content()).await.unwrap();
                        writer.finish();
                        writer.delivered().await.unwrap();
                        let _ = send_done.send(());
                    });
                }
            }
        }
    };
    let reader = async {
        let mut stream = session.open_bulk(BulkRequest::Status).await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        got
    };
    let ((), got) = within("the transfer", async { tokio::join!(machine, reader) }).await;
    assert!(got == content(), "the content is damaged");
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(4), "the line was not narrow: {took:?}");

    let mut heartbeats = Vec::new();
    for seen in coordinator.all_within(Duration::from_millis(100)).await {
        if let Seen::Heartbeat(_, heartbeat, at) = seen {
            heartbeats.push((heartbeat.sequence, at));
        }
    }
    assert!(heartbeats.len() as u64 >= took.as_secs(), "{} heartbeats in {took:?}", heartbeats.len());
    let late = heartbeats
        .iter()
        .map(|(sequence, at)| at.duration_since(begin) - HEARTBEAT_INTERVAL * (*sequence as u32 - 1))
        .max()
        .unwrap();
    // The line alone takes 20 ms, its full buffer 100 ms more, and one packet in front of us a little.
    assert!(late < Duration::from_millis(200), "a heartbeat came {late:?} after it was sent");
    println!("10 MB over 20 Mbit/s in {took:?}; slowest heartbeat took {late:?}");
}

#[tokio::test(start_paused = true)]
async fn ten_megabytes_to_the_machine_delay_no_message() {
    let world = World::new(2);
    let (_coordinator, mut agent, session) = pair(&world).await;
    world.network.set_default(NARROW);
    let (opened, (_, mut at_machine)) = tokio::join!(session.open_bulk(BulkRequest::Status), async {
        let (request, mut stream) = agent.bulk().await;
        stream.accept().await.unwrap();
        (request, stream)
    });
    let (_reader, mut writer) = opened.unwrap().split();
    let transfer = tokio::spawn(async move {
        writer.write_all(&content()).await.unwrap();
        writer.finish();
        writer.delivered().await.unwrap();
    });
    let receive = tokio::spawn(async move {
        let mut got = Vec::new();
        at_machine.read_to_end(&mut got).await.unwrap();
        got
    });
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let mut slowest = Duration::ZERO;
    let mut through = 0;
    while !transfer.is_finished() {
        ticks.tick().await;
        through += 1;
        let sent = Instant::now();
        session.send(ToAgent::EventsStored { through }).unwrap();
        assert_eq!(agent.message().await, ToAgent::EventsStored { through });
        slowest = slowest.max(sent.elapsed());
    }
    assert!(receive.await.unwrap() == content(), "the content is damaged");
    assert!(through >= 10, "{through} messages");
    // Messages share the connection's send window with the content, so they wait for at most that much of it.
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    println!("slowest of {through} messages beside 10 MB: {slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_that_nobody_reads_block_nothing_else() {
    let world = World::new(3);
    let (mut coordinator, mut agent, session) = pair(&world).await;
    let mut unread = Vec::new();
    for _ in 0..BULK_STREAMS_MAX {
        let (opened, mut writer) = tokio::join!(session.open_bulk(BulkRequest::Status), async {
            let (_, mut stream) = agent.bulk().await;
            stream.accept().await.unwrap();
            stream
        });
        unread.push(opened.unwrap());
        tokio::spawn(async move {
            let _ = writer.write_all(&content()).await;
        });
    }
    // One more than there may be waits, and gives up.
    let begin = Instant::now();
    let error = session.open_bulk(BulkRequest::Status).await.unwrap_err();
    assert_eq!(error, BulkError::Timeout { within: BULK_OPEN_TIMEOUT });
    assert_eq!(begin.elapsed().as_secs(), BULK_OPEN_TIMEOUT.as_secs());
    for asked_at in 0..20 {
        let message = ToCoordinator::TimeRequest { asked_at: WallTime(asked_at) };
        agent.link.send(message.clone()).unwrap();
        assert_eq!(coordinator.message().await.1, message);
        session.send(ToAgent::EventsStored { through: 1 }).unwrap();
        agent.message().await;
        agent.beat();
        coordinator.heartbeat().await;
    }
    // A stream that ends makes room for another.
    drop(unread.pop());
    let (opened, _stream) = tokio::join!(session.open_bulk(BulkRequest::Status), async {
        let (_, mut stream) = agent.bulk().await;
        stream.accept().await.unwrap();
        stream
    });
    opened.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_drops_a_request_ends_it() {
    let world = World::new(8);
    let (_coordinator, mut agent, session) = pair(&world).await;
    let (opened, ()) =
        tokio::join!(session.open_bulk(BulkRequest::Status), async { drop(agent.bulk().await) });
    assert_eq!(opened.unwrap_err(), BulkError::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_machine_may_refuse_and_says_why() {
    let world = World::new(4);
    let (_coordinator, mut agent, session) = pair(&world).await;
    let request = BulkRequest::Journal { unit: Some("nosuch.service".into()), lines: 10, follow: false };
    let (opened, ()) = tokio::join!(session.open_bulk(request.clone()), async {
        let (got, stream) = agent.bulk().await;
        assert_eq!(got, request);
        stream.refuse("no such unit").await.unwrap();
    });
    assert_eq!(opened.unwrap_err(), BulkError::Refused { why: "no such unit".into() });
}

#[tokio::test(start_paused = true)]
async fn a_terminal_speaks_both_ways_at_once() {
    let world = World::new(5);
    let (_coordinator, mut agent, session) = pair(&world).await;
    let request = BulkRequest::Shell { command: vec![], terminal: "xterm".into(), rows: 24, columns: 80 };
    let (opened, at_machine) = tokio::join!(session.open_bulk(request), async {
        let (_, mut stream) = agent.bulk().await;
        stream.accept().await.unwrap();
        stream
    });
    let machine = tokio::spawn(async move {
        let (mut reader, mut writer) = at_machine.split();
        let mut typed = Vec::new();
        while let Some(frame) = reader.read_frame().await.unwrap() {
            match frame {
                ShellFrame::Data(keys) => {
                    typed.extend_from_slice(&keys);
                    writer.write_frame(&ShellFrame::Data(keys.to_ascii_uppercase())).await.unwrap();
                }
                ShellFrame::Resize { rows, columns } => assert_eq!((rows, columns), (50, 132)),
                ShellFrame::Exit { .. } | ShellFrame::Error(_) => panic!("only a machine says that"),
                ShellFrame::EndOfInput => {}
            }
        }
        writer.write_frame(&ShellFrame::Exit { code: 130 }).await.unwrap();
        writer.finish();
        typed
    });
    let (mut reader, mut writer) = opened.unwrap().split();
    writer.write_frame(&ShellFrame::Data(b"ls".to_vec())).await.unwrap();
    writer.write_frame(&ShellFrame::Resize { rows: 50, columns: 132 }).await.unwrap();
    writer.write_frame(&ShellFrame::Data(b" -l\n".to_vec())).await.unwrap();
    writer.finish();
    let mut shown = Vec::new();
    let code = loop {
        match reader.read_frame().await.unwrap().expect("the exit comes first") {
            ShellFrame::Data(output) => shown.extend_from_slice(&output),
            ShellFrame::Exit { code } => break code,
            ShellFrame::Error(_) => panic!("a terminal has one output"),
            ShellFrame::Resize { .. } | ShellFrame::EndOfInput => panic!("only a user says that"),
        }
    };
    assert_eq!((shown, code), (b"LS -L\n".to_vec(), 130));
    assert_eq!(reader.read_frame().await, Ok(None));
    assert_eq!(machine.await.unwrap(), b"ls -l\n");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_is_given_up_never_looks_complete() {
    let world = World::new(6);
    let (_coordinator, mut agent, session) = pair(&world).await;
    let (opened, mut at_machine) = tokio::join!(session.open_bulk(BulkRequest::Status), async {
        let (_, mut stream) = agent.bulk().await;
        stream.accept().await.unwrap();
        stream
    });
    at_machine.write_all(b"half of it").await.unwrap();
    drop(at_machine);
    let mut got = Vec::new();
    let error = opened.unwrap().read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_ends_with_its_session() {
    let world = World::new(7);
    let (mut coordinator, mut agent, session) = pair(&world).await;
    let (opened, mut at_machine) = tokio::join!(session.open_bulk(BulkRequest::Status), async {
        let (_, mut stream) = agent.bulk().await;
        stream.accept().await.unwrap();
        stream
    });
    let mut stream = opened.unwrap();
    at_machine.write_all(b"half of it").await.unwrap();
    drop(agent);
    let mut got = Vec::new();
    assert!(stream.read_to_end(&mut got).await.is_err());
    coordinator.closed().await;
    let error = session.open_bulk(BulkRequest::Status).await.unwrap_err();
    assert!(matches!(error, BulkError::Link(LinkError::Closed { .. })), "{error}");
}
