//! Images on a real file system: unpacking, hostile layers, records, and the mounted result.
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
mod archives;
#[cfg(test)]
mod blobs;
#[cfg(test)]
mod configs;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod mounted;
#[cfg(test)]
mod names;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
