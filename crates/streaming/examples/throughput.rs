//! How fast a process's output reaches a client over loopback: `cargo run --release --example throughput`.
//!
//! Server, process and client have a thread each. The client takes the frames off the socket and looks at none. It
//! prints the measured rate, and the rate per second that the server's thread was running on a core, which other load
//! does not affect.
#![expect(clippy::disallowed_methods, reason = "procfs has no disk to wait for")]

use std::error::Error;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use wharf_streaming::{AttachGrant, Backend, BackendError, Config, ExecGrant, Server, Session};
use wharf_types::{ContainerId, Exit, PodId, StreamOptions, TerminalSize};

/// How much the process writes, in bytes.
const TOTAL: usize = 8 << 30;

struct Flood;

impl Backend for Flood {
    async fn exec(&self, _grant: ExecGrant, _size: Option<TerminalSize>) -> Result<Session, BackendError> {
        let (stdout, mut writer) = io::pipe()?;
        let (done, exit) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            let block = vec![b'x'; 64 * 1024];
            let written = (0..TOTAL / block.len()).try_for_each(|_| writer.write_all(&block));
            done.send(if written.is_ok() { Exit::Code(0) } else { Exit::Lost })
        });
        let exit = Box::pin(async { Ok(exit.await.unwrap_or(Exit::Lost)) });
        Ok(Session { stdin: None, stdout: Some(stdout.into()), stderr: None, resize: None, exit })
    }

    async fn attach(&self, _grant: AttachGrant) -> Result<Session, BackendError> {
        Err("only exec is measured".into())
    }

    async fn connect(&self, _pod: &PodId, _port: u16) -> Result<OwnedFd, BackendError> {
        Err("only exec is measured".into())
    }

    async fn ended(&self, _pod: &PodId) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::bind(Config::default(), Flood).await?;
        let wanted = StreamOptions { stdin: false, stdout: true, stderr: false, terminal: false };
        let container = ContainerId::from_random([0; 32]);
        let url = server.urls().exec(ExecGrant { container, command: Vec::new(), wanted })?;
        let (done, stop) = tokio::sync::oneshot::channel();
        let client = thread::spawn(move || {
            let result = measure(&url).map_err(|error| error.to_string());
            done.send(()).ok();
            result
        });
        server.serve(async { drop(stop.await) }).await;
        let rate = client.join().map_err(|_panic| "the client panicked")??;
        // The runtime has only this thread: proc_pid_schedstat(5), nanoseconds on a core.
        let statistics = fs::read_to_string("/proc/thread-self/schedstat")?;
        let busy_ms =
            u32::try_from(statistics.split(' ').next().ok_or("no statistics")?.parse::<u64>()? / 1_000_000)?;
        let per_core = f64::from(u32::try_from(TOTAL / 1_000_000)?) / f64::from(busy_ms) * 1000.0;
        writeln!(io::stdout(), "{rate:.0} MB/s, {per_core:.0} MB per second of one core")?;
        Ok(())
    })
}

/// Runs an exec over SPDY and returns the rate in MB/s.
fn measure(url: &str) -> Result<f64, Box<dyn Error>> {
    let (address, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or("a bad URL")?;
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /{path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
        X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    )?;
    stream.write_all(&syn_stream(1, &[0x78, 1], "error"))?;
    stream.write_all(&syn_stream(3, &[], "stdout"))?;
    let mut buffer = vec![0; 1 << 20];
    let (start, mut total) = (Instant::now(), 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    let megabytes = u32::try_from(total / 1_000_000)?;
    Ok(f64::from(megabytes) / start.elapsed().as_secs_f64())
}

/// A frame that opens a stream. Its header is stored uncompressed in the zlib stream, which the first frame begins.
fn syn_stream(id: u8, zlib_head: &[u8], kind: &str) -> Vec<u8> {
    let length = |text: &str| [0, 0, 0, text.len().to_le_bytes()[0]];
    let name = "streamtype";
    let headers =
        [&[0, 0, 0, 1], &length(name)[..], name.as_bytes(), &length(kind)[..], kind.as_bytes()].concat();
    let size = headers.len().to_le_bytes()[0];
    let stored = [zlib_head, &[0, size, 0, !size, 0xff], &headers].concat();
    let payload = [&[0, 0, 0, id, 0, 0, 0, 0, 0, 0], stored.as_slice()].concat();
    [&[0x80, 3, 0, 1, 0, 0, 0, payload.len().to_le_bytes()[0]], payload.as_slice()].concat()
}
