//! One layer: from a host to the store in one pass, through a short queue between the network and a blocking thread.
//!
//! A layer is not on disk as an archive, except for one that takes much memory (`images/src/stream/frames.rs`). The
//! queue is bounded, so a slow disk slows the download and nothing piles up. The bytes are hostile until the store has
//! compared their size and digest; if they are wrong, another host is asked. Where a broken connection is resumed is
//! `blob`'s matter.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use wharf_images::manifest::Descriptor;
use wharf_images::{Form, LayerSource, Sender, Store, UnpackError, UnpackedLayer};
use wharf_tasks::{ThreadError, Threads};
use wharf_types::{Digest, Reference};

use crate::blob::{Blob, Exhausted};
use crate::config::CHUNKS_LIMIT;
use crate::error::{PullError, Stage};
use crate::flights::Key;
use crate::places::Place;
use crate::progress::{Phase, Tracker};
use crate::session::Session;

/// The parameters of a layer's download.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) store: Store,
    pub(crate) unpacking: Arc<Threads<()>>,
    pub(crate) session: Arc<Session>,
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) reference: Reference,
    pub(crate) layer: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) form: Form,
    /// Its position, from 0, and the number of layers.
    pub(crate) at: usize,
    pub(crate) count: usize,
}

impl Job {
    pub(crate) fn enter(&self, phase: Phase) {
        if let Some(cell) = self.tracker.cell(self.at) {
            cell.enter(phase);
        }
    }

    fn reach(&self, done_bytes: u64) {
        if let Some(cell) = self.tracker.cell(self.at) {
            cell.reach(done_bytes);
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        let digest = self.layer.digest.clone();
        Stage::Layer { number: self.at + 1, count: self.count, digest }
    }

    pub(crate) fn threadless(&self, source: ThreadError) -> PullError {
        PullError::Thread { reference: self.reference.clone(), stage: self.stage(), source }
    }

    pub(crate) fn lost(&self) -> PullError {
        PullError::Lost { reference: self.reference.clone(), stage: self.stage() }
    }

    /// Downloads and unpacks the layer. `claim` is kept until nothing of an attempt is left on disk, even if this
    /// future is dropped earlier.
    pub(crate) async fn run<C: Send + Sync + 'static>(
        &self,
        place: &Place,
        claim: C,
    ) -> Result<UnpackedLayer, PullError> {
        let claim = Arc::new(claim);
        let endpoints = self.session.pull_order();
        let mut blob = Blob::new(&self.session.config, &self.layer, place, endpoints);
        loop {
            self.enter(Phase::Downloading);
            let (sender, receiver) = mpsc::channel(CHUNKS_LIMIT);
            let (store, source, kept) = (self.store.clone(), self.source(), Arc::clone(&claim));
            let wanted = Wanted(source.sender.clone());
            let unpack = move || {
                let _kept = kept;
                store.unpack(&source, &mut ChunkReader::new(receiver))
            };
            let unpacking = self.unpacking.run(&(), "unpacking the layer", unpack);
            let pump = async {
                let pumped = self.pump(&mut blob, sender).await;
                if pumped.is_err() {
                    wanted.0.give_up();
                }
                pumped
            };
            let (pumped, unpacked) = tokio::join!(pump, unpacking);
            let unpacked = unpacked.map_err(|source| self.threadless(source))?;
            let rejected = match (pumped, unpacked) {
                (_, Ok(layer)) => return Ok(layer),
                (Err(Exhausted), Err(_cut_off)) => Err(Exhausted),
                (Ok(()), Err(error)) if is_senders_fault(&error) => blob.reject(error),
                (Ok(()), Err(source)) => {
                    let (reference, stage) = (self.reference.clone(), self.stage());
                    return Err(PullError::Unpack { reference, stage, source });
                }
            };
            if rejected.is_err() {
                let failures = std::mem::take(&mut blob.failures);
                let (reference, stage) = (self.reference.clone(), self.stage());
                return Err(PullError::Fetch { reference, stage, failures });
            }
        }
    }

