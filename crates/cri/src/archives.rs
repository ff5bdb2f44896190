//! Images in archives, as calls of wharfd's own service: the archive is sent in pieces, in either direction.
//!
//! A thread of its own does the work, and waits for the client when it has to. Tasks stand between the two: they end
//! with the daemon, with the client, and with their patience, and then the thread gets an error and ends, too.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wharf_cri_api::admin::layer::Phase;
use wharf_cri_api::admin::load_response::Event;
use wharf_cri_api::admin::save_response::Part;
use wharf_cri_api::admin::{
    Layer, LoadRequest, LoadResponse, LoadedImage, LoadedLayers, SaveResponse, SavedImage, SavedImages,
};
use wharf_images::{Archived, ArchivedImage, LoadEvent, SaveError, Sender, Store};
use wharf_tasks::{CrowdLimits, Threads};
use wharf_types::Digest;

use crate::runtime::Streamed;
use crate::status;

/// How many messages may wait for the other side. Those of an archive have at most 1 MiB each.
const QUEUE: usize = 4;
/// How long a client may send nothing or take nothing. What makes its archive may be slow to begin.
const PATIENCE: Duration = Duration::from_mins(10);
/// How many archives are loaded or saved at a time.
const AT_ONCE: usize = 4;
/// How much of an archive is in one message.
const CHUNK_BYTES: usize = 512 << 10;

/// Where the thread sends what the client gets.
type Out<T> = mpsc::Sender<Result<T, Status>>;

/// The calls.
#[derive(Debug, Clone)]
pub(crate) struct Archives {
    store: Arc<Store>,
    threads: Arc<Threads<()>>,
}

impl Archives {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let limits = CrowdLimits { of_one: AT_ONCE, of_all: AT_ONCE };
        Self { store, threads: Arc::new(Threads::new("archive", limits)) }
    }

    /// Loads the images of an archive.
    pub(crate) fn load(&self, archive: Streaming<LoadRequest>) -> Streamed<LoadResponse> {
        let (to_thread, pieces) = mpsc::channel(QUEUE);
        tokio::spawn(receive(archive, to_thread));
        let (store, sender) = (Arc::clone(&self.store), Sender::default());
        let wanted = sender.clone();
        self.begin("loading an archive", wanted, move |out| {
            let mut input = Incoming { pieces, piece: Vec::new(), at: 0, is_last: false };
            let mut totals = HashMap::new();
            let loaded = store.load(&mut input, &sender, &mut |event| tell(out, &mut totals, event));
            loaded.map_err(status::of)
        })
    }

    /// Writes images as an archive.
    pub(crate) fn save(&self, images: Vec<String>) -> Streamed<SaveResponse> {
        let store = Arc::clone(&self.store);
        self.begin("saving images", Sender::default(), move |out| {
            save(&store, &images, out).map_err(status::of)
        })
    }

    /// Begins work, and returns what it sends to the client. Once that is gone, `sender` is given up.
    fn begin<T: Send + 'static>(
        &self,
        what: &'static str,
        sender: Sender,
        work: impl FnOnce(&Out<T>) -> Result<(), Status> + Send + 'static,
    ) -> Streamed<T> {
        let (from_thread, relayed) = mpsc::channel(QUEUE);
        let (to_client, answers) = mpsc::channel(QUEUE);
        let threads = Arc::clone(&self.threads);
        tokio::spawn(async move {
            let end = to_client.clone();
            let work = threads.run(&(), what, move || work(&from_thread));
            let relayed = async {
                relay(relayed, to_client).await;
                sender.give_up();
            };
            let (worked, ()) = tokio::join!(work, relayed);
            if let Err(failed) = worked.map_err(status::of).flatten() {
                // A client that has gone away needs no answer.
                drop(end.send_timeout(Err(failed), PATIENCE).await);
            }
        });
        Box::pin(ReceiverStream::new(answers))
    }
}

/// Passes messages on until either side is gone, or the client takes none for too long.
async fn relay<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<T>) {
    loop {
        let message = tokio::select! {
            message = from.recv() => message,
            () = to.closed() => None,
        };
        let Some(message) = message else { return };
        if to.send_timeout(message, PATIENCE).await.is_err() {
            return;
        }
    }
}

