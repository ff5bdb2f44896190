//! `wharf save`: images as an archive, in a file or on standard output.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use tokio_stream::StreamExt;
use wharf_cri_api::admin::save_response::Part;
use wharf_cri_api::admin::{SaveRequest, SavedImage, SavedImages};

use crate::args::Save;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, Output};
use crate::pull::{BAR, styled};
use crate::{signals, units};

/// What `wharf save --json` prints for an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    names: Vec<String>,
    id: String,
    archived_id: String,
}

pub(crate) async fn save(daemon: &mut Daemon, output: Output, save: Save) -> Result<(), Error> {
    let mut target = Target::open(save.output)?;
    let request = SaveRequest { images: save.images };
    let has_remains = target.names.is_some();
    let writing = Box::pin(write(daemon, request, &mut target));
    // Whoever reads a pipe may never go on, and a signal that is listened for would not end a write to it.
    let written = if has_remains { signals::or_cut(writing).await } else { writing.await };
    let images = match written {
        Ok(images) => images.images,
        Err(error) => {
            target.discard();
            return Err(error);
        }
    };
    target.keep()?;
    images.iter().for_each(|image| output::report(&told(image)));
    let saved = images.into_iter();
    let saved = saved.map(|SavedImage { names, id, archived_id }| Saved { names, id, archived_id });
    output.result(&saved.collect::<Vec<_>>(), "")
}

/// Writes what wharfd sends, until the archive is whole.
async fn write(daemon: &mut Daemon, request: SaveRequest, target: &mut Target) -> Result<SavedImages, Error> {
    let calling = || Error::call("cannot save the images");
    let mut parts = daemon.admin.save(request).await.map_err(calling())?.into_inner();
    let (mut images, bar) = (SavedImages::default(), bar());
    while let Some(part) = parts.next().await {
        match part.map_err(calling())?.part {
            Some(Part::Images(of_archive)) => {
                bar.set_length(of_archive.layers_bytes);
                images = of_archive;
            }
            Some(Part::Chunk(chunk)) => {
                target.file.write_all(&chunk).map_err(|cause| target.failed(cause))?;
                bar.inc(chunk.len() as u64);
                let total = units::size(images.layers_bytes);
                bar.set_message(format!("{} of {total}", units::size(bar.position())));
            }
            Some(Part::IsWhole(true)) => {
                bar.finish_and_clear();
                return Ok(images);
            }
            Some(Part::IsWhole(false)) | None => {}
        }
    }
    Err(Error::Incomplete { what: "the end of the archive" })
}

/// What becomes of an image that is saved.
fn told(image: &SavedImage) -> String {
    let name = image.names.first().map_or_else(|| units::short(&image.id), String::as_str);
    let (here, there) = (units::short(&image.id), units::short(&image.archived_id));
    if here == there {
        return format!("saved {name}");
    }
    format!("saved {name}: its layers were repacked, so its id is {there} in the archive, and {here} here")
}

/// Nothing is drawn unless standard error is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_prefix("saving");
    styled(bar, BAR)
}

/// Where the archive goes.
struct Target {
    file: Box<dyn Write>,
    /// What it will be called, and what it is called until it is whole.
    names: Option<(PathBuf, PathBuf)>,
    shown: PathBuf,
}

impl Target {
    /// A file takes its name once it is whole; a device or a pipe is written to as it is.
    fn open(path: Option<PathBuf>) -> Result<Self, Error> {
        let Some(path) = path else {
            if io::stdout().is_terminal() {
                return Err(Error::ToTerminal);
            }
            return Ok(Self { file: Box::new(io::stdout()), names: None, shown: "standard output".into() });
        };
        let failed = |cause| Error::File { path: path.clone(), cause };
        let path = behind_links(path.clone()).map_err(failed)?;
        let failed = |cause| Error::File { path: path.clone(), cause };
        let is_other = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        if is_other {
            let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            return Ok(Self { file: Box::new(file), names: None, shown: path });
        }
        let partial = partial(&path);
        // Not through a link that somebody else has put there.
        let file = OpenOptions::new().write(true).create_new(true).open(&partial).map_err(failed)?;
        Ok(Self { file: Box::new(file), names: Some((path.clone(), partial)), shown: path })
    }

    fn failed(&self, cause: io::Error) -> Error {
        if cause.kind() == io::ErrorKind::BrokenPipe {
            return Error::Output { source: cause };
        }
        Error::File { path: self.shown.clone(), cause }
    }

    fn keep(mut self) -> Result<(), Error> {
        let kept = self.file.flush().and_then(|()| match &self.names {
            Some((path, partial)) => std::fs::rename(partial, path),
            None => Ok(()),
        });
        kept.map_err(|cause| {
            let error = self.failed(cause);
            self.discard();
            error
        })
    }

