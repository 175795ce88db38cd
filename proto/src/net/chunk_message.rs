//! How the messages of a chunk lie on the wire. Both ends make and take them by hand, since generated code copies every
//! byte into a buffer of its own; what they send and accept is what generated code would.
//!
//! What holds (each line has a test):
//! - [`front`] with the data behind it is what prost and tonic make of the same message;
//! - however the bytes are cut into frames, the parts that [`Messages`] gives are what prost makes of each message;
//! - a message that is not laid out as usual (other fields, another order) is gathered and decoded by prost;
//! - no message beyond the bound is gathered.

use prost::{
    Message as _,
    bytes::{Buf as _, Bytes},
    encoding::{decode_varint, encode_varint},
};
use tonic::Status;

use crate::{limits::MESSAGE_SIZE, wire::FetchChunkResponse};

/// The path of the method by which chunks are asked for.
pub const FETCH_CHUNK: &str = "/drizzle.v1.Peer/FetchChunk";

/// Most bytes of a message around its data: its fields, and some that a later version may add.
const AROUND: usize = 1024;

/// What gRPC puts in front of each message: whether it is compressed, and its length in four bytes.
const HEADER: usize = 5;

/// The field `data`: number 1, length-delimited.
const DATA: u8 = 1 << 3 | 2;

/// The field `chunk`: number 2, a varint.
const CHUNK: u8 = 2 << 3;

/// A varint is no longer.
const VARINT: usize = 10;

/// What stands in front of `len` bytes of a chunk: the header of gRPC and the fields, of which `data` is the last. At most
/// 24 bytes.
pub fn front(chunk: Option<u32>, len: usize) -> Vec<u8> {
    let mut fields = Vec::with_capacity(24);
    if let Some(chunk) = chunk {
        fields.push(CHUNK);
        encode_varint(chunk.into(), &mut fields);
    }
    fields.push(DATA);
    encode_varint(len as u64, &mut fields);
    let size = u32::try_from(fields.len() + len).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &size, &fields].concat()
}

/// Some bytes of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whether a message begins with it.
    pub begins: bool,
    /// The chunk that the message names, if it begins here and names one.
    pub chunk: Option<u32>,
    /// The bytes, as untrusted as their sender; none only if the message has none.
    pub data: Bytes,
}

/// Takes messages apart.
#[derive(Debug)]
pub struct Messages(At);

/// Where the next byte stands.
#[derive(Debug)]
enum At {
    /// In what stands in front of a message's data, of which these bytes came.
    Front(Vec<u8>),
    /// In its data.
    Data {
        /// Bytes that are to come.
        left: usize,
        /// The chunk that it names, if no byte was given yet.
        begins: Option<Option<u32>>,
    },
    /// In a message of so many bytes that is laid out in another way: what came of it.
    Whole(usize, Vec<u8>),
}

impl Default for Messages {
    fn default() -> Self {
        Self(At::Front(Vec::new()))
    }
}

impl Messages {
    /// Whether the last message is whole.
    pub fn is_between(&self) -> bool {
        matches!(&self.0, At::Front(front) if front.is_empty())
    }

    /// The next part in a frame, from which it is taken; `None` if there is none in what is left of it.
    pub fn take(&mut self, frame: &mut Bytes) -> Result<Option<Part>, Status> {
        while !frame.is_empty() {
            match &mut self.0 {
                At::Front(front) => {
                    front.push(frame.get_u8());
                    let Some(len) = message_len(front)? else { continue };
                    match usual(&front[HEADER..], len) {
                        Usual::Unclear => continue,
                        Usual::Yes { chunk, data } => self.0 = At::Data { left: data, begins: Some(chunk) },
                        Usual::No => self.0 = At::Whole(len, front.split_off(HEADER)),
                    }
                }
                At::Data { left, begins } => {
                    let data = frame.split_to(frame.len().min(*left));
                    let part = Part { begins: begins.is_some(), chunk: begins.take().flatten(), data };
                    *left -= part.data.len();
                    if *left == 0 {
                        *self = Self::default();
                    }
                    return Ok(Some(part));
                }
                At::Whole(len, came) => came.extend_from_slice(&frame.split_to(frame.len().min(*len - came.len()))),
            }
            if let At::Whole(len, came) = &self.0
                && came.len() == *len
            {
                let message = FetchChunkResponse::decode(&came[..]);
                let message = message.map_err(|error| Status::internal(format!("malformed message: {error}")))?;
                *self = Self::default();
                return Ok(Some(Part { begins: true, chunk: message.chunk, data: message.data }));
            }
        }
        Ok(None)
    }
}

