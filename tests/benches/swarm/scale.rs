//! What the machine does without Drizzle, for a reader to compare with.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::Instant,
};

use drizzle_tests::process::cpu_time;
use sha2::{Digest, Sha256};

use crate::Sample;

/// Bytes that are read at a time: as many as a chunk's message carries.
const PIECE: usize = 256 << 10;

/// The SHA-256 of a file.
pub(crate) fn digest(path: &Path) -> Vec<u8> {
    let mut hasher = Sha256::new();
    each_piece(&mut File::open(path).expect("the file is there"), |piece| hasher.update(piece));
    hasher.finalize().to_vec()
}

/// Hashes a file on one core.
pub(crate) fn sha256(path: &Path) -> Sample {
    measured(path, || drop(digest(path)))
}

/// Sends a file over one TCP connection and writes what arrives beside it.
pub(crate) fn copy(path: &Path) -> Sample {
    let target = path.with_extension("copy");
    let sample = measured(path, || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut socket = TcpStream::connect(address).expect("the receiver listens");
                let mut file = File::open(path).expect("the file is there");
                each_piece(&mut file, |piece| socket.write_all(piece).expect("the receiver reads"));
            });
            let (mut socket, _) = listener.accept().expect("the sender connects");
            let mut file = File::create(&target).expect("a file can be made");
            each_piece(&mut socket, |piece| file.write_all(piece).expect("there is room"));
        });
    });
    assert_eq!(digest(&target), digest(path), "what arrived is what was sent");
    std::fs::remove_file(&target).expect("the copy can be removed");
    sample
}

fn each_piece(from: &mut impl Read, mut take: impl FnMut(&[u8])) {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(read) => take(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("it can be read to the end: {error}"),
        }
    }
}

fn measured(path: &Path, action: impl FnOnce()) -> Sample {
    let own = std::process::id();
    let before = cpu_time(own);
    let begun = Instant::now();
    action();
    let elapsed = begun.elapsed();
    let bytes = path.metadata().expect("the file is there").len();
    Sample { elapsed, bytes, cpu: cpu_time(own).saturating_sub(before), ..Sample::default() }
}
