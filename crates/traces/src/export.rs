//! The thread that exports what is in the queue, in batches. It has a runtime of its own: a collector takes no time of
//! those who serve calls, however it behaves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::utsname::uname;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::collector::{Attempt, Collector};
use crate::endpoint::Endpoint;
use crate::otlp::Span;
use crate::queue::{BATCH, Queue};

/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// How often a batch is tried, and how long after the first attempt comes the next; each later pause is twice as long.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How long the end waits for what is left to be exported.
const END_TIME: Duration = Duration::from_secs(2);

/// How many threads may look up the collector's name.
const LOOKUPS: usize = 2;

/// Spans are exported as long as this exists.
#[derive(Debug)]
pub struct Exporting {
    end: oneshot::Sender<Infallible>,
    ended: oneshot::Receiver<Infallible>,
}

impl Exporting {
    /// Exports what is left, in a limited time and with one attempt.
    pub async fn end(self) {
        drop(self.end);
        // It ends, or there was no time for all of it: then nobody waits for it.
        timeout(END_TIME, self.ended).await.map(drop).unwrap_or_default();
    }
}

/// Starts the thread.
pub(crate) fn start(
    queue: Arc<Queue>,
    endpoint: Endpoint,
    version: &'static str,
) -> std::io::Result<Exporting> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(LOOKUPS).build()?;
    let ((end, ending), (over, ended)) = (oneshot::channel(), oneshot::channel());
    let work = move || {
        let _over: oneshot::Sender<Infallible> = over;
        let host = uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default();
        runtime.block_on(export(&queue, Collector::new(endpoint, version, &host), ending));
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name("traces".to_owned()).spawn(work)?;
    Ok(Exporting { end, ended })
}

/// Exports until the end, and then what is left, unless the collector does not accept it at once.
async fn export(queue: &Queue, mut collector: Collector, mut ending: oneshot::Receiver<Infallible>) {
    let mut batch = Vec::new();
    tokio::select! {
        _ = &mut ending => {}
        never = deliver_all(queue, &mut collector, &mut batch) => match never {},
    }
    loop {
        if batch.is_empty() {
            batch = queue.take();
        }
        if batch.is_empty() || count(queue, &batch, &collector.attempt(&batch).await) == Next::TryAgain {
            return;
        }
        batch.clear();
    }
}

/// Delivers batch after batch. The one that is under way is in `batch`.
async fn deliver_all(queue: &Queue, collector: &mut Collector, batch: &mut Vec<Span>) -> Infallible {
    loop {
        queue.has(1).await;
        // Others may come at the same time.
        timeout(LINGER, queue.has(BATCH)).await.unwrap_or_default();
        *batch = queue.take();
        deliver(queue, collector, batch).await;
        batch.clear();
    }
}

/// Tries to deliver a batch until the collector has decided, but not forever.
async fn deliver(queue: &Queue, collector: &mut Collector, batch: &[Span]) {
    for pause in (0..ATTEMPTS - 1).map(|number| FIRST_PAUSE * 2_u32.pow(number)) {
        if count(queue, batch, &collector.attempt(batch).await) == Next::GoOn {
            return;
        }
        sleep(pause).await;
    }
    if count(queue, batch, &collector.attempt(batch).await) == Next::TryAgain {
        queue.count_failed(batch.len() as u64);
    }
}

/// What follows an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    TryAgain,
}

