//! What plugins need of whoever has the pods and containers.
//!
//! The crate of pods depends on this one and not the other way round, so what plugins want done reaches the pods
//! through this trait.

use std::error::Error;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use wharf_types::ContainerId;

use crate::Update;
use crate::api::{Container, PodSandbox};

/// Something that is waited for. It is a box, because what is done for a plugin may be something of which plugins are
/// told.
pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Why something was not done for a plugin.
pub type Failed = Box<dyn Error + Send + Sync>;
/// The pods and the containers that exist.
pub type Existing = (Vec<PodSandbox>, Vec<Container>);

/// A pod, and a container if it is about one, as plugins are shown them.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The pod.
    pub pod: PodSandbox,
    /// The container in it.
    pub container: Option<Container>,
}

/// Whoever has the pods and containers.
pub trait Node: Debug + Send + Sync + 'static {
    /// What is listed now.
    fn existing(self: Arc<Self>) -> Answer<Existing>;

    /// Updates a container's resources.
    fn update(self: Arc<Self>, container: String, update: Box<Update>) -> Answer<Result<(), Failed>>;

    /// Stops a container.
    fn evict(self: Arc<Self>, container: String) -> Answer<Result<(), Failed>>;

    /// Tells plugins that a container has stopped.
    fn stopped(self: Arc<Self>, container: ContainerId) -> Answer<()>;
}
