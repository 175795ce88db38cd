//! Clients that break the protocol on purpose, against the real daemons. Whatever they do, memory stays bounded and
//! honest users are served: during each attack a download between two peers ends well.

use std::{net::SocketAddr, time::Duration};

use drizzle_proto::{net::guard::IN_TIME, wire};
use drizzle_tests::{
    Cluster, Content, Peer,
    hostile::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, Raw, call, frame, message,
        spelt,
    },
    until,
};
use prost::{Message, bytes::Bytes};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// No attack may make a daemon take this much.
const MEMORY: u64 = 256 << 20;

/// Calls that take a message: of the tracker, and of a peer.
const PATHS: [&str; 2] = ["/drizzle.v1.Tracker/RegisterChunk", "/drizzle.v1.Peer/FetchChunk"];

/// A tracker and a peer that shares a file.
struct Scene {
    cluster: Cluster,
    source: Peer,
    content: Content,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        let source = cluster.peer("source").await;
        let content = Content::small_chunks("A", 1, 64);
        source.share(&content).await;
        Self { cluster, source, content }
    }

    /// Where the two listen that are attacked.
    fn victims(&self) -> [SocketAddr; 2] {
        let tracker = self.cluster.tracker.address().to_string().parse().expect("an IP address");
        [tracker, self.source.address()]
    }

    /// A download while the attack goes on, and what it took of memory.
    #[allow(clippy::print_stdout, reason = "the figures, for whoever asks the test to show its output")]
    async fn is_served(&self, attack: &str) {
        let downloader = self.cluster.peer("downloader").await;
        downloader.download("A").await;
        self.content.assert_at(&downloader.path("A"));
        for (name, daemon) in [("tracker", &self.cluster.tracker.daemon), ("peer", &self.source.daemon)] {
            let peak = daemon.process.peak_memory();
            println!("{attack}: the {name} took {} MiB", peak >> 20);
            assert!(peak < MEMORY, "{attack}: the {name} took {} MiB", peak >> 20);
        }
    }
}

/// The numbers of streams that a client may begin.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|nth| 2 * nth + 1)
}

