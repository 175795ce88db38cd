//! A long line between a host and its network: it has a rate and a queue, delays what crosses it, and loses some.
//!
//! Not every kernel has `netem`, so this process carries the frames itself: from a packet socket at one end to one at the
//! other. What holds: frames keep their order; what a rate lets through is exact over any time, whatever the frames'
//! sizes; a frame that finds more than [`Way::queue`] before it is lost.
//!
//! Hosts at such a line send each packet of the wire by itself, as their cards would.

use std::{
    io::{self, Read},
    mem::MaybeUninit,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::RngExt;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Host;

/// Every kind of frame, in the order of the network.
const ALL_KINDS: i32 = 0x0003_u16.to_be() as i32;
/// A frame is not longer.
const LONGEST: usize = 64 << 10;
/// A socket keeps so many bytes for a thread that is late, as far as the system lets it.
const KEPT: usize = 4 << 20;
/// A thread looks this often whether the line is gone.
const LOOK: Duration = Duration::from_millis(50);

/// One way over a line.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Bytes a second; `None`: as many as this machine carries.
    pub rate: Option<f64>,
    /// A frame waits so long at the most before it is its turn.
    pub queue: Duration,
    /// And is then so long on its way.
    pub delay: Duration,
    /// Share of the frames that are lost, at random.
    pub loss: f64,
}

/// A line, until it is dropped.
#[derive(Debug)]
pub struct Line {
    is_gone: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _between: [Host; 3],
}

/// One end of it.
#[derive(Debug)]
struct End {
    socket: Socket,
    /// Its only interface.
    interface: SockAddr,
}

/// When a frame comes out of a way, and whether it does.
#[derive(Debug)]
struct Carrier {
    way: Way,
    /// The line is busy until then.
    busy: Instant,
}

impl Line {
    /// Puts a line between the bridge of `switch` and the host at its port `port`. `None` if this process may not.
    ///
    /// # Panics
    /// If it may, and fails.
    pub fn new(switch: Host, port: &str, host: &Host, there: Way, back: Way) -> Option<Self> {
        let (near, far) = (Host::new(&[])?, Host::new(&[])?);
        switch.ip(&format!("link set {port} netns {}", far.name()));
        far.ip(&format!("link set {port} up"));
        switch.ip(&format!("link add line type veth peer name end netns {}", near.name()));
        switch.ip("link set line master br0 up");
        near.ip("link set end up");
        let own = host.hardware_address("eth0");
        let (near_end, far_end) = (End::of(&near, "end"), End::of(&far, port));
        let is_gone = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to, way, is_from_host) in [(&near_end, &far_end, there, false), (&far_end, &near_end, back, true)] {
            let (queue, queued) = channel();
            let socket = from.socket.try_clone().expect("a socket can be cloned");
            let gone = is_gone.clone();
            threads.push(thread::spawn(move || {
                // What this line itself put out at this end is seen too.
                take_in(&socket, &gone, |frame| (frame.get(6..12) == Some(&own)) == is_from_host, way, &queue);
            }));
            let (socket, interface) = (to.socket.try_clone().expect("a socket can be cloned"), to.interface.clone());
            threads.push(thread::spawn(move || put_out(&socket, &interface, &queued)));
        }
        Some(Self { is_gone, threads, _between: [switch, near, far] })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl End {
    /// The end in a namespace whose only interface this is.
    fn of(end: &Host, interface: &str) -> Self {
        let socket = end.within(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_KINDS))));
        let socket = socket.expect("root may have packet sockets");
        let _ = socket.set_recv_buffer_size(KEPT);
        socket.set_read_timeout(Some(LOOK)).expect("it can be set");
        end.ip(&format!("addr add 169.254.7.7/24 dev {interface}"));
        // Any frame shows which interface it is, also one that goes out: a question where a neighbour is.
        let interface = loop {
            end.within(|| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"", "169.254.7.8:9")))
                .expect("the interface is up");
            if let Ok((_, interface)) = socket.peek_from(&mut [MaybeUninit::uninit()]) {
                break interface;
            }
        };
        Self { socket, interface }
    }
}

impl Carrier {
    /// When a frame of so many bytes that comes now is out again; `None` if it finds the queue full.
    fn out_at(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.way.rate else { return Some(now + self.way.delay) };
        let begins = self.busy.max(now);
        if begins - now > self.way.queue {
            return None;
        }
        self.busy = begins + Duration::from_secs_f64(bytes as f64 / rate);
        Some(self.busy + self.way.delay)
    }
}

