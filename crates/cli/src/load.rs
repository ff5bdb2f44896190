//! `wharf load`: the images of an archive, which wharf reads and wharfd unpacks.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use wharf_cri_api::admin::load_response::Event;
use wharf_cri_api::admin::{LoadRequest, LoadResponse, LoadedImage};

use crate::args::Load;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, Output};
use crate::pull::{BAR, Bars, styled};
use crate::{terminal, units};

/// How much of an archive is in one message.
const CHUNK_BYTES: usize = 512 << 10;

/// What `wharf load --json` prints for an image.
#[derive(Debug, Serialize)]
struct Loaded {
    names: Vec<String>,
    id: String,
}

pub(crate) async fn load(daemon: &mut Daemon, output: Output, load: Load) -> Result<(), Error> {
    let begun = Instant::now();
    let archive = Archive::open(load.input)?;
    let progress = Progress::new(load.quiet, archive.size_bytes);
    let (pieces, receiver) = mpsc::channel(2);
    let reading = archive.start(pieces, progress.received.clone())?;
    let answer = daemon.admin.load(ReceiverStream::new(receiver)).await;
    let calling = || Error::call("cannot load the archive");
    let mut events = answer.map_err(calling())?.into_inner();
    let (mut bars, mut loaded) = (None, Vec::new());
    while let Some(event) = events.next().await {
        // A read that failed is the reason why wharfd got no whole archive.
        let event = match (event, reading.try_recv()) {
            (Err(_), Ok(failed)) => return Err(failed),
            (event, _) => event.map_err(calling())?,
        };
        progress.of(&event, &mut bars);
        if let Some(Event::Loaded(image)) = event.event {
            bars = None;
            if output.is_table() {
                output::text(&lines(&image, progress.quiet))?;
            }
            loaded.push(Loaded { names: image.names, id: image.id });
        }
    }
    if loaded.is_empty() {
        return Err(Error::Incomplete { what: "the images of the archive" });
    }
    if !output.is_table() {
        output::json(&loaded)?;
    }
    progress.end(&loaded, begun);
    Ok(())
}

/// A line for each name of an image, or one for an image without any.
fn lines(image: &LoadedImage, quiet: Quiet) -> String {
    let id = units::short(&image.id);
    match quiet {
        Quiet::Yes => format!("{id}\n"),
        Quiet::No if image.names.is_empty() => format!("<none>  {id}\n"),
        Quiet::No => image.names.iter().map(|name| format!("{name}  {id}\n")).collect(),
    }
}

/// Whether only ids are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quiet {
    Yes,
    No,
}

/// What is told while an archive is loaded.
struct Progress {
    quiet: Quiet,
    /// How much of the archive has been read.
    received: ProgressBar,
}

