//! A client that breaks the protocol on purpose: HTTP/2 frames made by hand, over plain TCP.
//!
//! A correct library would refuse to send most of this. What a server answers is read and thrown away, so that it is never
//! held up by that, unless a test does not read on purpose.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::timeout,
};

/// What every HTTP/2 connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames, by RFC 9113.
pub const DATA: u8 = 0;
/// Begins a stream.
pub const HEADERS: u8 = 1;
/// Ends a stream at once.
pub const RST_STREAM: u8 = 3;
/// Says what its sender takes.
pub const SETTINGS: u8 = 4;
/// Wants an answer.
pub const PING: u8 = 6;
/// Lets more bytes come.
pub const WINDOW_UPDATE: u8 = 8;
/// More headers.
pub const CONTINUATION: u8 = 9;
/// The headers are whole.
pub const END_HEADERS: u8 = 4;
/// Nothing more comes on this stream.
pub const END_STREAM: u8 = 1;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is new to the other end and is to be forgotten: the name by its number in HPACK's table, up to 14.
fn named(number: u8, value: &str) -> Vec<u8> {
    assert!(number < 15 && value.len() < 127, "one byte for each");
    [&[number, u8::try_from(value.len()).expect("it is short")], value.as_bytes()].concat()
}

/// The same with its name in letters.
pub fn spelt(name: &str, value: &str) -> Vec<u8> {
    let len = |text: &str| u8::try_from(text.len()).ok().filter(|len| *len < 127).expect("one byte for each");
    [&[0, len(name)][..], name.as_bytes(), &[len(value)], value.as_bytes()].concat()
}

/// The headers of a gRPC call of this path, with some more.
pub fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // POST and http have numbers of their own.
    let mut block = vec![0x83, 0x86];
    block.extend(named(4, path));
    block.extend(named(1, "x"));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(more) {
        block.extend(spelt(name, value));
    }
    block
}

/// A message of gRPC that says how long it is, with so many of its bytes.
pub fn message(compressed: bool, len: u32, bytes: &[u8]) -> Vec<u8> {
    [&[u8::from(compressed)][..], &len.to_be_bytes(), bytes].concat()
}

/// A connection whose every byte a test chooses.
#[derive(Debug)]
pub struct Raw {
    write: OwnedWriteHalf,
    reads: JoinHandle<Vec<u8>>,
}

impl Raw {
    /// Connects, and sends nothing.
    ///
    /// # Panics
    /// If nobody listens there.
    pub async fn silent(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("somebody listens");
        let (read, write) = stream.into_split();
        Self { write, reads: tokio::spawn(last_of(read)) }
    }

    /// Connects as HTTP/2 clients do, with windows that let everything come.
    pub async fn new(to: SocketAddr) -> Self {
        Self::silent(to).await.opened(0x7fff_ffff).await
    }

    /// As [`Raw::new`], but with windows in which no byte of an answer has room.
    pub async fn without_window(to: SocketAddr) -> Self {
        Self::silent(to).await.opened(0).await
    }

    /// As [`Raw::new`], but never reads what comes.
    ///
    /// # Panics
    /// If nobody listens there.
    pub async fn deaf(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("somebody listens");
        let (read, write) = stream.into_split();
        let reads = tokio::spawn(async move {
            std::future::pending::<()>().await;
            last_of(read).await
        });
        Self { write, reads }.opened(0x7fff_ffff).await
    }

    /// Sends what clients begin with. Each stream's window is so wide.
    async fn opened(mut self, window: u32) -> Self {
        // INITIAL_WINDOW_SIZE
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        let opening = [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0])];
        self.send(&opening.concat()).await;
        self
    }

    /// Sends bytes; whether they went, which they do not if the other end has had enough.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        // One that does not read any more is as good as gone.
        let sent = timeout(Duration::from_secs(5), self.write.write_all(bytes)).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    /// Waits until the other end has closed the connection; the last bytes that came.
    ///
    /// # Panics
    /// If it does not within this time.
    pub async fn closed_within(self, time: Duration) -> Vec<u8> {
        timeout(time, self.reads).await.expect("the other end closes it").expect("reading does not panic")
    }

    /// Whether the other end has closed it.
    pub fn is_closed(&self) -> bool {
        self.reads.is_finished()
    }
}

/// Reads to the end; the last bytes.
async fn last_of(mut read: OwnedReadHalf) -> Vec<u8> {
    let (mut last, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match read.read(&mut buffer).await {
            Ok(0) => return last,
            Ok(len) => {
                last.extend_from_slice(&buffer[..len]);
                last.drain(..last.len().saturating_sub(4096));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return last,
        }
    }
}
