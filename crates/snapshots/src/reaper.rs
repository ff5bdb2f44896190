//! Removal in the background: a tree leaves its place by one rename, and a thread of its own frees the disk.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::tree::remove_tree;

/// A thread that removes what is in one directory, name by name. Its queue holds names only and is bounded by the
/// entries of that directory.
#[derive(Debug)]
pub struct Reaper {
    names: Option<Sender<OsString>>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts the thread for an open directory.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn start(directory: Arc<OwnedFd>) -> std::io::Result<Self> {
        let (names, queue) = channel();
        let thread =
            std::thread::Builder::new().name("reaper".into()).spawn(move || run(&directory, &queue))?;
        Ok(Self { names: Some(names), thread: Some(thread) })
    }

    /// Has `name` in the directory removed, some time.
    pub fn remove(&self, name: OsString) {
        if self.names.as_ref().is_none_or(|names| names.send(name).is_err()) {
            tracing::warn!("the thread that removes trees is gone; the next start removes what it left");
        }
    }

    /// Waits until everything asked for so far is removed, then ends the thread.
    pub fn finish(&mut self) {
        drop(self.names.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that removes trees panicked; the next start removes what it left");
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.finish();
    }
}

fn run(directory: &OwnedFd, queue: &Receiver<OsString>) {
    for name in queue {
        if let Err(error) = remove_tree(directory.as_fd(), &name) {
            tracing::warn!(name = %name.display(), error = %error, "a tree could not be removed; the next start tries again");
        }
    }
}