impl Progress {
    #[expect(clippy::fn_params_excessive_bools, reason = "the flag of the command line is given a name here")]
    fn new(quiet: bool, size_bytes: Option<u64>) -> Self {
        let quiet = if quiet { Quiet::Yes } else { Quiet::No };
        // Nothing is drawn unless standard error is a terminal.
        let target =
            if quiet == Quiet::Yes { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let received = ProgressBar::with_draw_target(size_bytes, target).with_prefix("reading");
        let template = if size_bytes.is_some() { BAR } else { "  {prefix}  {msg}" };
        Self { quiet, received: styled(received, template) }
    }

    fn of(&self, event: &LoadResponse, bars: &mut Option<Bars>) {
        match &event.event {
            Some(Event::Received(layers)) => {
                self.received.finish_and_clear();
                if self.quiet == Quiet::No {
                    let bars = bars.insert(Bars::new());
                    layers.layers.iter().for_each(|layer| bars.layer(layer));
                }
            }
            Some(Event::Layer(layer)) => {
                if let Some(bars) = bars {
                    bars.layer(layer);
                }
            }
            Some(Event::Loaded(_)) | None => {}
        }
    }

    fn end(&self, loaded: &[Loaded], begun: Instant) {
        if self.quiet == Quiet::Yes {
            return;
        }
        for image in loaded.iter().filter(|image| image.names.is_empty()) {
            let id = units::short(&image.id);
            output::report(&format!("the archive gives {id} no name\n  give it one: wharf tag {id} NAME"));
        }
        let seconds = begun.elapsed().as_secs_f32();
        output::report(&format!("loaded {} in {seconds:.1} s", images(loaded.len())));
    }
}

fn images(count: usize) -> String {
    if count == 1 { "1 image".to_owned() } else { format!("{count} images") }
}

/// The archive to be loaded.
struct Archive {
    path: PathBuf,
    file: Box<dyn Read + Send>,
    /// If it is known.
    size_bytes: Option<u64>,
}

impl Archive {
    fn open(path: Option<PathBuf>) -> Result<Self, Error> {
        let Some(path) = path else {
            if io::stdin().is_terminal() {
                return Err(Error::NoArchive);
            }
            return Ok(Self { path: "standard input".into(), file: Box::new(io::stdin()), size_bytes: None });
        };
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|cause| Error::File { path: path.clone(), cause })?;
        let size_bytes = Some(metadata.len()).filter(|_| metadata.is_file());
        Ok(Self { path, file: Box::new(file), size_bytes })
    }

    /// Reads it in a thread, which ends with the process: who writes to a pipe may never do so. Returns where the
    /// thread reports that reading failed.
    fn start(
        mut self,
        pieces: mpsc::Sender<LoadRequest>,
        received: ProgressBar,
    ) -> Result<std::sync::mpsc::Receiver<Error>, Error> {
        let (failed, reading) = std::sync::mpsc::channel();
        terminal::start_thread(move || {
            let sent = loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                match self.file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk) {
                    Ok(length) => {
                        let is_last = length < CHUNK_BYTES;
                        received.inc(length as u64);
                        received.set_message(units::size(received.position()));
                        if pieces.blocking_send(LoadRequest { chunk, is_last }).is_err() || is_last {
                            break Ok(());
                        }
                    }
                    Err(cause) => break Err(Error::File { path: self.path, cause }),
                }
            };
            // Before the sender is dropped, of which wharfd makes an error.
            if let Err(error) = sent {
                drop(failed.send(error));
            }
            drop(pieces);
        })?;
        Ok(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_line() {
        let id = format!("sha256:{}", "a".repeat(64));
        let image = |names: &[&str]| LoadedImage {
            id: id.clone(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(lines(&image(&["a:1", "b:2"]), Quiet::No), "a:1  aaaaaaaaaaaaa\nb:2  aaaaaaaaaaaaa\n");
        assert_eq!(lines(&image(&[]), Quiet::No), "<none>  aaaaaaaaaaaaa\n");
        assert_eq!(lines(&image(&["a:1", "b:2"]), Quiet::Yes), "aaaaaaaaaaaaa\n");
    }

    #[test]
    fn an_archive_is_sent_in_pieces_with_an_end() {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1] {
            let file = Box::new(io::Cursor::new(vec![7; length]));
            let archive = Archive { path: "x".into(), file, size_bytes: None };
            let (pieces, mut sent) = mpsc::channel(8);
            let failed = archive.start(pieces, ProgressBar::hidden()).unwrap();
            let (mut count, mut ends) = (0, 0);
            while let Some(piece) = sent.blocking_recv() {
                count += piece.chunk.len();
                ends += usize::from(piece.is_last);
            }
            assert_eq!((count, ends), (length, 1));
            assert!(failed.recv().is_err());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let archive = Archive::open(Some("/".into())).unwrap();
        let (pieces, mut sent) = mpsc::channel(8);
        let failed = archive.start(pieces, ProgressBar::hidden()).unwrap();
        assert!(sent.blocking_recv().is_none(), "no end");
        assert!(failed.recv().unwrap().to_string().starts_with("/: "));
    }
}
