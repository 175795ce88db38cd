//! The server's end of a connection until it is known what is at the other end, and after.
//!
//! tonic gives each accepted connection a task of its own, and takes what it is told of it before anything was read. So the
//! handshake runs in that task, when it first reads or writes, and its result is put where the requests find it:
//! [`Accepted`]. What holds (each line has a test):
//! - the first byte tells TLS from HTTP/2 without it; what is not served is refused in the language of the caller;
//! - whoever has not finished within [`IN_TIME`] is gone, however slowly it drips, and so is who then does not begin to
//!   speak HTTP/2 by the same moment;
//! - one identity has a bounded number of connections ([`crowd`](super::crowd));
//! - a certificate that ran out proves nothing, also where a session is resumed.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Sleep, sleep},
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{
    ahead::WriteAhead,
    caller::{Accepted, Caller},
    crowd::{Crowd, Place},
    handshakes::{End, Handshakes, Went},
    tls::Certificate,
};

/// A handshake, and the first byte before it, may take this long.
pub const IN_TIME: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection: a handshake record.
const TLS: u8 = 0x16;

/// An empty SETTINGS frame, and GOAWAY with INADEQUATE_SECURITY: HTTP/2 for "this port speaks TLS".
const NOT_WITHOUT_TLS: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x21\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port speaks TLS only";
/// Bytes of the SETTINGS frame, which some clients wait for before they ask. The rest is the answer to a question: a client
/// that has not asked yet would hear of nothing but a closed connection.
const SETTINGS: usize = 9;

/// Bytes that are encrypted before they are written, so that a message of a chunk is one call.
const WRITTEN: usize = 288 << 10;

/// Of a caller that is refused so many bytes are read.
const MOST_UNREAD: usize = 64 << 10;

/// What is done with connections as they come.
#[derive(Debug, Clone)]
pub struct Policy {
    /// With this; absent: TLS is not spoken.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Whether connections without it are served.
    pub(super) plain: bool,
    /// Who has how many.
    pub(super) crowd: Crowd,
    /// Counts them.
    pub(super) handshakes: Handshakes,
}

/// What HTTP/2 begins with: 24 bytes that are always the same, and the head of a SETTINGS frame. Who has said that is
/// probed from then on.
const BEGINNING: usize = PREFACE + 9;
/// Of these, what never changes.
const PREFACE: usize = 24;

/// An accepted connection.
pub struct Guarded<S = TcpStream> {
    state: State<S>,
    accepted: Accepted,
    crowd: Crowd,
    handshakes: Handshakes,
    /// Counts it, once it is known whose it is.
    place: Option<Place>,
    begins: Option<Begins>,
}

/// A connection whose first bytes of requests have yet to come.
struct Begins {
    deadline: Pin<Box<Sleep>>,
    read: usize,
}

enum State<S> {
    /// Nothing came yet.
    Silent {
        stream: S,
        policy: Policy,
        deadline: Pin<Box<Sleep>>,
    },
    Shaking {
        accept: Box<Accept<S>>,
        deadline: Pin<Box<Sleep>>,
    },
    /// Refused: so many bytes of the reason are written, and this was read.
    Refused {
        stream: S,
        deadline: Pin<Box<Sleep>>,
        written: usize,
        read: Vec<u8>,
    },
    Plain(S),
    Secure(Box<TlsStream<S>>),
    /// Failed before; or in between two states.
    Over,
}

