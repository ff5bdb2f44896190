//! From a compressed blob to its verified content, in one pass over three threads.
//!
//! The caller's thread reads and hashes the blob, a second thread decompresses it, and a third hashes the content and
//! consumes it. The compression is recognised by the blob's first bytes, whatever its media type says: builders and
//! registries confuse the types, and the content is verified anyway. Decompression is the slowest stage, so on two
//! cores it has one to itself. The queues between the stages are short and their buffers are reused, so a layer of any
//! size needs a few megabytes. A stage that fails closes its queues; the others notice and stop.

mod frames;
mod windows;

use std::io::{self, BufRead, Read};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::thread::scope;

use sha2::{Digest as _, Sha256};
use wharf_sys::thread;
use wharf_types::Digest;

use self::frames::{Frames, Input};
use crate::limits::Limits;
use crate::unpack::{Form, LayerSource, Sender, UnpackError};

/// How a layer's tar archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// None at all.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard, of one or more frames.
    Zstd,
}

impl Compression {
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// How many pieces may wait between two stages.
const QUEUE: usize = 4;

/// What a decompressor may take.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub(crate) limits: &'a Limits,
    /// From whom the data comes.
    pub(crate) sender: &'a Sender,
    /// A directory for a file without a name.
    pub(crate) directory: BorrowedFd<'a>,
}

/// Reads the blob, checks its digest and size, and passes the content to `consume`, which must read it to the end.
pub(crate) fn run<T: Send>(
    source: &LayerSource,
    input: &mut dyn Read,
    means: Means<'_>,
    consume: impl FnOnce(&mut Pieces) -> Result<T, UnpackError> + Send,
) -> Result<T, UnpackError> {
    let (to_unzip, mut zipped) = pipe(None);
    let (to_consume, mut content) = pipe(Some(Sha256::new()));
    let unzip = move || {
        let done = unzip(source, &mut zipped, &to_consume, &means);
        // Only a stream that ended well has an end: a consumer must not take a failure for one.
        done.map(|()| to_consume.end())
    };
    let consume = move || {
        let result = consume(&mut content)?;
        Ok::<_, UnpackError>((result, content.digest()))
    };
    let failed = |source| UnpackError::Thread { source };
    let (read, unzipped, consumed) = scope(|scope| {
        // If one cannot be started, the queues of the other close, which ends it.
        let unzip = thread::start(scope, unzip).map_err(failed)?;
        let consume = thread::start(scope, consume).map_err(failed)?;
        let read = read_blob(source, input, to_unzip);
        Ok::<_, UnpackError>((read, unzip.join(), consume.join()))
    })?;
    let unzipped = unzipped.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let consumed = consumed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // The earliest stage that failed knows the reason; the later ones saw only the consequence.
    if let Some(found) = read?
        && found != source.blob_digest
    {
        return Err(UnpackError::BlobDigest { expected: source.blob_digest.clone(), found });
    }
    unzipped?;
    let (result, found) = consumed?;
    let expected = match source.form {
        Form::Archive => &source.diff_id,
        Form::File(_) => &source.blob_digest,
    };
    match found {
        Some(found) if found == *expected => Ok(result),
        found => Err(UnpackError::DiffId { expected: expected.clone(), found }),
    }
}

/// Reads the blob to its end and returns its digest, or `None` if a later stage closed its queue.
fn read_blob(source: &LayerSource, input: &mut dyn Read, out: Out) -> Result<Option<Digest>, UnpackError> {
    let mut hash = Sha256::new();
    let mut total = 0_u64;
    let expected_bytes = source.blob_size_bytes;
    loop {
        let mut piece = out.buffer();
        let count =
            fill(|into| input.read(into), &mut piece).map_err(|source| UnpackError::Read { source })?;
        total += count as u64;
        if total > expected_bytes || (count == 0 && total < expected_bytes) {
            return Err(UnpackError::Size { expected_bytes, found_bytes: total });
        }
        if count == 0 {
            out.end();
            return Ok(Some(Digest::from_sha256(hash.finalize().into())));
        }
        hash.update(&piece[..count]);
        if out.send(piece, count).is_err() {
            return Ok(None);
        }
    }
}

/// Reads until a piece is full or the input ends, so that the first piece has all the bytes that identify the
/// compression.
pub(crate) fn fill(
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    piece: &mut [u8],
) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn unzip(source: &LayerSource, input: &mut Pieces, out: &Out, means: &Means<'_>) -> Result<(), UnpackError> {
    let compression = match source.form {
        // A sender that closed the queue has the reason.
        Form::Archive => input.fill_buf().map_or(Compression::None, Compression::of),
        Form::File(_) => Compression::None,
    };
    let failed = |source| not_decompressed(compression, source);
    let mut decoder = Decoder::new(compression, input, means).map_err(failed)?;
    let mut total = 0_u64;
    loop {
        let mut piece = out.buffer();
        let length = fill(|into| decoder.read(into), &mut piece).map_err(failed)?;
        total += length as u64;
        means.limits.check_content(total, source.blob_size_bytes)?;
        if length == 0 {
            return decoder.finish().map_err(failed);
        }
        // A consumer that closed the queue has the reason.
        if out.send(piece, length).is_err() {
            return Ok(());
        }
    }
}

fn not_decompressed(compression: Compression, source: io::Error) -> UnpackError {
    source.downcast().unwrap_or_else(|source| UnpackError::Decompress { compression, source })
}

/// An error of ours on its way through a reader.
fn within_io(error: UnpackError) -> io::Error {
    match error {
        UnpackError::Read { source } => source,
        error => io::Error::other(error),
    }
}

