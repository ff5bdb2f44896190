//! What the loop waits for: descriptors, each with its meaning.
//!
//! A copy of a descriptor in a child would keep it in an epoll set after it is closed here, so each is removed before
//! it is closed. What is ready at once comes in a fixed order: reports before exits.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use wharf_types::ContainerId;

use crate::diagnostics;
use crate::log::Stream;

/// The meaning of a descriptor that is ready. What is ready at once is handled in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Reports come before exits: a process that has reported and died has both ready.
    Report(Owner),
    Output(ContainerId, Out),
    /// A client has closed its end.
    Client(ContainerId, u64),
    Exit(Owner),
    /// The first process of the pod's PID namespace has ended.
    Reaper,
    /// The keeper of the pod's sandbox has ended.
    Sandbox,
    Signals,
    LogWriter,
    Link,
    Listener,
}

/// What a child of the supervisor belongs to: the container whose first process it is, or an exec.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Container(ContainerId),
    Exec(u64),
}

impl Owner {
    pub(crate) fn report(&self) -> Source {
        Source::Report(self.clone())
    }

    pub(crate) fn exit(&self) -> Source {
        Source::Exit(self.clone())
    }
}

/// One of a container's outputs, ordered so that it can be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Out {
    Stdout,
    Stderr,
}

impl From<Out> for Stream {
    fn from(out: Out) -> Self {
        match out {
            Out::Stdout => Self::Stdout,
            Out::Stderr => Self::Stderr,
        }
    }
}

/// An epoll set whose members have names.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: Epoll,
    names: BTreeMap<u64, (Source, EpollFlags)>,
    next: u64,
}

impl Watch {
    pub(crate) fn new() -> wharf_sys::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| wharf_sys::Error::new("epoll_create1", "EPOLL_CLOEXEC", errno))?;
        Ok(Self { epoll, names: BTreeMap::new(), next: 0 })
    }

    /// Watches a descriptor until it is closed or removed.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, source: Source) -> wharf_sys::Result<()> {
        self.add_for(fd, source, EpollFlags::EPOLLIN)
    }

    /// Changes the events for which a descriptor is watched.
    pub(crate) fn change(
        &mut self,
        fd: BorrowedFd<'_>,
        source: &Source,
        what: EpollFlags,
    ) -> wharf_sys::Result<()> {
        let watched = self.names.iter_mut().find(|(_, (name, _))| name == source);
        let Some((token, (_, before))) = watched.filter(|(_, (_, before))| *before != what) else {
            return Ok(());
        };
        self.epoll
            .modify(fd, &mut EpollEvent::new(what, *token))
            .map_err(|errno| wharf_sys::Error::new("epoll_ctl", format!("{source:?}"), errno))?;
        *before = what;
        Ok(())
    }

    /// Watches only for the other end's closing, which epoll always reports.
    pub(crate) fn add_closed(&mut self, fd: BorrowedFd<'_>, source: Source) -> wharf_sys::Result<()> {
        self.add_for(fd, source, EpollFlags::empty())
    }

    fn add_for(&mut self, fd: BorrowedFd<'_>, source: Source, what: EpollFlags) -> wharf_sys::Result<()> {
        let token = self.next;
        self.next += 1;
        self.epoll
            .add(fd, EpollEvent::new(what, token))
            .map_err(|errno| wharf_sys::Error::new("epoll_ctl", format!("{source:?}"), errno))?;
        self.names.insert(token, (source, what));
        Ok(())
    }

    /// Stops watching a descriptor. It must still be open, because a copy in a child would keep it in the set. One that
    /// is not watched is fine.
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>, source: &Source) {
        match self.epoll.delete(fd) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => diagnostics::warn(format_args!("cannot stop watching {source:?}: {errno}")),
        }
        self.names.retain(|_, (name, _)| name != source);
    }

    /// Watches another descriptor in place of the one that had this meaning.
    pub(crate) fn replace(
        &mut self,
        old: BorrowedFd<'_>,
        new: BorrowedFd<'_>,
        source: Source,
    ) -> wharf_sys::Result<()> {
        self.remove(old, &source);
        self.add(new, source)
    }

    /// Waits, with or without a timeout, and returns what is ready, reports first.
    pub(crate) fn wait(&mut self, timeout: EpollTimeout) -> Vec<Source> {
        let mut events = [EpollEvent::empty(); 32];
        let count = self.epoll.wait(&mut events, timeout).unwrap_or_else(|errno| {
            // After an interruption it is called again.
            if errno != Errno::EINTR {
                diagnostics::warn(format_args!("epoll_wait: {errno}"));
            }
            0
        });
        let name = |event: &EpollEvent| self.names.get(&event.data()).map(|(name, _)| name.clone());
        let mut ready: Vec<Source> = events[..count].iter().filter_map(name).collect();
        ready.sort_unstable();
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd as _, OwnedFd};

    /// Both ends of a pipe that has something to read.
    fn ready() -> (OwnedFd, OwnedFd) {
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"x").unwrap();
        (read, write)
    }

    fn id() -> ContainerId {
        ContainerId::from_random([1; 32])
    }

    #[test]
    fn reports_come_before_exits_and_output_between_them() {
        let container = Owner::Container(id());
        let order = [
            container.report(),
            Owner::Exec(1).report(),
            Source::Output(id(), Out::Stdout),
            Source::Client(id(), 1),
            container.exit(),
            Owner::Exec(1).exit(),
            Source::Link,
        ];
        let mut watch = Watch::new().unwrap();
        let pipes: Vec<_> = order.iter().map(|_| ready()).collect();
        for ((pipe, _write), source) in pipes.iter().zip(&order).rev() {
            watch.add(pipe.as_fd(), source.clone()).unwrap();
        }
        assert_eq!(watch.wait(EpollTimeout::ZERO), order);
    }

    #[test]
    fn a_descriptor_is_seen_for_what_is_wanted_until_it_is_removed() {
        let (read, write) = ready();
        let mut watch = Watch::new().unwrap();
        watch.add(read.as_fd(), Source::Link).unwrap();
        watch.change(read.as_fd(), &Source::Link, EpollFlags::empty()).unwrap();
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
        watch.change(read.as_fd(), &Source::Link, EpollFlags::EPOLLIN).unwrap();
        assert_eq!(watch.wait(EpollTimeout::ZERO), [Source::Link]);
        let (other, _write) = ready();
        watch.replace(read.as_fd(), other.as_fd(), Source::Link).unwrap();
        drop(write);
        assert_eq!(watch.wait(EpollTimeout::ZERO), [Source::Link], "once: the first one is not watched");
        watch.remove(other.as_fd(), &Source::Link);
        watch.remove(other.as_fd(), &Source::Link);
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
    }

    #[test]
    fn of_a_client_only_its_leaving_is_seen() {
        let (read, write) = ready();
        let mut watch = Watch::new().unwrap();
        watch.add_closed(write.as_fd(), Source::Client(id(), 1)).unwrap();
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
        drop(read);
        assert_eq!(watch.wait(EpollTimeout::ZERO), [Source::Client(id(), 1)]);
    }
}