/// The length of a message, once its header is there.
fn message_len(front: &[u8]) -> Result<Option<usize>, Status> {
    let Some((header, _)) = front.split_first_chunk::<HEADER>() else { return Ok(None) };
    let [compressed, len @ ..] = *header;
    if compressed != 0 {
        return Err(Status::internal("sent a compressed message"));
    }
    match usize::try_from(u32::from_be_bytes(len)) {
        Ok(len) if len <= MESSAGE_SIZE + AROUND => Ok(Some(len)),
        _ => Err(Status::internal(format!("sent a message of {} bytes", u32::from_be_bytes(len)))),
    }
}

/// Whether a message has `data` as its last field, with at most `chunk` before it.
#[derive(Debug, PartialEq, Eq)]
enum Usual {
    /// More bytes are needed to tell.
    Unclear,
    Yes {
        chunk: Option<u32>,
        /// Bytes of the data.
        data: usize,
    },
    No,
}

/// Judges a message of `len` bytes by its first ones, up to the one behind which its data begins.
fn usual(first: &[u8], len: usize) -> Usual {
    let unclear = if first.len() < len { Usual::Unclear } else { Usual::No };
    let (mut rest, mut chunk) = (first, None);
    if let [CHUNK, number @ ..] = rest {
        let Some((value, behind)) = varint(number) else {
            return if number.len() < VARINT { unclear } else { Usual::No };
        };
        // As prost does with one that is too large.
        #[allow(clippy::cast_possible_truncation)]
        let value = value as u32;
        (rest, chunk) = (behind, Some(value));
    }
    match rest {
        [] => unclear,
        [DATA, number @ ..] => match varint(number) {
            None if number.len() < VARINT => unclear,
            Some((data, [])) if data > 0 && usize::try_from(data) == Ok(len - first.len()) => {
                Usual::Yes { chunk, data: len - first.len() }
            }
            _ => Usual::No,
        },
        _ => Usual::No,
    }
}

