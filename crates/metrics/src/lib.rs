//! What Prometheus is told about the daemon, and the server that tells it.
//!
//! The figures of calls ([`Calls`]) are counted here, and those of the process are read here. All others belong to
//! whoever does the work: a [`Source`] writes them on the page whenever somebody asks for it. So a figure costs nothing
//! until then, and what is asked often must be at hand: a source waits for no disk, no network and no supervisor.
//!
//! The server has a thread and a runtime of its own: figures are wanted most when the daemon's workers, or its pool of
//! threads, have too much to do, and whoever connects here takes no time of theirs.

mod calls;
mod page;
mod process;
mod server;

use std::net::SocketAddr;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use calls::{Call, Calls};
pub use page::{Page, Source};
pub use server::Serving;

use page::Written;
use process::Process;

/// All that a page shows.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Calls,
}

impl Metrics {
    /// The figures of calls and of this process, which is of this release.
    #[must_use]
    pub fn new(version: &'static str) -> Self {
        let mut registry = Registry::default();
        let build = Info::new([("version", version)]);
        registry.register("wharf_build", "The version of wharfd", build);
        let calls = Calls::default();
        calls.register(&mut registry);
        let mut metrics = Self { registry, calls };
        metrics.add(Process::new());
        metrics
    }

    /// Where calls are counted.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Adds what a source writes.
    pub fn add(&mut self, source: impl Source) {
        self.registry.register_collector(Box::new(Written(source)));
    }

    /// The page as it is now, in the format of OpenMetrics.
    ///
    /// # Errors
    /// A source could not write its figures.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Serves the page at `/metrics` of an address, until what this returns is dropped. An address that is taken is
    /// tried again until it is free.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn serve(self, address: SocketAddr) -> std::io::Result<Serving> {
        server::start(address, self.registry)
    }
}
