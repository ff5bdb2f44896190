//! wharf from end to end: a wharfd and its supervisors as built by cargo, called through the CRI socket. Each test has
//! a daemon in a rig of its own (`place`), and is followed by a check of what is left (`footprint`).
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
use wharf_test_registry::{authority, image, server};

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod answers;
#[cfg(test)]
mod apparmor;
#[cfg(test)]
mod archives;
#[cfg(test)]
mod attach;
#[cfg(test)]
mod builtin;
#[cfg(test)]
mod cdi;
#[cfg(test)]
mod cgroup_views;
#[cfg(test)]
mod client;
#[cfg(test)]
mod cni;
#[cfg(test)]
mod counts;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod defaults;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod filters;
#[cfg(test)]
mod footprint;
#[cfg(test)]
mod forward;
#[cfg(test)]
mod full;
#[cfg(test)]
mod handlers;
#[cfg(test)]
mod hooks;
#[cfg(test)]
mod host_mounts;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod image_volumes;
#[cfg(test)]
mod interactive;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod layouts;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod line;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod mounts;
#[cfg(test)]
mod nri;
#[cfg(test)]
mod older;
#[cfg(test)]
mod onlooker;
#[cfg(test)]
mod order;
#[cfg(test)]
mod paused;
#[cfg(test)]
mod people;
#[cfg(test)]
mod place;
#[cfg(test)]
mod profiles;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod registries;
#[cfg(test)]
mod scrape;
#[cfg(test)]
mod service;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod stalled;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod supervised;
#[cfg(test)]
mod together;
#[cfg(test)]
mod userns;
#[cfg(test)]
mod wedge;
#[cfg(test)]
mod workers;
#[cfg(test)]
mod world;