    pub(crate) fn key(&self) -> Key {
        Key {
            registry: self.reference.host().to_owned(),
            diff_id: self.diff_id.clone(),
            blob_digest: self.layer.digest.clone(),
        }
    }

    pub(crate) fn source(&self) -> LayerSource {
        LayerSource {
            diff_id: self.diff_id.clone(),
            form: self.form.clone(),
            blob_digest: self.layer.digest.clone(),
            blob_size_bytes: self.layer.size_bytes,
            sender: Sender::registry(self.reference.host()),
        }
    }

    /// Moves bytes until all have arrived, or until the reader is gone, which then knows why.
    async fn pump(&self, blob: &mut Blob<'_>, sender: mpsc::Sender<Piece>) -> Result<(), Exhausted> {
        while let Some(chunk) = blob.next().await? {
            self.tracker.fetched(chunk.len());
            if sender.send(Piece::Bytes(chunk)).await.is_err() {
                return Ok(());
            }
            self.reach(blob.done_bytes());
        }
        self.enter(Phase::Unpacking);
        // A reader that is gone has already reported why.
        let _told = sender.send(Piece::End).await.is_ok();
        Ok(())
    }
}

/// Gives a layer up when nobody waits for it any more. Even if all of it has arrived, it may not be unpacked yet.
struct Wanted(Sender);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Whether another host may send better bytes.
fn is_senders_fault(error: &UnpackError) -> bool {
    match error {
        UnpackError::Size { .. }
        | UnpackError::BlobDigest { .. }
        | UnpackError::DiffId { .. }
        | UnpackError::Decompress { .. }
        | UnpackError::Tar { .. }
        | UnpackError::Entry { .. }
        | UnpackError::Limit { .. }
        | UnpackError::Window { .. } => true,
        UnpackError::Read { .. }
        | UnpackError::NoWindow { .. }
        | UnpackError::Thread { .. }
        | UnpackError::Disk(_)
        | UnpackError::System { .. } => false,
    }
}

/// An item of the queue. The end is explicit, so that a dropped sender is never taken for a complete blob.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

/// The blocking side of the queue.
#[derive(Debug)]
struct ChunkReader {
    receiver: mpsc::Receiver<Piece>,
    chunk: Bytes,
    ended: bool,
}

impl ChunkReader {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self { receiver, chunk: Bytes::new(), ended: false }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(chunk)) => self.chunk = chunk,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the download was given up",
                    ));
                }
            }
        }
        let count = out.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::{ErrorKind, Failure as _};

    #[test]
    fn memory_that_others_have_is_neither_the_senders_fault_nor_the_registrys() {
        let source = UnpackError::NoWindow { window_bytes: 64 << 20 };
        assert!(!is_senders_fault(&source));
        let error = PullError::Unpack { reference: "a.b/c:1".parse().unwrap(), stage: Stage::Commit, source };
        assert_eq!((error.kind(), error.cri_prefix()), (ErrorKind::Unavailable, None));
    }

    #[test]
    fn the_reader_gives_all_bytes_and_then_an_end() {
        let (sender, receiver) = mpsc::channel(4);
        for piece in
            [Piece::Bytes(Bytes::from_static(b"abc")), Piece::Bytes(Bytes::from_static(b"d")), Piece::End]
        {
            sender.try_send(piece).unwrap();
        }
        let mut reader = ChunkReader::new(receiver);
        let mut two = [0; 2];
        assert_eq!(reader.read(&mut two).unwrap(), 2);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!((&two, rest.as_slice()), (b"ab", &b"cd"[..]));
        assert_eq!(reader.read(&mut two).unwrap(), 0);
    }

    #[test]
    fn a_dropped_sender_is_no_end() {
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(Piece::Bytes(Bytes::from_static(b"abc"))).unwrap();
        drop(sender);
        let error = ChunkReader::new(receiver).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
