//! Random bytes from the kernel.
//!
//! Ids and the tokens of streaming URLs are made of them, so nobody may be able to guess them. There is no generator in
//! between, whose state a clone of the process would copy.

use crate::error::{Named, Result};

/// Returns 32 random bytes.
///
/// # Errors
/// The kernel's error if it has no entropy source (at boot it waits for one).
pub fn bytes() -> Result<[u8; 32]> {
    let mut buffer = [0; 32];
    // Requests of up to 256 bytes are never short: random(4).
    rustix::rand::getrandom(&mut buffer, rustix::rand::GetRandomFlags::empty())
        .named("getrandom", || "32 bytes".into())?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_draws_differ() {
        assert_ne!(super::bytes().unwrap(), super::bytes().unwrap());
    }
}
