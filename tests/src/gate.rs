//! A TCP proxy in front of a real peer: its bytes pass when the test says so, and its connections break
//! when the test says so. That is how a test acts in the middle of a download without racing it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    task::JoinHandle,
};

/// Far more than any test moves, and still below a semaphore's limit.
const UNLIMITED: usize = 1 << 50;

const BUFFER: usize = 16 << 10;

/// The proxy; it ends with the test's runtime.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: OnceLock<SocketAddr>,
    /// Bytes that may still pass towards the downloaders.
    allowance: Semaphore,
    passed: AtomicU64,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl Gate {
    /// A closed gate on a free port, in front of nothing yet.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn closed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port has an address");
        let shared = Arc::new(Shared {
            target: OnceLock::new(),
            allowance: Semaphore::new(0),
            passed: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, accepting }
    }

    /// Where downloaders reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says which peer is behind it.
    ///
    /// # Panics
    /// If that was said before.
    pub fn lead_to(&self, target: SocketAddr) {
        self.shared.target.set(target).expect("a gate leads to one peer");
    }

    /// Lets this many more bytes pass.
    pub fn allow(&self, bytes: usize) {
        self.shared.allowance.add_permits(bytes);
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.allow(UNLIMITED);
    }

    /// Bytes that passed towards downloaders.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Breaks every connection and accepts no more.
    ///
    /// # Panics
    /// If a connection's task panicked.
    pub fn cut(&self) {
        self.accepting.abort();
        for connection in self.shared.connections.lock().expect("nobody panics with it").drain(..) {
            connection.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((downloader, _)) = listener.accept().await {
        let connection = tokio::spawn(connect(downloader, shared.clone()));
        shared.connections.lock().expect("nobody panics with it").push(connection);
    }
}

async fn connect(downloader: TcpStream, shared: Arc<Shared>) {
    let Some(&target) = shared.target.get() else { return };
    let Ok(peer) = TcpStream::connect(target).await else { return };
    let _ = (downloader.set_nodelay(true), peer.set_nodelay(true));
    let (mut from_downloader, to_downloader) = downloader.into_split();
    let (from_peer, mut to_peer) = peer.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_downloader, &mut to_peer) => {}
        () = pass(from_peer, to_downloader, &shared) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let permits = u32::try_from(read).unwrap_or(u32::MAX);
        let Ok(permit) = shared.allowance.acquire_many(permits).await else { return };
        permit.forget();
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        shared.passed.fetch_add(read as u64, Ordering::Relaxed);
    }
}
