//! stub
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct StoreError;
impl StoreError { pub fn kind(&self) -> wharf_types::ErrorKind { wharf_types::ErrorKind::Internal } }
