//! System calls that are written down before they are made: the last calls of a process before its program, and all
//! calls of a process that has no memory to run other code with ([`crate::bare`]).
//!
//! A script is data: each call with its arguments, what they point to, and the message with which the process reports
//! that the call failed. So it is known in advance which calls a filter would have to allow.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::capabilities::Capabilities;
use crate::mount::Attributes;
use crate::seccomp::Call;

/// A position in the data of a script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place(pub(crate) usize);

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument {
    Number(usize),
    Data(Place),
}

/// A call as written down.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) call: Call,
    pub(crate) arguments: [Argument; 6],
    /// The message for its failure, with room for the errno after it.
    pub(crate) words: Place,
    pub(crate) words_bytes: usize,
    /// Whether the next call is tried if this one finds no file, or none that may be executed.
    pub(crate) is_candidate: bool,
}

/// A list of calls, made one after another until one fails.
#[derive(Debug)]
pub struct Script {
    pub(crate) calls: Vec<Draft>,
    pub(crate) data: Vec<u8>,
    /// The positions of addresses in the data, and what each is the address of.
    pub(crate) addresses: Vec<(Place, Place)>,
    /// The descriptor to which failures are written.
    pub(crate) line: RawFd,
    words: (Place, usize),
}

/// A program to execute.
#[derive(Debug)]
pub struct Program {
    /// The paths to try, in order.
    pub candidates: Vec<CString>,
    /// Its arguments.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
}

impl Script {
    /// A script without calls. Failures are written to `line`, which must be open while the script is followed.
    #[must_use]
    pub fn new(line: BorrowedFd<'_>) -> Self {
        let words = (Place(0), 0);
        let mut script = Self {
            calls: Vec::new(),
            data: Vec::new(),
            addresses: Vec::new(),
            line: line.as_raw_fd(),
            words,
        };
        script.on_failure(b"");
        script
    }

    /// Sets what is written if one of the following calls fails: this message, and the errno in eight bytes.
    pub fn on_failure(&mut self, words: &[u8]) {
        // Aligns the errno, which comes after the message.
        let gap = words.len().next_multiple_of(8) - words.len();
        let start = self.store(&vec![0; gap]);
        let place = Place(start.0 + gap);
        self.data.extend_from_slice(words);
        self.data.extend([0; 8]);
        self.words = (place, words.len());
    }

    /// setsid(2).
    pub fn lead_session(&mut self) {
        self.call(Call::SETSID, []);
    }

    /// Makes standard input the controlling terminal.
    pub fn control_terminal(&mut self) {
        let request = usize::try_from(libc::TIOCSCTTY).unwrap_or_default();
        self.call(Call::IOCTL, [0, request, 0].map(Argument::Number));
    }

    /// Marks every descriptor from `first` on as close-on-exec.
    pub fn close_on_exec_from(&mut self, first: u32) {
        let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
        self.call(Call::CLOSE_RANGE, [first, u32::MAX, close_on_exec].map(word).map(Argument::Number));
    }

    /// Loads a seccomp filter, as [`crate::seccomp::load`] does.
    pub fn load_filter(&mut self, program: &[u8], flags: u32) {
        let instructions = self.store(program);
        let count = (program.len() / 8).to_ne_bytes();
        let head = self.store(&count);
        let address = self.store(&[0; 8]);
        self.addresses.push((address, instructions));
        let mode = Argument::Number(word(libc::SECCOMP_SET_MODE_FILTER));
        self.call(Call::SECCOMP, [mode, Argument::Number(word(flags)), Argument::Data(head)]);
    }

    /// Sets the effective, permitted and inheritable sets.
    pub fn set_capabilities(&mut self, sets: &Capabilities) {
        const VERSION_3: u32 = 0x2008_0522;
        let this_process = 0;
        let header = self.store_numbers(&[VERSION_3, this_process]);
        let halves = [0, 32].map(|shift| {
            [sets.effective, sets.permitted, sets.inheritable]
                .map(|set| u32::try_from(set >> shift & u64::from(u32::MAX)).unwrap_or_default())
        });
        let data = self.store_numbers(halves.as_flattened());
        self.call(Call::CAPSET, [header, data].map(Argument::Data));
    }

