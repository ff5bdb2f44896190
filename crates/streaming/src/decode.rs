//! The decoders of everything that a client sends, one by one, for tests that feed them arbitrary bytes.

use bytes::BytesMut;

use crate::spdy::headers::{DICTIONARY, Inflater};
use crate::{spdy, websocket};

/// Decodes frames of SPDY/3.1 and returns how many there are.
///
/// # Errors
/// Why these bytes would end a connection.
pub fn spdy(bytes: &[u8]) -> Result<usize, String> {
    let (mut decoder, mut bytes) = (spdy::frame::Decoder::default(), BytesMut::from(bytes));
    count(|| decoder.decode(&mut bytes).map(|frame| frame.is_some()))
}

/// Decodes WebSocket frames and returns how many there are.
///
/// # Errors
/// Why these bytes would end a connection.
pub fn websocket(bytes: &[u8]) -> Result<usize, String> {
    let (mut decoder, mut bytes) = (websocket::frame::Decoder::default(), BytesMut::from(bytes));
    count(|| decoder.decode(&mut bytes).map(|event| event.is_some()))
}

/// Decodes the header blocks of one connection, each preceded by its length in 16 bits, and returns how many there are.
///
/// # Errors
/// Why these blocks would end a connection.
pub fn headers(mut bytes: &[u8]) -> Result<usize, String> {
    let mut inflater = Inflater::new();
    count(|| {
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(false) };
        let Some((block, rest)) = rest.split_at_checked(u16::from_be_bytes(*length).into()) else {
            return Ok(false);
        };
        bytes = rest;
        inflater.headers(block).map(|_| true)
    })
}

/// The dictionary that header blocks are compressed with.
#[must_use]
pub fn dictionary() -> &'static [u8] {
    &DICTIONARY
}

fn count<E: ToString>(mut next: impl FnMut() -> Result<bool, E>) -> Result<usize, String> {
    let mut count = 0;
    while next().map_err(|error| error.to_string())? {
        count += 1;
    }
    Ok(count)
}
