//! The request to execute a command. Its arguments travel in the message, or in a file beside it if they are long.
//!
//! The streams are descriptors of the caller, of which the supervisor gets copies: no byte of a command's output goes
//! through the connection.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use wharf_types::{ContainerId, Stage as _, StageError, TerminalSize};
use wharf_wire::v1::{self, request};

use crate::calls::done;
use crate::connection::Connection;

pub(crate) const STAGE: &str = "exec";
/// How many bytes of arguments travel in the message itself.
const IN_MESSAGE_BYTES: usize = 32 * 1024;

/// A command's streams.
#[derive(Debug)]
pub enum ExecStreams<'a> {
    /// Standard input, output and error.
    Pipes([BorrowedFd<'a>; 3]),
    /// A terminal that the supervisor makes, of this size if it is known, and what stands in for the streams until
    /// then.
    Terminal([BorrowedFd<'a>; 3], Option<TerminalSize>),
}

impl Connection {
    /// Executes a further command in a container, under a number from [`crate::number`], and returns its terminal, if
    /// it has one.
    pub async fn exec(
        &self,
        container: &ContainerId,
        number: u64,
        command: Vec<String>,
        streams: ExecStreams<'_>,
    ) -> Result<Option<OwnedFd>, StageError> {
        let (args, file) = words(command)?;
        let (terminal, size, streams) = match streams {
            ExecStreams::Pipes(pipes) => (false, None, pipes),
            ExecStreams::Terminal(stand_ins, size) => (true, size.map(v1::TerminalSize::from), stand_ins),
        };
        let exec = v1::Exec { container: container.to_string(), exec: number, args, terminal, size };
        let descriptors: Vec<_> = streams.into_iter().chain(file.as_ref().map(OwnedFd::as_fd)).collect();
        done(STAGE, self.call(STAGE, request::Body::Exec(exec), &descriptors).await?)
    }
}

/// A command's arguments for the message, or in a file beside it.
fn words(command: Vec<String>) -> Result<(Vec<Vec<u8>>, Option<OwnedFd>), StageError> {
    let words: Vec<_> = command.into_iter().map(String::into_bytes).collect();
    // An argument takes a few bytes more than its length.
    if words.iter().map(|word| word.len() + 8).sum::<usize>() <= IN_MESSAGE_BYTES {
        return Ok((words, None));
    }
    let file = wharf_wire::to_file(&v1::Words { words }).stage(STAGE)?;
    Ok((Vec::new(), Some(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_a_message_is_in_a_file() {
        let few = vec!["echo".to_owned(), "x".repeat(IN_MESSAGE_BYTES - 100)];
        let (args, file) = words(few.clone()).unwrap();
        assert_eq!((args.len(), file.is_none()), (2, true));
        for many in [vec!["x".repeat(IN_MESSAGE_BYTES)], vec![String::new(); IN_MESSAGE_BYTES / 8 + 1]] {
            let (args, file) = words(many.clone()).unwrap();
            assert!(args.is_empty());
            let read = wharf_wire::from_file::<v1::Words>(&file.unwrap()).unwrap().words;
            assert_eq!(read, many.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }
}
