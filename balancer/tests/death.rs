//! Connections through a balancer whose targets freeze, die and come back; over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends, and it says what it measured"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keelson_balancer::{Ask, CHECK_EVERY, Checks, Targets, carry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// From the death of a target until its connections are gone and a new one stands.
const OVER_WITHIN: Duration = Duration::from_secs(2);
/// Nothing in these tests takes as long: what is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A target that says its name to whoever says anything. While frozen, its kernel goes on taking connections.
struct Target {
    address: SocketAddr,
    name: u8,
    frozen: watch::Sender<bool>,
    life: JoinSet<()>,
}

impl Target {
    async fn new(name: u8) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut target =
            Self { address: any_port, name, frozen: watch::Sender::new(false), life: JoinSet::new() };
        target.live().await;
        target
    }

    async fn live(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.life.spawn(serve(listener, self.name, self.frozen.subscribe()));
    }

    /// Listener and connections are gone; the kernel refuses what comes.
    async fn die(&mut self) {
        self.life.shutdown().await;
    }

    fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

async fn serve(listener: TcpListener, name: u8, frozen: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(answer(stream, name, frozen.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream, name: u8, mut frozen: watch::Receiver<bool>) {
    let mut byte = [0; 1];
    while stream.read_exact(&mut byte).await.is_ok() && frozen.wait_for(|frozen| !frozen).await.is_ok() {
        if stream.write_all(&[name]).await.is_err() {
            return;
        }
    }
}

/// Asks as a client would, over a connection of its own.
struct Question(SocketAddr);

impl Ask for Question {
    async fn ask(&mut self) -> Result<(), String> {
        let mut stream = TcpStream::connect(self.0).await.map_err(|error| error.to_string())?;
        say(&mut stream).await.map(drop).map_err(|error| error.to_string())
    }
}

async fn say(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.write_all(b"?").await?;
    stream.read_u8().await
}

/// A balancer in front of targets.
struct Front {
    address: SocketAddr,
    targets: Arc<Targets>,
    _life: (JoinSet<()>, Checks),
}

impl Front {
    async fn new(behind: &[&Target]) -> Self {
        let targets = Arc::new(Targets::default());
        targets.replace(&behind.iter().map(|target| target.address).collect::<Vec<_>>());
        let checks = Checks::start(&targets, Question);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut accepting, list) = (JoinSet::new(), Arc::clone(&targets));
        accepting.spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let list = Arc::clone(&list);
                tokio::spawn(async move { carry(client, &list, TcpStream::connect).await });
            }
        });
        Self { address, targets, _life: (accepting, checks) }
    }

    /// A connection that stands at this target.
    async fn standing_at(&self, target: &Target) -> TcpStream {
        eventually(async || {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            (say(&mut stream).await.ok() == Some(target.name)).then_some(stream)
        })
        .await
    }

    /// Waits until exactly these targets are known as dead.
    async fn knows_dead(&self, dead: &[&Target]) {
        let dead: Vec<SocketAddr> = dead.iter().map(|target| target.address).collect();
        eventually(async || (self.targets.unhealthy() == dead).then_some(())).await;
    }

    /// Connects until somebody answers at once, and says who.
    async fn answered_by(&self) -> u8 {
        eventually(async || {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            timeout(CHECK_EVERY, say(&mut stream)).await.ok()?.ok()
        })
        .await
    }
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it happens in the end")
}

/// `kill` strikes the target of a standing connection, which must be reset, and another target must answer, in time.
async fn check_death(what: &str, kill: impl AsyncFnOnce(&mut Target)) {
    let (mut victim, other) = (Target::new(b'a').await, Target::new(b'b').await);
    let front = Front::new(&[&victim, &other]).await;
    let mut standing = front.standing_at(&victim).await;
    let mut spared = front.standing_at(&other).await;
    let struck = Instant::now();
    kill(&mut victim).await;
    let _ = standing.write_all(b"?").await;
    let end = timeout(PATIENCE, standing.read_u8()).await.unwrap().unwrap_err();
    let ended = struck.elapsed();
    assert_eq!(front.answered_by().await, b'b');
    let over = struck.elapsed();
    println!("{what}: ended after {} ms ({end}), answered after {} ms", ended.as_millis(), over.as_millis());
    assert!(over < OVER_WITHIN, "{what}: {over:?}");
    assert_eq!(say(&mut spared).await.unwrap(), b'b', "the other's connection stands");
}

#[tokio::test]
async fn connections_leave_a_frozen_target() {
    check_death("frozen", async |target| target.freeze(true)).await;
}

#[tokio::test]
async fn connections_leave_a_target_that_died() {
    check_death("died", async |target| target.die().await).await;
}

#[tokio::test]
async fn when_all_seem_dead_no_connection_ends_and_all_are_tried() {
    let (a, b) = (Target::new(b'a').await, Target::new(b'b').await);
    for target in [&a, &b] {
        target.freeze(true);
    }
    let front = Front::new(&[&a, &b]).await;
    let mut standing = Vec::new();
    for _ in 0..2 {
        standing.push(TcpStream::connect(front.address).await.unwrap());
    }
    front.knows_dead(&[&a, &b]).await;
    for _ in 0..2 {
        standing.push(TcpStream::connect(front.address).await.unwrap());
    }
    for target in [&a, &b] {
        target.freeze(false);
    }
    let mut answers = Vec::new();
    for stream in &mut standing {
        answers.push(say(stream).await.unwrap());
    }
    answers.sort_unstable();
    assert_eq!(answers, *b"aabb");
    front.knows_dead(&[]).await;
    for stream in &mut standing {
        say(stream).await.expect("that another came back first ends no connection");
    }
}

#[tokio::test]
async fn a_target_that_comes_back_is_used_again() {
    let (mut a, b) = (Target::new(b'a').await, Target::new(b'b').await);
    let front = Front::new(&[&a, &b]).await;
    a.die().await;
    front.knows_dead(&[&a]).await;
    assert_eq!(front.answered_by().await, b'b');
    a.live().await;
    front.knows_dead(&[]).await;
    front.standing_at(&a).await;
}
