//! The output of commands, kept within limits for one command and for all together.
//!
//! It becomes part of one response, so it is all in memory. What goes beyond a command's own limit is read and
//! dropped, so that the command can end; at the limit of all, the command that needs more is killed.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use wharf_types::{ErrorKind, Failure, Stage as _, StageError};

const STAGE: &str = "exec";

/// How much of each stream is kept; the command continues beyond it. Both streams and the rest fit one message of 16
/// MiB.
const STREAM_LIMIT_BYTES: usize = (8 << 20) - 1024;
/// How much each stream may keep whatever others do: more than a probe writes.
const OWN_BYTES: usize = 16 * 1024;
/// How much the streams of all commands together may keep beyond that.
const SHARED_LIMIT_BYTES: usize = 256 << 20;
/// The memory that one permit stands for.
const PERMIT_BYTES: usize = 1024;

/// The memory for the output of all commands.
#[derive(Debug, Clone)]
pub struct OutputMemory(Arc<Semaphore>);

impl Default for OutputMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SHARED_LIMIT_BYTES / PERMIT_BYTES)))
    }
}

/// One stream of a command.
#[derive(Debug)]
pub struct Output {
    pipe: Receiver,
    state: State,
    kept: Vec<u8>,
    memory: OutputMemory,
    held: Option<OwnedSemaphorePermit>,
}

/// There is no memory left for more output.
#[derive(Debug, thiserror::Error)]
#[error(
    "the output of all running commands exceeds {} MiB: this one was killed; try again later",
    SHARED_LIMIT_BYTES >> 20
)]
struct Exhausted;

impl Failure for Exhausted {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ResourceExhausted
    }
}

/// Whether more can come out of a pipe.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nobody can write to it any more, and it is empty.
    Over,
}

impl Output {
    /// The output from a nonblocking pipe.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(pipe: OwnedFd, memory: &OutputMemory) -> Result<Self, StageError> {
        // Unchecked, because whoever made the pipe knows that it is one.
        let pipe = Receiver::from_file_unchecked(pipe.into()).stage(STAGE)?;
        Ok(Self { pipe, state: State::Open, kept: Vec::new(), memory: memory.clone(), held: None })
    }

    /// Reads to the end of the pipe. Other tasks get their turns in the meantime, however fast the pipe fills: each of
    /// these reads counts against the task's budget.
    ///
    /// # Errors
    /// ResourceExhausted if the commands' output needs more memory than there is for all; the kernel's.
    pub async fn collect(&mut self) -> Result<(), StageError> {
        let mut buffer = vec![0; 16 * 1024];
        while let count @ 1.. = self.pipe.read(&mut buffer).await.stage(STAGE)? {
            self.keep(&buffer[..count])?;
        }
        self.state = State::Over;
        Ok(())
    }

    /// Takes what is in the pipe now, whether or not its readiness has been seen. A remaining writer does not hold this
    /// up: no more is read than fits the pipe.
    ///
    /// # Errors
    /// As for [`Output::collect`].
    pub fn drain(&mut self) -> Result<(), StageError> {
        if self.state == State::Over {
            return Ok(());
        }
        let mut left = fcntl(self.pipe.as_fd(), FcntlArg::F_GETPIPE_SZ).stage(STAGE)?.unsigned_abs() as usize;
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            match nix::unistd::read(&self.pipe, &mut buffer) {
                Ok(count @ 1..) => {
                    self.keep(&buffer[..count])?;
                    left = left.saturating_sub(count);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// The bytes that were kept.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.kept
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let bytes = &bytes[..bytes.len().min(STREAM_LIMIT_BYTES - self.kept.len())];
        let needed = self.kept.len() + bytes.len();
        if needed > self.kept.capacity() {
            self.grow(needed.max(self.kept.capacity() * 2).clamp(OWN_BYTES, STREAM_LIMIT_BYTES))?;
        }
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    fn grow(&mut self, capacity: usize) -> Result<(), StageError> {
        let more = (capacity - self.kept.capacity().max(OWN_BYTES)).div_ceil(PERMIT_BYTES);
        // It fits: a stream's limit is far below.
        let permits = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.memory.0).try_acquire_many_owned(permits);
        let permit = permit.map_err(|_none_left| Exhausted).stage(STAGE)?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.kept.reserve_exact(capacity - self.kept.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe;

    fn output(memory: &OutputMemory) -> (Output, OwnedFd) {
        let (read, write) = pipe().unwrap();
        (Output::of(read, memory).unwrap(), write)
    }

    #[tokio::test]
    async fn a_stream_is_kept_up_to_its_limit_and_read_to_its_end() {
        let memory = OutputMemory::default();
        let (mut output, write) = output(&memory);
        let writer = std::thread::spawn(move || {
            let chunk = vec![7; 1 << 20];
            for _ in 0..10 {
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    rest = &rest[nix::unistd::write(&write, rest).unwrap()..];
                }
            }
        });
        output.collect().await.unwrap();
        writer.join().unwrap();
        assert_eq!(output.kept.len(), STREAM_LIMIT_BYTES);
        let taken = SHARED_LIMIT_BYTES / PERMIT_BYTES - memory.0.available_permits();
        assert_eq!(taken, (STREAM_LIMIT_BYTES - OWN_BYTES) / PERMIT_BYTES);
        assert_eq!(output.into_bytes(), vec![7; STREAM_LIMIT_BYTES]);
        assert_eq!(memory.0.available_permits(), SHARED_LIMIT_BYTES / PERMIT_BYTES, "given back");
    }

    #[tokio::test]
    async fn without_shared_memory_a_little_is_kept_and_more_is_refused() {
        let memory = OutputMemory(Arc::new(Semaphore::new(0)));
        let (mut output, write) = output(&memory);
        nix::unistd::write(&write, &[1; OWN_BYTES]).unwrap();
        output.drain().unwrap();
        assert_eq!(output.kept.len(), OWN_BYTES);
        nix::unistd::write(&write, &[1]).unwrap();
        let refused = output.drain().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ResourceExhausted, "{refused}");
    }

    /// There is one worker: if reading never yielded, nothing else would be polled.
    #[tokio::test]
    async fn a_pipe_that_is_never_empty_holds_nobody_up() {
        let (mut output, write) = output(&OutputMemory::default());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (sender, much_is_read) = tokio::sync::oneshot::channel();
        let writer = std::thread::spawn(move || {
            // Far more than fits a pipe.
            for _ in 0..1000 {
                nix::unistd::write(&write, &[0; 4096]).unwrap();
            }
            sender.send(()).unwrap();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                nix::unistd::write(&write, &[0; 4096]).unwrap();
            }
        });
        tokio::select! {
            ended = output.collect() => panic!("it ended: {ended:?}"),
            told = much_is_read => told.unwrap(),
        }
        output.drain().unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(output);
        // Its last write may find no reader.
        drop(writer.join());
    }
}