#[tokio::test]
async fn connections_that_say_nothing_or_drip_are_closed_in_time() {
    let scene = Scene::new().await;
    // One byte each second is no better than none. Whether it was closed meanwhile.
    let drips = scene.victims().map(|victim| {
        tokio::spawn(async move {
            let mut raw = Raw::silent(victim).await;
            for byte in PREFACE {
                if raw.is_closed() || !raw.send(&[*byte]).await {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            raw.is_closed()
        })
    });
    let mut open = Vec::new();
    for victim in scene.victims() {
        for nth in 0..400 {
            let mut raw = Raw::silent(victim).await;
            // Some of what a client begins with, but never all.
            assert!(raw.send(&PREFACE[..nth % PREFACE.len()]).await);
            open.push(raw);
        }
    }
    scene.is_served("half-open connections").await;
    for raw in open {
        raw.closed_within(2 * IN_TIME).await;
    }
    for drip in drips {
        assert!(drip.await.expect("it does not panic"), "it was let drip for {} s", PREFACE.len());
    }
}

#[tokio::test]
async fn ten_thousand_streams_are_not_taken() {
    let scene = Scene::new().await;
    for (victim, path) in scene.victims().into_iter().zip(PATHS) {
        let headers = call(path, &[]);
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut raw = Raw::new(victim).await;
            let begun: Vec<u8> = streams(10_000).flat_map(|id| frame(HEADERS, END_HEADERS, id, &headers)).collect();
            raw.send(&begun).await;
            open.push(raw);
        }
        // Begun and ended at once, again and again.
        let mut raw = Raw::new(victim).await;
        let reset = |id| [frame(HEADERS, END_HEADERS, id, &headers), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat();
        raw.send(&streams(10_000).flat_map(reset).collect::<Vec<u8>>()).await;
        open.push(raw);
        scene.is_served("ten thousand streams").await;
    }
}

/// By the rules of HTTP/2: what is sent is taken, and kept until the rest comes.
#[tokio::test]
async fn requests_that_are_never_whole_take_no_more_than_their_share() {
    const EACH: usize = 192 << 10;
    const LOOKS: u32 = 20;
    let scene = Scene::new().await;
    for (victim, path) in scene.victims().into_iter().zip(PATHS) {
        let (mut open, mut connections) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let stream = TcpStream::connect(victim).await.expect("it listens");
            let begun = h2::client::Builder::new().handshake::<_, Bytes>(stream).await;
            let (mut sender, connection) = begun.expect("it speaks HTTP/2");
            connections.push(AbortOnDropHandle::new(tokio::spawn(connection)));
            for _ in 0..1000 {
                let Ok(ready) = timeout(Duration::from_secs(2), sender.clone().ready()).await else { break };
                let Ok(ready) = ready else { break };
                sender = ready;
                let request = http::Request::post(format!("http://x{path}")).header("content-type", "application/grpc");
                let request = request.header("te", "trailers").body(()).expect("it is one");
                let Ok((answer, mut body)) = sender.send_request(request, false) else { break };
                // Said to be of 4 MiB, and most of it never comes.
                let _ = body.send_data(message(false, 4 << 20, &[7; EACH]).into(), false);
                open.push((body, answer));
            }
        }
        // What was sent has come, or is refused.
        let peak = || scene.cluster.tracker.daemon.process.peak_memory() + scene.source.daemon.process.peak_memory();
        let (mut before, mut alike) = (0, 0);
        until("memory that grows no more, in as many looks", async || {
            let now = peak();
            alike = if std::mem::replace(&mut before, now) == now { alike + 1 } else { 0 };
            (alike >= LOOKS).then_some(())
        })
        .await;
        scene.is_served("requests that are never whole").await;
    }
}

/// Calls whose answers are long, and are never read: a window of HTTP/2 that is never opened, a socket that is full.
#[tokio::test]
async fn callers_that_never_read_their_answers_fill_no_memory() {
    let scene = Scene::new().await;
    let file = scene.content.manifest.id().to_string();
    let list = wire::ListFilesRequest::default().encode_to_vec();
    let chunk = wire::FetchChunkRequest { file_id: file, ..Default::default() }.encode_to_vec();
    let calls = [("/drizzle.v1.Tracker/ListFiles", list), ("/drizzle.v1.Peer/FetchChunk", chunk)];
    for (victim, (path, request)) in scene.victims().into_iter().zip(calls) {
        let headers = call(path, &[]);
        let body = message(false, u32::try_from(request.len()).expect("a short message"), &request);
        let asked = |id| [frame(HEADERS, END_HEADERS, id, &headers), frame(DATA, END_STREAM, id, &body)].concat();
        let asked: Vec<u8> = streams(200).flat_map(asked).collect();
        let mut open = JoinSet::new();
        for nth in 0..64 {
            let asked = asked.clone();
            open.spawn(async move {
                // Half of them say that everything may come, and read nothing from the socket.
                let mut raw = if nth % 2 == 0 { Raw::deaf(victim).await } else { Raw::without_window(victim).await };
                raw.send(&asked).await;
                raw
            });
        }
        let _open = open.join_all().await;
        scene.is_served("answers that are never read").await;
    }
}

#[tokio::test]
async fn header_bombs_are_defused() {
    let scene = Scene::new().await;
    for (victim, path) in scene.victims().into_iter().zip(PATHS) {
        let headers = call(path, &[]);
        let mut open = Vec::new();
        // Headers without end, in frames without number: with something in them, and with nothing.
        for part in [spelt("a", &"b".repeat(100)).repeat(100), Vec::new()] {
            let mut raw = Raw::new(victim).await;
            raw.send(&frame(HEADERS, 0, 1, &headers)).await;
            for _ in 0..200 {
                let more: Vec<u8> = (0..50).flat_map(|_| frame(CONTINUATION, 0, 1, &part)).collect();
                if !raw.send(&more).await {
                    break;
                }
            }
            raw.closed_within(Duration::from_secs(20)).await;
        }
        // One long header that is remembered, and a byte for each time that it is meant: 16 MiB of headers in 4 KiB.
        let mut raw = Raw::new(victim).await;
        let mut bomb = headers.clone();
        bomb.extend([&[0x40, 1][..], b"a", &[0x7f, 0x81, 0x1e], &[b'b'; 4000]].concat());
        bomb.extend([0xbe; 4000]);
        for id in streams(500) {
            if !raw.send(&frame(HEADERS, END_HEADERS, id, &bomb)).await {
                break;
            }
        }
        open.push(raw);
        scene.is_served("header bombs").await;
    }
}

#[tokio::test]
async fn oversized_frames_and_compressed_messages_are_refused() {
    let scene = Scene::new().await;
    for (victim, path) in scene.victims().into_iter().zip(PATHS) {
        // A frame of 16 MiB.
        let mut raw = Raw::new(victim).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &call(path, &[]))).await;
        raw.send(&[&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &vec![0; 1 << 20]].concat()).await;
        raw.closed_within(Duration::from_secs(20)).await;
        // Messages of 4 GiB, ones that are compressed though it was not agreed on, and a bomb of zeros where it was.
        let bomb = zeros();
        let gzip: &[(&str, &str)] = &[("grpc-encoding", "gzip")];
        let mut raw = Raw::new(victim).await;
        let begins = [
            (&[][..], message(false, u32::MAX, &[1; 1000])),
            (&[][..], message(true, 1000, &[1; 1000])),
            (gzip, message(true, u32::try_from(bomb.len()).expect("it is short"), &bomb)),
        ];
        for (id, (more, begin)) in streams(999).zip(begins.iter().cycle()) {
            let bytes = [frame(HEADERS, END_HEADERS, id, &call(path, more)), frame(DATA, 1, id, begin)].concat();
            if !raw.send(&bytes).await {
                break;
            }
        }
        // Questions that nobody waits for the answers of.
        raw.send(&frame(PING, 0, 0, &[0; 8]).repeat(50_000)).await;
        scene.is_served("oversized frames and bombs").await;
    }
}

/// Many zeros in the form of gzip: 1 MiB of them in about a KiB, three times.
fn zeros() -> Vec<u8> {
    // A block of deflate that repeats: stored by hand, so that no crate is needed for it. The first bytes are gzip's
    // head; a literal zero, then copies of 258 bytes from one byte before.
    let mut bits = Bits::default();
    bits.put(0b011, 3); // the last block, with the fixed codes
    bits.put_reversed(0x30, 8); // a zero
    for _ in 0..4000 {
        bits.put_reversed(0b1100_0101, 8); // 258 bytes
        bits.put_reversed(0, 5); // from one before
    }
    bits.put(0, 7); // the end
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &bits.bytes, &[0; 8]].concat()
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, len: u32) {
        for at in 0..len {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let bit = u8::from(value >> at & 1 == 1) << (self.used % 8);
            *self.bytes.last_mut().expect("there is a byte") |= bit;
            self.used += 1;
        }
    }

    fn put_reversed(&mut self, value: u32, len: u32) {
        self.put(value.reverse_bits() >> (32 - len), len);
    }
}
