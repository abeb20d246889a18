//! Frames: a signed 32-bit length in network order, then that many bytes.

use bytes::{Buf, Bytes, BytesMut};

/// The bytes of the length before each frame.
pub const PREFIX_LEN: usize = 4;

/// The smallest request frame: API key, API version and correlation id.
pub const REQUEST_MIN: usize = 8;

/// The smallest response frame: a correlation id.
pub const RESPONSE_MIN: usize = 4;

/// The least room for the next read.
const READ_AHEAD: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of negative length {0}")]
    Negative(i32),
    #[error("a frame of {length} bytes, too short for a header of {min}")]
    TooShort { length: usize, min: usize },
    #[error("a frame of {length} bytes, more than the limit of {limit}")]
    TooLong { length: usize, limit: usize },
}

/// Cuts a stream into frames as its bytes arrive.
///
/// A length is judged as soon as its four bytes are there, before anything is set aside for it. The buffer only ever
/// grows by what has arrived: to be told a large length costs nothing.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    min: usize,
    limit: usize,
}

impl FrameDecoder {
    /// For a client's requests. `limit` is the largest frame in bytes, without its length prefix.
    #[must_use]
    pub fn requests(limit: usize) -> FrameDecoder {
        FrameDecoder { buffer: BytesMut::new(), min: REQUEST_MIN, limit }
    }

    /// For a broker's responses.
    #[must_use]
    pub fn responses(limit: usize) -> FrameDecoder {
        FrameDecoder { buffer: BytesMut::new(), min: RESPONSE_MIN, limit }
    }

    /// Where to read the next bytes into: has room for 8 KiB at least. It grows by doubling what it holds, whatever
    /// length was announced, so its capacity stays below twice what has arrived plus 16 KiB.
    pub fn spare(&mut self) -> &mut BytesMut {
        self.buffer.reserve(READ_AHEAD);
        &mut self.buffer
    }

    /// Takes in bytes that were read elsewhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame without its length prefix; `None` until more bytes have come.
    ///
    /// # Errors
    /// [`FrameError`]: the stream is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.announced().transpose()? else { return Ok(None) };
        if self.buffer.len() - PREFIX_LEN < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_LEN);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// The bytes that are held and not yet given out.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether the stream stands between two frames, where it may end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What came of a frame that is not whole yet, for a connection that changes its reader.
    #[must_use]
    pub fn into_rest(self) -> BytesMut {
        self.buffer
    }

    fn announced(&self) -> Option<Result<usize, FrameError>> {
        let announced = i32::from_be_bytes(*self.buffer.first_chunk::<PREFIX_LEN>()?);
        Some(match usize::try_from(announced) {
            Err(_) => Err(FrameError::Negative(announced)),
            Ok(length) if length < self.min => Err(FrameError::TooShort { length, min: self.min }),
            Ok(length) if length > self.limit => Err(FrameError::TooLong { length, limit: self.limit }),
            Ok(length) => Ok(length),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = (body.len() as i32).to_be_bytes().to_vec();
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let stream: Vec<u8> = [framed(&[1; 8]), framed(&[2; 300]), framed(&[3; 9])].concat();
        for step in [1, 3, 4, 7, 100, stream.len()] {
            let mut decoder = FrameDecoder::requests(LIMIT);
            let mut frames = Vec::new();
            for bytes in stream.chunks(step) {
                decoder.feed(bytes);
                while let Some(frame) = decoder.next_frame().expect("good frames") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&[1; 8][..], &[2; 300], &[3; 9]]);
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn bad_lengths_are_refused_before_their_frame_arrives() {
        let cases = [
            (-1, FrameError::Negative(-1)),
            (i32::MIN, FrameError::Negative(i32::MIN)),
            (0, FrameError::TooShort { length: 0, min: 8 }),
            (7, FrameError::TooShort { length: 7, min: 8 }),
            (i32::MAX, FrameError::TooLong { length: i32::MAX as usize, limit: LIMIT }),
            (LIMIT as i32 + 1, FrameError::TooLong { length: LIMIT + 1, limit: LIMIT }),
        ];
        for (length, error) in cases {
            let mut decoder = FrameDecoder::requests(LIMIT);
            decoder.feed(&length.to_be_bytes()[..3]);
            assert_eq!(decoder.next_frame(), Ok(None));
            decoder.feed(&length.to_be_bytes()[3..]);
            assert_eq!(decoder.next_frame(), Err(error));
            assert!(decoder.spare().capacity() <= 2 * READ_AHEAD);
        }
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut decoder = FrameDecoder::responses(100 << 20);
        decoder.feed(&(100_i32 << 20).to_be_bytes());
        let mut received = PREFIX_LEN;
        for _ in 0..64 {
            let capacity = decoder.spare().capacity();
            assert!(capacity <= 2 * received + 2 * READ_AHEAD, "{capacity} for {received}");
            decoder.feed(&[0; 4096]);
            received += 4096;
            assert_eq!(decoder.next_frame(), Ok(None));
        }
    }
}