/// Counts what has become of a batch, unless that is not decided.
fn count(queue: &Queue, batch: &[Span], attempt: &Attempt) -> Next {
    let count = batch.len() as u64;
    let rejected = match attempt {
        Attempt::Failed => return Next::TryAgain,
        Attempt::Refused => count,
        Attempt::Accepted { rejected } => *rejected,
    };
    queue.count_failed(rejected);
    queue.count_exported(count - rejected);
    Next::GoOn
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic::{Code, Request, Response, Status};
    use wharf_types::lock::lock;

    use crate::otlp::trace_service_server::{TraceService, TraceServiceServer};
    use crate::otlp::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse};
    use crate::queue::Figures;

    /// What a collector answers; after these it accepts everything.
    type Answers = VecDeque<Result<ExportTraceServiceResponse, Status>>;

    #[derive(Debug, Clone, Default)]
    struct Told(Arc<Mutex<(Answers, Vec<String>)>>);

    #[tonic::async_trait]
    impl TraceService for Told {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let mut told = lock(&self.0);
            let answer = told.0.pop_front().unwrap_or_else(|| Ok(ExportTraceServiceResponse::default()))?;
            let spans = request.into_inner().resource_spans.into_iter().flat_map(|all| all.scope_spans);
            told.1.extend(spans.flat_map(|scope| scope.spans).map(|span| span.name));
            Ok(Response::new(answer))
        }
    }

    impl Told {
        fn names(&self) -> Vec<String> {
            lock(&self.0).1.clone()
        }
    }

    /// A collector that answers so, and the address of it.
    async fn collector(
        answers: impl IntoIterator<Item = Result<ExportTraceServiceResponse, Status>>,
    ) -> (Told, Endpoint) {
        let told = Told::default();
        lock(&told.0).0 = answers.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(TraceServiceServer::new(told.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (told, Endpoint::parse(&format!("http://{address}")).unwrap())
    }

    fn spans(count: usize) -> Arc<Queue> {
        let queue = Arc::<Queue>::default();
        for number in 0..count {
            queue.add(Span { name: number.to_string(), ..Span::default() });
        }
        queue
    }

    async fn end_with(queue: &Arc<Queue>, endpoint: Endpoint) {
        start(Arc::clone(queue), endpoint, "0").unwrap().end().await;
    }

    #[tokio::test]
    async fn all_that_is_left_at_the_end_is_exported() {
        let (told, endpoint) = collector([]).await;
        let queue = spans(BATCH + 1);
        end_with(&queue, endpoint).await;
        assert_eq!(told.names().len(), BATCH + 1);
        assert_eq!(queue.figures(), Figures { exported: BATCH as u64 + 1, ..Figures::default() });
    }

    #[tokio::test]
    async fn what_a_collector_rejects_is_counted_and_not_sent_again() {
        let partial = |rejected_spans| {
            let error_message = "too many".to_owned();
            let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
            Ok(ExportTraceServiceResponse { partial_success })
        };
        for (answer, failed) in [
            (partial(2), 2),
            (partial(i64::MAX), 3),
            (partial(-7), 0),
            (Err(Status::unauthenticated("x")), 3),
            (Err(Status::unimplemented("y")), 3),
        ] {
            let (_told, endpoint) = collector([answer]).await;
            let queue = spans(3);
            end_with(&queue, endpoint).await;
            assert_eq!(queue.figures(), Figures { exported: 3 - failed, failed, ..Figures::default() });
        }
    }

    #[tokio::test]
    async fn a_collector_that_asks_for_patience_is_tried_again() {
        let answers =
            [Code::Unavailable, Code::ResourceExhausted].map(|code| Err(Status::new(code, "later")));
        let (told, endpoint) = collector(answers).await;
        let queue = spans(3);
        let exporting = start(Arc::clone(&queue), endpoint, "0").unwrap();
        while queue.figures().exported == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(told.names(), ["0", "1", "2"]);
        exporting.end().await;
        assert_eq!(queue.figures(), Figures { exported: 3, ..Figures::default() });
    }

    #[tokio::test]
    async fn no_collector_keeps_the_end_waiting() {
        // Nobody listens; somebody listens, and says nothing, or what is no HTTP/2.
        let (closed, silent) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [&closed, &silent, &garbage].map(|listener| listener.local_addr().unwrap());
        drop(closed);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = garbage.accept().await {
                tokio::io::AsyncWriteExt::write_all(&mut client, &[0xff; 1 << 16]).await.ok();
            }
        });
        for address in addresses {
            let queue = spans(3);
            end_with(&queue, Endpoint::parse(&format!("http://{address}")).unwrap()).await;
            assert_eq!(queue.figures().exported, 0);
        }
        drop(silent);
    }
}