/// A number and what stands behind it; `None` if it has no end yet.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| *byte < 0x80)?;
    let (mut number, behind) = bytes.split_at(end + 1);
    Some((decode_varint(&mut number).ok()?, behind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    }

    /// The chunk that a message names, and its data.
    type Whole = (Option<u32>, Vec<u8>);

    fn taken(stream: &[u8], cuts: &[usize]) -> Result<Vec<Whole>, Status> {
        let (mut messages, mut all) = (Messages::default(), Vec::<Whole>::new());
        let mut rest = Bytes::copy_from_slice(stream);
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let mut frame = rest.split_to((*cuts.next().unwrap()).clamp(1, rest.len()));
            while let Some(part) = messages.take(&mut frame)? {
                match all.last_mut() {
                    Some((_, data)) if !part.begins => {
                        assert!(part.chunk.is_none() && !part.data.is_empty());
                        data.extend_from_slice(&part.data);
                    }
                    _ => all.push((part.chunk, part.data.to_vec())),
                }
            }
            assert!(frame.is_empty());
        }
        assert!(messages.is_between());
        Ok(all)
    }

    #[test]
    fn what_stands_in_front_is_what_generated_code_would_send() {
        for len in [1, 2, 3, 126, 127, 128, 129, 4096, 16_383, 16_384, 16_385, MESSAGE_SIZE - 1, MESSAGE_SIZE] {
            let data: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
            let encoded = FetchChunkResponse { data: data.clone().into(), chunk: None }.encode_to_vec();
            assert!([front(None, len), data].concat() == framed(&encoded), "{len} bytes");
        }
        for chunk in [0, 1, 127, 128, 262_143, u32::MAX] {
            let made = [&front(Some(chunk), 3)[..], b"abc"].concat();
            let message = FetchChunkResponse { data: (&b"abc"[..]).into(), chunk: Some(chunk) };
            assert_eq!(FetchChunkResponse::decode(&made[HEADER..]).unwrap(), message);
            assert!(made.len() <= 24 + 3);
        }
    }

    #[test]
    fn usual_messages_are_not_copied() {
        let mut frame = Bytes::from([front(Some(7), 4), b"abcd".to_vec()].concat());
        let there = frame.as_ptr_range();
        let part = Messages::default().take(&mut frame).unwrap().unwrap();
        assert_eq!(part, Part { begins: true, chunk: Some(7), data: (&b"abcd"[..]).into() });
        assert!(there.contains(&part.data.as_ptr()));
    }

    #[test]
    fn what_no_honest_peer_sends_is_refused() {
        let refused = |stream: &[u8]| taken(stream, &[3]).unwrap_err().message().to_owned();
        assert_eq!(refused(&[1, 0, 0, 0, 1, 0]), "sent a compressed message");
        assert_eq!(refused(&[0, 255, 255, 255, 255]), format!("sent a message of {} bytes", u32::MAX));
        assert!(refused(&framed(&[DATA, 200, 1, 0])).starts_with("malformed message"));
        assert!(refused(&framed(&[0xff; 20])).starts_with("malformed message"));
    }

    #[test]
    fn a_number_without_an_end_is_not_looked_through_again_and_again() {
        let mut endless = vec![CHUNK];
        endless.resize(20, 0xff);
        assert_eq!(usual(&endless[..VARINT], 1000), Usual::Unclear);
        assert_eq!(usual(&endless[..=VARINT], 1000), Usual::No);
        endless[0] = DATA;
        assert_eq!(usual(&endless[..=VARINT], 1000), Usual::No);
    }

    /// A message as some encoder may lay it out.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let data = proptest::collection::vec(any::<u8>(), 0..300);
        let usual = (proptest::option::of(any::<u32>()), data.clone())
            .prop_map(|(chunk, data)| FetchChunkResponse { data: data.into(), chunk }.encode_to_vec());
        let named_first = (any::<u32>(), data.clone())
            .prop_map(|(chunk, data)| [&front(Some(chunk), data.len())[HEADER..], &data].concat());
        // A field that this version does not know, before or behind the others; a number with more bytes than it needs.
        let odd = (any::<bool>(), data).prop_map(|(before, data)| {
            let known = [&front(None, data.len())[HEADER..], &data].concat();
            if before { [&[9 << 3, 5][..], &known].concat() } else { [&known[..], &[9 << 3, 5]].concat() }
        });
        let long = Just(vec![CHUNK, 0x85, 0x80, 0x00, DATA, 0x83, 0x00, 1, 2, 3]);
        let twice = Just(vec![DATA, 1, 1, DATA, 2, 3, 4]);
        prop_oneof![4 => usual, 4 => named_first, 2 => odd, 1 => long, 1 => twice]
    }

    proptest! {
        #[test]
        fn parts_are_what_prost_makes_of_each_message(
            messages in proptest::collection::vec(message(), 0..6),
            cuts in proptest::collection::vec(1usize..64, 1..8),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
            let expected: Vec<_> = messages
                .iter()
                .map(|message| FetchChunkResponse::decode(&message[..]).unwrap())
                .map(|message| (message.chunk, message.data.to_vec()))
                .collect();
            prop_assert_eq!(taken(&stream, &cuts).unwrap(), expected);
        }

        #[test]
        fn whatever_comes_is_taken_or_refused(
            stream in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 1usize..64,
        ) {
            let (mut messages, mut rest) = (Messages::default(), Bytes::from(stream));
            while !rest.is_empty() {
                let mut frame = rest.split_to(cut.min(rest.len()));
                while let Ok(Some(_)) = messages.take(&mut frame) {}
            }
        }
    }
}