/// What a connection can be asked before a byte is taken from it.
pub trait Peek {
    /// Its first byte, which stays; none at its end.
    fn poll_first(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>>;
}

impl Peek for TcpStream {
    fn poll_first(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        let mut byte = [0];
        let read = ready!(self.poll_peek(context, &mut ReadBuf::new(&mut byte)))?;
        Poll::Ready(Ok((read > 0).then_some(byte[0])))
    }
}

impl Guarded<TcpStream> {
    /// A connection from the network.
    pub(super) fn new(stream: TcpStream, policy: Policy) -> Self {
        let accepted = Accepted::new(stream.peer_addr().ok());
        let (crowd, handshakes) = (policy.crowd.clone(), policy.handshakes.clone());
        let state = State::Silent { stream, policy, deadline: Box::pin(sleep(IN_TIME)) };
        Self { state, accepted, crowd, handshakes, place: None, begins: None }
    }
}

impl Guarded<UnixStream> {
    /// A connection from this machine, which the rights of the socket's folder let in.
    pub(super) fn local(stream: UnixStream) -> Self {
        let accepted = Accepted::new(None);
        accepted.is(Caller::Local);
        Self {
            state: State::Plain(stream),
            accepted,
            crowd: Crowd::default(),
            handshakes: Handshakes::default(),
            place: None,
            begins: None,
        }
    }
}

impl<S> Guarded<S> {
    #[cfg(test)]
    pub(super) fn stream(&self) -> &S {
        match &self.state {
            State::Silent { stream, .. } | State::Plain(stream) => stream,
            _ => panic!("it has begun"),
        }
    }
}

impl<S: Peek + AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    /// Ready once bytes of requests may pass.
    fn poll_passed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(_) | State::Secure(_) => return Poll::Ready(Ok(())),
                State::Silent { stream, deadline, .. } => {
                    late(deadline, context)?;
                    let is_tls = ready!(stream.poll_first(context))? == Some(TLS);
                    let State::Silent { stream, policy, deadline } = std::mem::replace(&mut self.state, State::Over)
                    else {
                        continue;
                    };
                    self.state = match policy.tls {
                        Some(config) if is_tls => {
                            let accept = Box::new(TlsAcceptor::from(config).accept(stream));
                            State::Shaking { accept, deadline }
                        }
                        // Of HTTP/2, if it is TLS: that fails at the first frame.
                        _ if is_tls || policy.plain => {
                            self.begins = Some(Begins { deadline, read: 0 });
                            State::Plain(stream)
                        }
                        _ => State::Refused { stream, deadline, written: 0, read: Vec::new() },
                    };
                    if matches!(self.state, State::Plain(_)) {
                        self.accepted.is(Caller::Plain);
                    }
                }
                State::Shaking { accept, deadline } => {
                    late(deadline, context)?;
                    let shaken = ready!(Pin::new(&mut **accept).poll(context));
                    let State::Shaking { deadline, .. } = std::mem::replace(&mut self.state, State::Over) else {
                        continue;
                    };
                    let mut stream = shaken.inspect_err(|error| {
                        self.handshakes.count(End::Accepted, Went::Failed);
                        tracing::debug!(%error, "a TLS handshake failed");
                    })?;
                    self.handshakes.count(End::Accepted, Went::of(stream.get_ref().1.handshake_kind()));
                    self.look_at(&stream)?;
                    stream.get_mut().1.set_buffer_limit(Some(WRITTEN));
                    self.begins = Some(Begins { deadline, read: 0 });
                    self.state = State::Secure(Box::new(stream));
                }
                State::Refused { stream, deadline, written, read } => {
                    late(deadline, context)?;
                    let answer = if asks(read) { NOT_WITHOUT_TLS } else { &NOT_WITHOUT_TLS[..SETTINGS] };
                    while *written < answer.len() {
                        *written += ready!(Pin::new(&mut *stream).poll_write(context, &answer[*written..]))?;
                    }
                    if answer.len() == NOT_WITHOUT_TLS.len() {
                        ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                    }
                    // Until the caller has hung up: closed with bytes unread, it would hear of nothing but that.
                    let mut rest = [0; 1024];
                    let mut rest = ReadBuf::new(&mut rest);
                    ready!(Pin::new(&mut *stream).poll_read(context, &mut rest))?;
                    read.extend_from_slice(rest.filled());
                    if rest.filled().is_empty() || read.len() > MOST_UNREAD {
                        self.state = State::Over;
                    }
                }
                State::Over => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "refused")));
                }
            }
        }
    }

    /// Notes what the other end showed.
    fn look_at(&mut self, stream: &TlsStream<S>) -> io::Result<()> {
        let Some(shown) = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) else {
            self.accepted.is(Caller::Unknown);
            return Ok(());
        };
        let refused = |reason: String| io::Error::new(io::ErrorKind::PermissionDenied, reason);
        let certificate = Certificate::try_from(shown).map_err(|error| refused(error.to_string()))?;
        if certificate.ran_out(SystemTime::now()) {
            return Err(refused("the certificate has run out since the session began".to_owned()));
        }
        if let Some(says) = certificate.says {
            let place = self.crowd.enter(says);
            self.place = Some(place.ok_or_else(|| refused("this identity has too many connections".to_owned()))?);
        }
        self.accepted.showed(&certificate);
        Ok(())
    }
}

