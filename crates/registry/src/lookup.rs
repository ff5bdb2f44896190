//! Name resolution by the system's resolver, which blocks a thread until the name's own servers answer.
//!
//! Any image can name a host whose servers never answer, and all of wharfd's blocking work shares the threads, so only
//! a few of them may resolve names. A lookup that nobody waits for any longer keeps its permit until it ends.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How many lookups run at a time, in all pulls.
static PLACES: Semaphore = Semaphore::const_new(16);

/// All addresses of a host, with port 0.
pub(crate) async fn addresses(host: &str) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    within(&PLACES, move || Ok((host.as_str(), 0).to_socket_addrs()?.collect())).await
}

async fn within<T: Send + 'static>(
    places: &'static Semaphore,
    lookup: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let place = places.acquire().await.map_err(io::Error::other)?;
    let looked_up = spawn_blocking(move || {
        let _until_it_is_over = place;
        lookup()
    });
    looked_up.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_lookup_has_its_place_until_it_is_over() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (answer, answered) = mpsc::channel();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let given_up = tokio::spawn(within(&ONE, move || {
            begun.send(()).ok();
            answered.recv().map_err(io::Error::other)
        }));
        has_begun.await.unwrap();
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        assert_eq!(ONE.available_permits(), 0);
        answer.send(()).unwrap();
        assert_eq!(within(&ONE, || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn addresses_are_the_systems() {
        assert!(addresses("localhost").await.unwrap().iter().all(|address| address.ip().is_loopback()));
        assert!(addresses("no such host").await.is_err());
    }
}
