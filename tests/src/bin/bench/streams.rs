//! Streams that a client holds: how long an exec takes, and how fast its output and a forwarded port are. Uses the
//! older WebSocket protocols, which all runtimes speak.

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use wharf_cri_api::v1::{ExecRequest, PortForwardRequest};

use crate::Options;
use crate::client::{Pod, Runtime};
use crate::results::{Results, Stopwatch, Unit};

/// The channels of an exec.
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
/// The channel with the bytes of the first forwarded port.
const DATA: u8 = 0;

/// The port on which the pod serves a file of zeros over HTTP.
const PORT: i32 = 8080;

/// Measures short execs, execs with much output, and large responses from a forwarded port, in one pod of each runtime.
pub(crate) async fn measure(
    options: &Options,
    runtimes: &[Runtime],
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut pods = Vec::new();
    for runtime in runtimes {
        pods.push(runtime.up().await?);
    }
    for _ in 0..options.execs {
        for (runtime, pod) in runtimes.iter().zip(&pods) {
            let mut watch = Stopwatch::start();
            exec(runtime, pod, "true").await?;
            results.time("interactive exec of true", &runtime.name, watch.lap());
        }
    }
    let bytes = options.output << 20;
    for (runtime, pod) in runtimes.iter().zip(&pods) {
        let serve = format!("mkdir /srv && truncate -s {bytes} /srv/zeros && httpd -p {PORT} -h /srv");
        exec(runtime, pod, &serve).await?;
    }
    for _ in 0..options.floods {
        for (runtime, pod) in runtimes.iter().zip(&pods) {
            let mut rate = |what, watch: &mut Stopwatch| {
                let rate = bytes as f64 / 1e6 / watch.lap().as_secs_f64();
                results.add(what, Unit::MBs, &runtime.name, rate);
            };
            let mut watch = Stopwatch::start();
            let command = format!("dd if=/dev/zero bs=64k count={}", bytes >> 16);
            let read = exec(runtime, pod, &command).await?;
            anyhow::ensure!(read == bytes, "{read} of {bytes} bytes came");
            rate("interactive exec, output", &mut watch);
            fetch(runtime, pod, bytes).await?;
            rate("port-forward", &mut watch);
        }
    }
    for (runtime, pod) in runtimes.iter().zip(&pods) {
        runtime.down(pod).await?;
    }
    Ok(())
}

/// Runs a shell command to its end and counts its output. A command that fails is an error.
async fn exec(runtime: &Runtime, pod: &Pod, script: &str) -> anyhow::Result<u64> {
    let request = ExecRequest {
        container_id: pod.container.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        ..ExecRequest::default()
    };
    let url = runtime.calls.runtime.clone().exec(request).await.context("Exec")?.into_inner().url;
    let mut socket = connect(&url).await?;
    let (mut count, mut status) = (0, Vec::new());
    while let Some(message) = socket.next().await {
        match message? {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&STDOUT, output)) => count += output.len() as u64,
                Some((&ERROR, text)) => status.extend_from_slice(text),
                _ => {}
            },
            Message::Close(_) => break,
            _ => {}
        }
    }
    let status: serde_json::Value = serde_json::from_slice(&status).context("read the status")?;
    anyhow::ensure!(status["status"] == "Success", "{script}: {status}");
    Ok(count)
}

/// Fetches the pod's file through a forwarded port.
async fn fetch(runtime: &Runtime, pod: &Pod, bytes: u64) -> anyhow::Result<()> {
    let request = PortForwardRequest { pod_sandbox_id: pod.sandbox.clone(), port: vec![PORT] };
    let url =
        runtime.calls.runtime.clone().port_forward(request).await.context("PortForward")?.into_inner().url;
    let mut socket = connect(&url).await?;
    let request = [&[DATA], b"GET /zeros HTTP/1.0\r\n\r\n".as_slice()].concat();
    socket.send(Message::Binary(request.into())).await?;
    let mut count = 0;
    // The port number that comes first and the head of the response are not worth telling apart.
    while count < bytes {
        let message = socket.next().await.context("the forwarded connection ended early")?;
        if let Message::Binary(bytes) = message? {
            anyhow::ensure!(bytes.first() == Some(&DATA) || bytes.len() == 3, "port-forward: {bytes:?}");
            count += bytes.len() as u64 - 1;
        }
    }
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
    let tcp = TcpStream::connect(rest.split('/').next().unwrap_or(rest)).await?;
    let (socket, _response) = tokio_tungstenite::client_async(request, tcp).await?;
    Ok(socket)
}