/// Whether a client of HTTP/2 has asked something in what it sent: a HEADERS frame has begun to come.
fn asks(sent: &[u8]) -> bool {
    const HEADERS: u8 = 1;
    let mut frames = sent.get(PREFACE..).unwrap_or_default();
    while let Some((head, rest)) = frames.split_at_checked(9) {
        if head[3] == HEADERS {
            return true;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        frames = rest.get(length as usize..).unwrap_or_default();
    }
    false
}

/// An error once it is too late; else whoever waits is woken then.
fn late(deadline: &mut Pin<Box<Sleep>>, context: &mut Context<'_>) -> io::Result<()> {
    match deadline.as_mut().poll(context) {
        Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake in time")),
        Poll::Pending => Ok(()),
    }
}

impl<S> Connected for Guarded<S> {
    type ConnectInfo = Accepted;

    fn connect_info(&self) -> Accepted {
        self.accepted.clone()
    }
}

impl<S: WriteAhead> WriteAhead for Guarded<S> {
    fn write_ahead(&self, bytes: u32) {
        match &self.state {
            State::Plain(stream) | State::Silent { stream, .. } | State::Refused { stream, .. } => {
                stream.write_ahead(bytes);
            }
            State::Secure(stream) => stream.get_ref().0.write_ahead(bytes),
            State::Shaking { .. } | State::Over => {}
        }
    }
}

/// Sockets of this machine have passed from the start.
impl Peek for UnixStream {
    fn poll_first(&self, _: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        Poll::Ready(Ok(None))
    }
}

impl<S: Peek + AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_passed(cx))?;
        if let Some(begins) = &mut self.begins {
            late(&mut begins.deadline, cx)?;
        }
        let before = buf.filled().len();
        ready!(match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            State::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
            _ => Poll::Pending,
        })?;
        if let Some(begins) = &mut self.begins {
            begins.read += buf.filled().len() - before;
            if begins.read >= BEGINNING {
                self.begins = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Peek + AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_passed(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            State::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
            _ => Poll::Pending,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_passed(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            State::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            _ => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Of both kinds.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_passed(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(cx),
            State::Secure(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Pending,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) | State::Silent { stream, .. } | State::Refused { stream, .. } => {
                Pin::new(stream).poll_shutdown(cx)
            }
            State::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            // Dropped, and so closed.
            State::Shaking { .. } | State::Over => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_headers_frame_behind_the_preface() {
        let preface = [0; PREFACE];
        let (settings, headers) = (b"\0\0\x02\x04\0\0\0\0\0xx", b"\0\0\x05\x01\x04\0\0\0\x01");
        let sent = [&preface[..], settings, headers].concat();
        assert!(asks(&sent));
        for part in 0..sent.len() {
            assert!(!asks(&sent[..part]), "{part} bytes of it");
        }
        assert!(!asks(&[&preface[..], b"\xff\xff\xff\x04\0\0\0\0\0", headers].concat()), "inside of another frame");
    }
}
