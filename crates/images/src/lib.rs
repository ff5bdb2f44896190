//! Images: manifests, unpacked layers, and the records that join them.

pub mod manifest;