/// Passes the pieces of an archive to the thread that reads them. If the archive is not whole, it ends without a last
/// piece.
async fn receive(mut archive: Streaming<LoadRequest>, to: mpsc::Sender<LoadRequest>) {
    while let Ok(Ok(Some(piece))) = timeout(PATIENCE, archive.message()).await {
        let is_last = piece.is_last;
        if to.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// The archive that a client sends.
struct Incoming {
    pieces: mpsc::Receiver<LoadRequest>,
    piece: Vec<u8>,
    at: usize,
    is_last: bool,
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.is_last {
            let Some(next) = self.pieces.blocking_recv() else {
                let why = "the client went away or was silent before the archive's end";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
            };
            (self.piece, self.at, self.is_last) = (next.chunk, 0, next.is_last);
        }
        let count = into.len().min(self.piece.len() - self.at);
        into[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Tells a client what has come of its archive. Only progress may be left out.
fn tell(out: &Out<LoadResponse>, totals: &mut HashMap<Digest, u64>, event: LoadEvent<'_>) -> ControlFlow<()> {
    let total = |totals: &HashMap<_, u64>, digest| totals.get(digest).copied().unwrap_or_default();
    let layer = |digest: &Digest, total_bytes, done_bytes, phase: Phase| Layer {
        digest: digest.to_string(),
        total_bytes,
        done_bytes,
        phase: phase.into(),
    };
    let event = match event {
        LoadEvent::Received(layers) => {
            totals.extend(layers);
            let waiting = |(digest, total): (&Digest, &u64)| layer(digest, *total, 0, Phase::Waiting);
            Event::Received(LoadedLayers { layers: totals.iter().map(waiting).collect() })
        }
        LoadEvent::Unpacking(digest, done_bytes) => {
            let event = Event::Layer(layer(digest, total(totals, digest), done_bytes, Phase::Unpacking));
            return match out.try_send(Ok(LoadResponse { event: Some(event) })) {
                Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => ControlFlow::Continue(()),
            };
        }
        LoadEvent::Unpacked(digest) => {
            let total_bytes = total(totals, digest);
            Event::Layer(layer(digest, total_bytes, total_bytes, Phase::Done))
        }
        LoadEvent::Exists(digest) => Event::Layer(layer(digest, total(totals, digest), 0, Phase::Exists)),
        LoadEvent::Loaded { image, names } => {
            Event::Loaded(LoadedImage { id: image.id().to_string(), names })
        }
    };
    match out.blocking_send(Ok(LoadResponse { event: Some(event) })) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_gone) => ControlFlow::Break(()),
    }
}

fn save(store: &Store, images: &[String], out: &Out<SaveResponse>) -> Result<(), SaveError> {
    let archived = store.archive(images, &mut || if out.is_closed() { Err(gone()) } else { Ok(()) })?;
    send(out, Part::Images(described(&archived)))?;
    let mut writer = BufWriter::with_capacity(CHUNK_BYTES, Outgoing(out));
    archived.write(&mut writer)?;
    writer.flush()?;
    Ok(send(out, Part::IsWhole(true))?)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone away")
}

fn described(archived: &Archived) -> SavedImages {
    let image = |image: &ArchivedImage| SavedImage {
        id: image.id.to_string(),
        archived_id: image.archived_id.to_string(),
        names: image.names.iter().map(ToString::to_string).collect(),
    };
    SavedImages {
        images: archived.images().iter().map(image).collect(),
        layers_bytes: archived.layers_bytes(),
    }
}

fn send(out: &Out<SaveResponse>, part: Part) -> io::Result<()> {
    let sent = out.blocking_send(Ok(SaveResponse { part: Some(part) }));
    sent.map_err(|_gone| gone())
}

/// The archive that a client gets.
struct Outgoing<'a>(&'a Out<SaveResponse>);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK_BYTES);
        send(self.0, Part::Chunk(bytes[..length].to_vec()))?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_whole_only_with_its_last_piece() {
        let read = |pieces: &[(&[u8], bool)]| {
            let (sender, receiver) = mpsc::channel(8);
            for (chunk, is_last) in pieces {
                sender.try_send(LoadRequest { chunk: chunk.to_vec(), is_last: *is_last }).unwrap();
            }
            drop(sender);
            let mut incoming = Incoming { pieces: receiver, piece: Vec::new(), at: 0, is_last: false };
            let mut all = Vec::new();
            incoming.read_to_end(&mut all).map(|_length| all).map_err(|error| error.kind())
        };
        assert_eq!(read(&[(b"ab", false), (b"", false), (b"c", true)]).unwrap(), b"abc");
        assert_eq!(read(&[(b"", true)]).unwrap(), b"");
        assert_eq!(read(&[(b"abc", false)]), Err(io::ErrorKind::ConnectionAborted));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (from, relayed) = mpsc::channel(8);
        let (to, taken) = mpsc::channel(1);
        for number in 0..3 {
            from.try_send(number).unwrap();
        }
        let begin = tokio::time::Instant::now();
        relay(relayed, to).await;
        assert_eq!(begin.elapsed(), PATIENCE, "by a clock that waits alone move");
        assert!(from.is_closed());
        drop(taken);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_noticed_before_there_is_anything_to_send() {
        let (from, relayed) = mpsc::channel::<u8>(1);
        let (to, taken) = mpsc::channel(1);
        drop(taken);
        relay(relayed, to).await;
        assert!(from.is_closed());
    }
}
