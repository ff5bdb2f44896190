//! Header blocks of SPDY/3.1: one zlib stream per direction for the life of a connection, primed with a dictionary.
//!
//! Blocks must be inflated in the order in which they arrive, those of refused streams included. Inflating is bounded:
//! a block of more than 64 KiB or 1000 headers ends the connection; clients send three short headers.

use std::sync::LazyLock;

use flate2::{Decompress, FlushDecompress, Status};

/// The largest inflated block, in bytes.
const BLOCK_LIMIT: usize = 64 * 1024;

/// The most headers in a block.
const COUNT_LIMIT: u32 = 1000;

/// How much is inflated at a time, in bytes.
const STEP: usize = 4096;

/// The words of the dictionary; in it, each follows its length in 32 bits.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of the dictionary.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3, which zlib identifies by the checksum e3c6a7c2.
pub(crate) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS.split(' ') {
        let [.., a, b, c, d] = word.len().to_be_bytes();
        bytes.extend([a, b, c, d]);
        bytes.extend(word.replace('_', " ").bytes());
    }
    bytes.extend(TAIL.bytes());
    bytes
});

/// The first bytes of a zlib stream with the dictionary: the method, the dictionary flag, and the dictionary's
/// checksum.
const ZLIB_HEAD: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];

/// A block without headers, stored in deflate uncompressed: it ends on a byte boundary and refers to nothing before it.
/// An empty stored block follows, as after a sync flush, because Go's inflater returns nothing before it has seen that.
const EMPTY_BLOCK: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// The first empty block of a connection. A server sends only this and the following ones, so it needs no compressor.
pub(crate) fn first_empty_block() -> Vec<u8> {
    [ZLIB_HEAD.as_slice(), &EMPTY_BLOCK].concat()
}

/// A later block without headers.
pub(crate) fn empty_block() -> Vec<u8> {
    EMPTY_BLOCK.to_vec()
}

/// Why a block cannot be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadersError {
    /// The compressed stream is damaged.
    #[error("a header block is not of this connection's zlib stream")]
    Zlib,
    /// Its content exceeds the limits.
    #[error("a header block of more than {BLOCK_LIMIT} bytes or {COUNT_LIMIT} headers")]
    TooLarge,
    /// The lengths in it are inconsistent.
    #[error("a header block whose lengths do not add up")]
    Lengths,
    /// It has a duplicate name.
    #[error("a header block with one name twice")]
    Twice,
}

/// The headers of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    #[cfg(test)]
    pub(crate) fn of(headers: &[(&str, &str)]) -> Self {
        Self(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// The value of a lower-case name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The receiving end of a connection's zlib stream.
pub(crate) struct Inflater {
    zlib: Decompress,
    out: Vec<u8>,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self { zlib: Decompress::new(true), out: Vec::new() }
    }

    /// Inflates the next block. After an error the connection cannot continue.
    pub(crate) fn headers(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        self.inflate(block)?;
        parse(&self.out)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<(), HeadersError> {
        self.out.clear();
        loop {
            self.out.reserve(STEP);
            let (taken, given) = (self.zlib.total_in(), self.out.len());
            let result = self.zlib.decompress_vec(block, &mut self.out, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - taken).unwrap_or(usize::MAX);
            block = block.get(taken..).ok_or(HeadersError::Zlib)?;
            match result {
                Ok(Status::StreamEnd) => return Err(HeadersError::Zlib),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&DICTIONARY).or(Err(HeadersError::Zlib))?;
                    continue;
                }
                Err(_) => return Err(HeadersError::Zlib),
            }
            if self.out.len() > BLOCK_LIMIT {
                return Err(HeadersError::TooLarge);
            }
            if block.is_empty() && self.out.len() < self.out.capacity() {
                return Ok(());
            }
            if taken == 0 && self.out.len() == given {
                return Err(HeadersError::Zlib);
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, HeadersError> {
    let count = number(&mut block)?;
    if count > COUNT_LIMIT {
        return Err(HeadersError::TooLarge);
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        let value = text(&mut block)?;
        if headers.value(&name).is_some() {
            return Err(HeadersError::Twice);
        }
        headers.0.push((name, value));
    }
    Ok(headers)
}

fn number(block: &mut &[u8]) -> Result<u32, HeadersError> {
    let (number, rest) = block.split_first_chunk().ok_or(HeadersError::Lengths)?;
    *block = rest;
    Ok(u32::from_be_bytes(*number))
}

fn text(block: &mut &[u8]) -> Result<String, HeadersError> {
    let length = number(block)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(HeadersError::Lengths)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn compressor() -> Compress {
        let mut zlib = Compress::new(Compression::best(), true);
        assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), 0xe3c6_a7c2, "zlib's name of the dictionary");
        zlib
    }

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend(text.bytes());
        }
        block
    }

    fn deflate(zlib: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        zlib.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    #[test]
    fn many_blocks_are_one_stream() {
        let (mut zlib, mut inflater) = (compressor(), Inflater::new());
        for id in 0..1000 {
            let request = id.to_string();
            let plain = block(&[("streamType", "data"), ("port", "80"), ("requestid", &request)]);
            let headers = inflater.headers(&deflate(&mut zlib, &plain)).unwrap();
            assert_eq!(headers.value("streamtype"), Some("data"));
            assert_eq!(headers.value("requestid"), Some(request.as_str()));
        }
    }

    #[test]
    fn what_is_sent_needs_no_compressor() {
        let mut inflater = Inflater::new();
        assert_eq!(inflater.headers(&first_empty_block()), Ok(Headers::default()));
        assert_eq!(inflater.headers(&empty_block()), Ok(Headers::default()));
        assert_eq!(inflater.headers(&empty_block()), Ok(Headers::default()));
        assert!(empty_block().ends_with(&[0, 0, 0xff, 0xff]), "the mark of a sync flush");
    }

    #[test]
    fn a_bomb_is_bounded() {
        let (mut zlib, mut inflater) = (compressor(), Inflater::new());
        let bomb = deflate(&mut zlib, &block(&[("a", &"x".repeat(10 << 20))]));
        assert!(bomb.len() < 64 * 1024);
        assert_eq!(inflater.headers(&bomb), Err(HeadersError::TooLarge));
        assert!(inflater.out.capacity() < 4 * BLOCK_LIMIT);
        let mut inflater = Inflater::new();
        let many = deflate(&mut compressor(), &(COUNT_LIMIT + 1).to_be_bytes());
        assert_eq!(inflater.headers(&many), Err(HeadersError::TooLarge));
    }

    #[test]
    fn damage_is_an_error() {
        let damaged = |plain: &[u8]| Inflater::new().headers(&deflate(&mut compressor(), plain));
        assert_eq!(damaged(&[0, 0]), Err(HeadersError::Lengths));
        assert_eq!(damaged(&[0, 0, 0, 1, 0, 0, 0, 9, b'a']), Err(HeadersError::Lengths));
        assert_eq!(damaged(&block(&[("A", "1"), ("a", "2")])), Err(HeadersError::Twice));
        assert_eq!(Inflater::new().headers(b"no zlib at all"), Err(HeadersError::Zlib));
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"another dictionary").unwrap();
        assert_eq!(Inflater::new().headers(&deflate(&mut other, &[0; 4])), Err(HeadersError::Zlib));
        let mut ended = Vec::with_capacity(100);
        compressor().compress_vec(&[0; 4], &mut ended, FlushCompress::Finish).unwrap();
        assert_eq!(Inflater::new().headers(&ended), Err(HeadersError::Zlib));
    }
}