/// Takes frames from one end, and says when they are out at the other.
fn take_in(
    socket: &Socket,
    is_gone: &AtomicBool,
    is_for_here: impl Fn(&[u8]) -> bool,
    way: Way,
    queue: &Sender<(Instant, Vec<u8>)>,
) {
    let (mut carrier, mut random) = (Carrier { way, busy: Instant::now() }, rand::rng());
    let mut buffer = vec![0; LONGEST];
    while !is_gone.load(Ordering::Relaxed) {
        let mut socket = socket;
        let Ok(len) = socket.read(&mut buffer) else { continue };
        let frame = &mut buffer[..len];
        if !is_for_here(frame) || (way.loss > 0.0 && random.random_bool(way.loss)) {
            continue;
        }
        if let Some(at) = carrier.out_at(len, Instant::now()) {
            fill_checksum(frame);
            if queue.send((at, frame.to_vec())).is_err() {
                return;
            }
        }
    }
}

/// Puts frames out when it is their time, until no more can come.
fn put_out(socket: &Socket, interface: &SockAddr, queued: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((at, frame)) = queued.recv() {
        let left = at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            thread::sleep(left);
        }
        // A host that is gone takes nothing, and an interface that is full loses frames as any other.
        let _: io::Result<usize> = socket.send_to(&frame, interface);
    }
}

/// The kernel leaves the checksums of TCP and UDP over IPv4 to the card, which is not there.
fn fill_checksum(frame: &mut [u8]) {
    const IP: usize = 14;
    if frame.len() < IP + 20 || frame[12..14] != [8, 0] {
        return;
    }
    let (header, total) = (usize::from(frame[IP] & 15) * 4, usize::from(u16::from_be_bytes([frame[16], frame[17]])));
    let field = match frame[23] {
        6 => 16,
        17 => 6,
        _ => return,
    };
    let protocol = u64::from(frame[23]);
    let addresses = sum(&frame[26..34]);
    let Some(segment) = frame.get_mut(IP + header..IP + total).filter(|segment| segment.len() >= field + 2) else {
        return;
    };
    segment[field..field + 2].fill(0);
    let mut all = addresses + protocol + segment.len() as u64 + sum(segment);
    while all > 0xffff {
        all = (all >> 16) + (all & 0xffff);
    }
    // Below 2^16.
    #[allow(clippy::cast_possible_truncation)]
    let checksum = !(all as u16);
    segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of what are numbers of 16 bits, up to a multiple of 0xffff.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let word = |bytes: &[u8]| u64::from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    words.map(word).sum::<u64>() + word(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_rate_is_exact_whatever_the_sizes_and_a_full_queue_loses() {
        let start = Instant::now();
        let way = Way { rate: Some(1e6), queue: 50 * MS, delay: 100 * MS, loss: 0.0 };
        let mut carrier = Carrier { way, busy: start };
        // All come at once: those that begin within 50 ms pass.
        let out: Vec<Instant> = (0..100).map_while(|nth| carrier.out_at(500 + 1000 * (nth % 2), start)).collect();
        assert!(out.is_sorted() && (50..=52).contains(&out.len()), "{}", out.len());
        let bytes: usize = (0..out.len()).map(|nth| 500 + 1000 * (nth % 2)).sum();
        let took = (*out.last().unwrap() - start - 100 * MS).as_secs_f64();
        assert!((took - bytes as f64 / 1e6).abs() < 1e-6, "{took}");
        assert!(carrier.out_at(500, start).is_none());
        assert_eq!(carrier.out_at(1000, start + 1000 * MS), Some(start + 1101 * MS), "it is free again");
    }

    #[test]
    fn a_checksum_is_filled_in_for_tcp_and_udp_and_nothing_else_is_touched() {
        for (protocol, field, len) in [(6, 16, 33), (17, 6, 20), (1, 2, 20)] {
            let mut frame = vec![0x5a; 14 + 20 + len];
            frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
            frame[16..18].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
            frame[23] = protocol;
            let before = frame.clone();
            fill_checksum(&mut frame);
            if protocol == 1 {
                assert_eq!(frame, before);
                continue;
            }
            // With its checksum a segment adds up to nothing.
            let all = sum(&frame[26..34]) + u64::from(protocol) + len as u64 + sum(&frame[34..]);
            assert_eq!(all % 0xffff, 0, "protocol {protocol}");
            assert_eq!(frame[..34 + field], before[..34 + field]);
        }
        fill_checksum(&mut [0; 3]);
        fill_checksum(&mut [&[0; 12][..], &[8, 0, 0x4f, 0, 0xff, 0xff], &[6; 20]].concat());
    }
}
