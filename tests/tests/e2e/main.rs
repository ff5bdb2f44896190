//! wharf from end to end: a wharfd and its supervisors as built by cargo, called through the CRI socket. Each test has
//! a daemon in a rig of its own (`place`), and is followed by a check of what is left (`footprint`).
#![cfg(test)]
#![allow(missing_docs, reason = "a test crate has no readers")]

use wharf_test_registry::{authority, image, server};

mod allocations;
mod answers;
mod apparmor;
mod archives;
mod attach;
mod builtin;
mod cdi;
mod cgroup_views;
mod client;
mod cni;
mod counts;
mod crash;
mod daemon;
mod defaults;
mod disk;
mod exec;
mod explained;
mod filters;
mod footprint;
mod forward;
mod full;
mod handlers;
mod hooks;
mod host_mounts;
mod hostile;
mod image_volumes;
mod interactive;
mod kept;
mod layouts;
mod lifecycle;
mod limits;
mod line;
mod logs;
mod metrics;
mod mounts;
mod nri;
mod older;
mod onlooker;
mod order;
mod paused;
mod people;
mod place;
mod profiles;
mod reach;
mod refused;
mod registries;
mod scrape;
mod service;
mod sessions;
mod settings;
mod stalled;
mod steps;
mod storm;
mod streams;
mod supervised;
mod together;
mod traces;
mod userns;
mod wedge;
mod workers;
mod world;