/// Why it is not decompressed, if that is not the data's fault.
pub(crate) fn refusal(error: &io::Error) -> Option<&UnpackError> {
    error.get_ref()?.downcast_ref()
}

/// Decompresses what is read.
pub(crate) enum Decoder<R: BufRead> {
    None(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<Frames<R>>),
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(compression: Compression, input: R, means: &Means<'_>) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(input),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Zstd => Self::Zstd(Box::new(Frames::new(input, means)?)),
        })
    }

    /// Nothing may follow the last frame.
    pub(crate) fn finish(self) -> io::Result<()> {
        let mut input = match self {
            Self::None(input) => Input::Arriving(input),
            Self::Gzip(decoder) => Input::Arriving(decoder.into_inner()),
            Self::Zstd(frames) => frames.into_input(),
        };
        if !input.fill_buf()?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the compressed data"));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(input) => input.read(into),
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(frames) => frames.read(into),
        }
    }
}

enum Piece {
    Data(Vec<u8>, usize),
    End,
}

/// The sending end of a queue of pieces.
struct Out {
    pieces: SyncSender<Piece>,
    used: Receiver<Vec<u8>>,
}

impl Out {
    /// A buffer to fill: a used one if there is one.
    fn buffer(&self) -> Vec<u8> {
        self.used.try_recv().unwrap_or_else(|_none| vec![0; PIECE_BYTES])
    }

    fn send(&self, piece: Vec<u8>, length: usize) -> Result<(), SendError<Piece>> {
        self.pieces.send(Piece::Data(piece, length))
    }

    fn end(&self) {
        if self.pieces.send(Piece::End).is_err() {
            tracing::trace!("the next stage needs no end any more");
        }
    }
}

fn pipe(hash: Option<Sha256>) -> (Out, Pieces) {
    let (pieces, queue) = sync_channel(QUEUE);
    let (give_back, used) = sync_channel(QUEUE);
    let input = Pieces { queue, used: give_back, piece: Vec::new(), at: 0, length: 0, ended: false, hash };
    (Out { pieces, used }, input)
}

/// The receiving end of a queue of pieces: a reader that hashes what passes through.
pub(crate) struct Pieces {
    queue: Receiver<Piece>,
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    length: usize,
    ended: bool,
    hash: Option<Sha256>,
}

impl Pieces {
    /// The digest of everything, once it has been read to the end.
    fn digest(&mut self) -> Option<Digest> {
        self.hash.take().filter(|_| self.ended).map(|hash| Digest::from_sha256(hash.finalize().into()))
    }

    fn next_piece(&mut self) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        match self.queue.recv() {
            Ok(Piece::Data(piece, length)) => {
                let old = std::mem::replace(&mut self.piece, piece);
                if old.len() == PIECE_BYTES && self.used.try_send(old).is_err() {
                    tracing::trace!("the sender has buffers enough");
                }
                (self.at, self.length) = (0, length);
                if let Some(hash) = &mut self.hash {
                    hash.update(&self.piece[..length]);
                }
                Ok(())
            }
            Ok(Piece::End) => {
                self.ended = true;
                Ok(())
            }
            Err(_gone) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the data ended early")),
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.length {
            self.next_piece()?;
        }
        Ok(&self.piece[self.at..self.length])
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.length.min(self.at + amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use nix::errno::Errno;
    use wharf_sys::seccomp::{Call, refuse};
    use wharf_types::{ErrorKind, Failure, chain};

    use super::*;
    use crate::load::LoadError;

    #[test]
    fn what_this_machine_refuses_is_told_from_damage() {
        let lacks = || within_io(UnpackError::NoWindow { window_bytes: 16 << 20 });
        let refused = not_decompressed(Compression::Zstd, lacks());
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "the disk has room: no kept layer is given up");
        let told = chain(&refused);
        let words = ["a window (Zstandard) of 16777216 bytes", "try again later"];
        assert!(words.iter().all(|words| told.contains(words)), "{told}");
        let archive = LoadError::Read { source: lacks() };
        assert_eq!(archive.kind(), ErrorKind::Unavailable, "an archive may be compressed as a whole");
        let beyond = within_io(UnpackError::Window { window_bytes: 16 << 20, limit_bytes: 8 << 20 });
        let beyond = not_decompressed(Compression::Zstd, beyond);
        assert_eq!((beyond.kind(), beyond.wants_disk()), (ErrorKind::FailedPrecondition, false));
        let damaged = not_decompressed(Compression::Zstd, io::Error::other("damaged"));
        assert_eq!(damaged.kind(), ErrorKind::DataLoss);
    }

    #[test]
    fn without_room_for_its_threads_a_layer_is_not_unpacked() {
        let digest = Digest::from_sha256([0; 32]);
        let source = LayerSource {
            diff_id: digest.clone(),
            form: Form::Archive,
            blob_digest: digest,
            blob_size_bytes: 0,
            sender: Sender::default(),
        };
        let without_room = || {
            refuse(Call::CLONE, Errno::EAGAIN).expect("these tests need root");
            refuse(Call::CLONE3, Errno::EAGAIN).expect("these tests need root");
            let directory = File::open("/").unwrap();
            let means =
                Means { limits: &Limits::default(), sender: &source.sender, directory: directory.as_fd() };
            run(&source, &mut io::empty(), means, |_content| Ok(())).unwrap_err()
        };
        let error = scope(|scope| scope.spawn(without_room).join()).unwrap();
        let told = chain(&error);
        assert!(told.contains("cannot start unpacking the layer") && told.contains("pids.max"), "{told}");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    }
}