    fn discard(self) {
        if let Some((_, partial)) = &self.names
            && let Err(error) = std::fs::remove_file(partial)
        {
            output::report(&format!("cannot remove {}: {error}", partial.display()));
        }
    }
}

/// The file that a link leads to, which need not exist: it, and not the link, becomes the archive.
fn behind_links(mut path: PathBuf) -> io::Result<PathBuf> {
    /// As many as the kernel follows.
    const LINKS: usize = 40;
    for _ in 0..LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        let directory = path.parent().filter(|parent| *parent != "").unwrap_or(Path::new("."));
        if !is_trusted(&path.symlink_metadata()?, &directory.metadata()?) {
            let problem = "it is another user's link in a world-writable directory: name the file itself";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        // A device or a pipe is opened through the link: that of a descriptor says what it is, and not where.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            break;
        }
        path = directory.join(target);
    }
    Ok(path)
}

/// Whether a link may be followed, by the rule that the kernel has where `fs.protected_symlinks` is 1.
fn is_trusted(link: &Metadata, directory: &Metadata) -> bool {
    const STICKY_AND_FOR_ALL: u32 = 0o1002;
    let is_shared = directory.mode() & STICKY_AND_FOR_ALL == STICKY_AND_FOR_ALL;
    !is_shared || link.uid() == nix::unistd::geteuid().as_raw() || link.uid() == directory.uid()
}

/// The name of a file until it is whole: beside it, so that it can be renamed.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;

    use tokio::signal::unix::SignalKind;

    use super::*;
    use crate::daemon;
    use crate::signals::tests::{end, send, turn};

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        let mut target = Target::open(Some(path.clone())).unwrap();
        target.file.write_all(b"half").unwrap();
        assert!(!path.exists());
        target.discard();
        assert_eq!(count(), 0);
        let mut target = Target::open(Some(path.clone())).unwrap();
        target.file.write_all(b"whole").unwrap();
        target.keep().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), count()), (b"whole".to_vec(), 1));
        // A link stays one, also where it leads nowhere yet.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("later", &link).unwrap();
        for content in ["one", "two"] {
            let mut target = Target::open(Some(link.clone())).unwrap();
            target.file.write_all(content.as_bytes()).unwrap();
            target.keep().unwrap();
            assert_eq!(std::fs::read_to_string(dir.path().join("later")).unwrap(), content);
            assert!(link.symlink_metadata().unwrap().is_symlink());
        }
        // Unless somebody else made it where everybody may.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        let error = Target::open(Some(link)).err().unwrap().to_string();
        assert!(error.contains("name the file itself"), "{error}");
        let (mut read, write) = std::io::pipe().unwrap();
        let mut target = Target::open(Some(format!("/proc/self/fd/{}", write.as_raw_fd()).into())).unwrap();
        target.file.write_all(b"piped").unwrap();
        target.keep().unwrap();
        drop(write);
        assert_eq!(std::io::read_to_string(&mut read).unwrap(), "piped");
        assert_eq!(count(), 3);
        Target::open(Some("/dev/null".into())).unwrap().keep().unwrap();
        let error = Target::open(Some("/proc/no/such".into())).err().unwrap();
        assert!(error.to_string().starts_with("/proc/no/such: "), "{error}");
    }

    #[tokio::test]
    async fn a_signal_leaves_no_part_of_an_archive() {
        let _turn = turn().await;
        let (mut daemon, _socket) = daemon::tests::silent().await;
        let dir = tempfile::tempdir().unwrap();
        let save_at = |output: PathBuf| Save { images: vec!["x".into()], output: Some(output) };
        for signal in [SignalKind::terminate(), SignalKind::interrupt()] {
            let saving = save(&mut daemon, Output::new(false), save_at(dir.path().join("images.tar")));
            let ended = end(Box::pin(saving), &[signal]).await;
            assert!(matches!(ended, Err(Error::Interrupted { .. })), "{ended:?}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        // What leaves nothing behind need not listen: the signal ends the process.
        let saving = Box::pin(save(&mut daemon, Output::new(false), save_at("/dev/null".into())));
        tokio::select! {
            biased;
            _ = saving => panic!("it listens"),
            () = send(SignalKind::interrupt()) => {}
        }
    }

    #[test]
    fn another_id_is_told() {
        let image = |archived_id: &str| SavedImage {
            id: "sha256:aa".into(),
            archived_id: archived_id.into(),
            names: vec!["x:1".into()],
        };
        assert_eq!(told(&image("sha256:aa")), "saved x:1");
        assert!(told(&image("sha256:bb")).ends_with("its id is bb in the archive, and aa here"));
    }
}