    /// Clears the ambient set, then raises the capabilities in `ambient`.
    pub fn set_ambient(&mut self, ambient: u64) {
        let change = |what: libc::c_int, number: u32| {
            [libc::PR_CAP_AMBIENT.cast_unsigned(), what.cast_unsigned(), number, 0, 0]
                .map(word)
                .map(Argument::Number)
        };
        self.call(Call::PRCTL, change(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0));
        for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
            self.call(Call::PRCTL, change(libc::PR_CAP_AMBIENT_RAISE, number));
        }
    }

    /// Executes the first candidate that exists. It searches like a shell: a file that may not be executed is
    /// remembered as the failure, a missing one is not.
    pub fn execute(&mut self, program: &Program) {
        let arguments = self.store_texts(&program.arguments);
        let environment = self.store_texts(&program.environment);
        for candidate in &program.candidates {
            let path = self.store(candidate.as_bytes_with_nul());
            self.call(Call::EXECVE, [path, arguments, environment].map(Argument::Data));
            if let Some(call) = self.calls.last_mut() {
                call.is_candidate = true;
            }
        }
    }

    /// Makes a procfs as a detached mount, and sends it with one byte over standard input, which must be a socket and
    /// the only open descriptor.
    pub fn send_procfs(&mut self, attributes: Attributes) {
        const FSCONFIG_CMD_CREATE: u32 = 6;
        const CLOSE_ON_EXEC: u32 = 1;
        // The lowest free descriptors.
        let (context, mount) = (1, 2);
        let name = self.store(c"proc".to_bytes_with_nul());
        self.call(Call::FSOPEN, [Argument::Data(name), Argument::Number(word(CLOSE_ON_EXEC))]);
        self.call(Call::FSCONFIG, [context, FSCONFIG_CMD_CREATE, 0, 0, 0].map(word).map(Argument::Number));
        self.call(Call::FSMOUNT, [context, CLOSE_ON_EXEC, attributes.bits()].map(word).map(Argument::Number));
        let message = self.store_message(b"P", mount);
        self.call(Call::SENDMSG, [Argument::Number(0), Argument::Data(message), Argument::Number(0)]);
    }

    /// Whether a filter allows every call, the report of a failure, and the exit.
    #[must_use]
    pub fn passes(&self, filter: &[u8]) -> bool {
        let last = [Call::WRITE, Call::EXIT_GROUP].map(|call| (call, [0; 6]));
        let calls = self.calls.iter().map(|draft| (draft.call, draft.arguments.map(known)));
        calls.chain(last).all(|(call, arguments)| call.passes(filter, &arguments))
    }

    fn call<const N: usize>(&mut self, call: Call, first: [Argument; N]) {
        let mut arguments = [Argument::Number(0); 6];
        arguments.iter_mut().zip(first).for_each(|(argument, given)| *argument = given);
        let (words, words_bytes) = self.words;
        self.calls.push(Draft { call, arguments, words, words_bytes, is_candidate: false });
    }

    /// Stores bytes, aligned for anything that a call takes.
    fn store(&mut self, bytes: &[u8]) -> Place {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let place = Place(self.data.len());
        self.data.extend_from_slice(bytes);
        place
    }

    fn store_numbers(&mut self, numbers: &[u32]) -> Place {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.store(&bytes)
    }

    /// Stores texts, and a null-terminated list of their addresses.
    fn store_texts(&mut self, texts: &[CString]) -> Place {
        let places: Vec<Place> = texts.iter().map(|text| self.store(text.as_bytes_with_nul())).collect();
        let list = self.store(&vec![0; 8 * (texts.len() + 1)]);
        let addresses = places.into_iter().enumerate();
        self.addresses.extend(addresses.map(|(index, text)| (Place(list.0 + 8 * index), text)));
        list
    }

    /// Stores a message for sendmsg(2) with a descriptor.
    fn store_message(&mut self, bytes: &[u8], descriptor: u32) -> Place {
        const CONTROL_BYTES: usize = 16 + size_of::<u32>();
        let content = self.store(bytes);
        let vector = self.store(&[[0; 8], bytes.len().to_ne_bytes()].concat());
        let control = self.store(&CONTROL_BYTES.to_ne_bytes());
        self.store_numbers(&[libc::SOL_SOCKET, libc::SCM_RIGHTS].map(i32::cast_unsigned));
        self.store_numbers(&[descriptor, 0]);
        // No name; then the vector and its length, the control data and its size, and no flags.
        let words = [0, 0, 0, 1, 0, CONTROL_BYTES.next_multiple_of(8), 0];
        let head = self.store(&words.map(usize::to_ne_bytes).concat());
        let field = |index: usize| Place(head.0 + 8 * index);
        self.addresses.extend([(vector, content), (field(2), vector), (field(4), control)]);
        head
    }
}

/// A number as a register holds it.
pub(crate) fn word(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// An argument as a filter sees it. An address is not known yet, and no filter checks one.
fn known(argument: Argument) -> u64 {
    match argument {
        Argument::Number(number) => number as u64,
        Argument::Data(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// A filter that refuses one call and allows the rest.
    fn refusing(call: Call) -> Vec<u8> {
        let number = u32::try_from(call.number()).unwrap();
        let write = |code: u16, jumps: [u8; 2], value: u32| {
            [&code.to_ne_bytes()[..], &jumps, &value.to_ne_bytes()].concat()
        };
        [
            write(0x20, [0, 0], 0),
            write(0x15, [0, 1], number),
            write(0x06, [0, 0], libc::SECCOMP_RET_ERRNO | 1),
            write(0x06, [0, 0], libc::SECCOMP_RET_ALLOW),
        ]
        .concat()
    }

    #[test]
    fn a_script_passes_where_each_of_its_calls_does() {
        let line = std::fs::File::open("/dev/null").unwrap();
        let mut script = Script::new(line.as_fd());
        script.lead_session();
        script.set_ambient(1 << 10);
        assert!(script.passes(&[]));
        for refused in [Call::SETSID, Call::PRCTL, Call::WRITE, Call::EXIT_GROUP] {
            assert!(!script.passes(&refusing(refused)), "{refused:?}");
        }
        for other in [Call::CAPSET, Call::EXECVE, Call::CLONE] {
            assert!(script.passes(&refusing(other)), "{other:?}");
        }
    }
}
