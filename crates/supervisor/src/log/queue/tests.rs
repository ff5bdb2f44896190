//! The queue with a log writer that starts when the test says so.

use super::*;
use wharf_types::HostPath;

/// A container's log in a new directory. The other end of the writer's connection is a descriptor that nobody reads
/// yet.
struct Rig {
    dir: tempfile::TempDir,
    writer: LogWriter,
    orders: Option<OwnedFd>,
    log: u64,
}

fn id() -> ContainerId {
    ContainerId::from_random([7; 32])
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ours, orders) = socket::pair().unwrap();
        crate::spawn::set_nonblocking(&ours).unwrap();
        let mut writer = LogWriter { connection: Some(ours), ..LogWriter::default() };
        let directory = HostPath::new(dir.path().to_str().unwrap()).unwrap();
        let log = writer.open(LogFile { directory, name: "0.log".into() }, None, id());
        Self { dir, writer, orders: Some(orders), log }
    }

    /// Lets the writer start.
    fn begin(&mut self) {
        let orders = self.orders.take().unwrap();
        std::thread::spawn(move || writer::run(&orders));
    }

    fn write(&mut self, text: &[u8]) {
        let mut buffer = [&[0; HEADER_BYTES], text].concat();
        self.writer.write(self.log, Stream::Stdout, &mut buffer, text.len());
    }

    /// The next result.
    fn told(&mut self) -> Told {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            self.writer.pump();
            self.writer.receive();
            if let Some(told) = self.writer.told.pop() {
                return told;
            }
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !self.writer.is_clear());
            let connection = self.writer.connection().unwrap();
            let ready = poll(&mut [PollFd::new(connection, flags)], PollTimeout::from(10_000_u16)).unwrap();
            assert_eq!(ready, 1, "the writer answers");
        }
    }

    fn texts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("0.log")).unwrap();
        text.lines().map(|line| line.splitn(4, ' ').last().unwrap().to_owned()).collect()
    }
}

#[test]
fn what_is_written_after_a_failed_rotation_is_in_the_file() {
    let mut rig = Rig::new();
    rig.begin();
    assert!(matches!(rig.told(), Told::Opened(_, Ok(()))));
    rig.write(b"before\n");
    let (path, rotated) = (rig.dir.path().join("0.log"), rig.dir.path().join("0.log.1"));
    std::fs::rename(&path, &rotated).unwrap();
    rig.writer.reopen(rig.log, RequestId::of_test(1).until(1));
    assert!(matches!(rig.told(), Told::Reopened(_, Err(_))), "its caller has been told that it failed");
    // As a kubelet does in this case.
    std::fs::rename(&rotated, &path).unwrap();
    rig.write(b"after\n");
    rig.writer.flush(rig.log, &id());
    assert!(matches!(rig.told(), Told::Flushed(_)));
    assert_eq!(rig.texts(), ["before", "after"]);
}

#[test]
fn what_is_told_as_flushed_is_in_the_file() {
    let mut rig = Rig::new();
    rig.begin();
    assert!(matches!(rig.told(), Told::Opened(of, Ok(())) if of == id()));
    for number in 0..5000 {
        rig.write(format!("line {number}\n").as_bytes());
    }
    rig.write(b"end");
    rig.writer.finish(rig.log, Stream::Stdout);
    rig.writer.flush(rig.log, &id());
    assert!(matches!(rig.told(), Told::Flushed(of) if of == id()));
    let texts = rig.texts();
    assert_eq!((texts.len(), &*texts[4999], &*texts[5000]), (5001, "line 4999", "end"));
}

#[test]
fn a_log_that_was_made_needs_no_writer_before_its_first_line() {
    let mut rig = Rig::new();
    rig.begin();
    assert!(matches!(rig.told(), Told::Opened(..)));
    let directory = HostPath::new(rig.dir.path().to_str().unwrap()).unwrap();
    let open = |writer: &mut LogWriter, name: &str| {
        let file = LogFile { directory: directory.clone(), name: name.into() };
        let made = file.make().unwrap();
        writer.open(file, Some(made), id())
    };
    let mut quiet = LogWriter::default();
    let log = open(&mut quiet, "1.log");
    assert!(matches!(quiet.take_told()[..], [Told::Opened(_, Ok(()))]));
    assert!(!quiet.is_awake() && rig.dir.path().join("1.log").exists());
    quiet.write(log, Stream::Stdout, &mut [0; HEADER_BYTES + 1], 1);
    assert!(quiet.is_needed());
    // A running writer is told of the log.
    rig.log = open(&mut rig.writer, "0.log");
    assert!(matches!(rig.told(), Told::Opened(_, Ok(()))));
    rig.write(b"line\n");
    rig.writer.flush(rig.log, &id());
    assert!(matches!(rig.told(), Told::Flushed(_)));
    assert_eq!(rig.texts(), ["line"]);
}

#[test]
fn each_rotation_is_answered_though_another_follows_before_there_is_a_writer() {
    let mut rig = Rig::new();
    rig.begin();
    assert!(matches!(rig.told(), Told::Opened(..)));
    let directory = HostPath::new(rig.dir.path().to_str().unwrap()).unwrap();
    let mut quiet = LogWriter::default();
    let logs = ["1.log", "2.log"].map(|name| {
        let file = LogFile { directory: directory.clone(), name: name.into() };
        let made = file.make().unwrap();
        quiet.open(file, Some(made), id())
    });
    quiet.take_told();
    let requests = [1, 2, 3].map(RequestId::of_test);
    quiet.reopen(logs[1], requests[0]);
    quiet.reopen(logs[1], requests[1]);
    quiet.reopen(logs[0], requests[2]);
    quiet.connection = rig.writer.connection.take();
    quiet.order_openings();
    rig.writer = quiet;
    let mut answered = requests.map(|_| match rig.told() {
        Told::Reopened(request, Ok(())) => request,
        other => panic!("{other:?} is no rotation"),
    });
    answered.sort_by_key(|request| format!("{request:?}"));
    assert_eq!(answered, requests);
    assert!(rig.writer.waiting.is_empty() && !rig.writer.is_needed());
}

#[test]
fn a_stalled_writer_is_waited_for_and_what_is_too_much_is_counted() {
    let mut rig = Rig::new();
    let block = "0123456\n".repeat(8 * 1024);
    while rig.writer.is_clear() {
        rig.write(block.as_bytes());
    }
    let blocks = 2 * QUEUE_LIMIT_BYTES / block.len();
    (0..blocks).for_each(|_| rig.write(block.as_bytes()));
    assert!(rig.writer.queued_bytes <= QUEUE_LIMIT_BYTES);
    rig.writer.flush(rig.log, &id());
    rig.begin();
    while !matches!(rig.told(), Told::Flushed(_)) {}
    let texts = rig.texts();
    let (note, lines) = texts.split_last().unwrap();
    let lost: usize = note.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(lost > 0 && lines.iter().all(|line| line == "0123456"), "{note}");
    assert!(lines.len() + lost > blocks * 8 * 1024, "{} and {lost}", lines.len());
}

#[test]
fn a_log_that_cannot_be_opened_is_told() {
    let mut rig = Rig::new();
    std::fs::create_dir(rig.dir.path().join("0.log")).unwrap();
    rig.begin();
    assert!(matches!(rig.told(), Told::Opened(_, Err(_))));
}

#[test]
fn an_idle_writer_is_let_go_unless_it_holds_something() {
    let mut rig = Rig::new();
    rig.begin();
    rig.told();
    let later = || Instant::now() + REST_AFTER + Duration::from_secs(1);
    for (text, rests) in [(&b"beginning of a"[..], false), (b" line\n", true)] {
        rig.write(text);
        rig.writer.tick(later());
        // A later order is answered later.
        rig.writer.flush(rig.log, &id());
        assert!(matches!(rig.told(), Told::Flushed(_)));
        assert!(rig.writer.take_over().is_none(), "more was ordered since");
        rig.writer.tick(later());
        while !rig.writer.waiting.is_empty() {
            rig.writer.receive();
            std::thread::yield_now();
        }
        assert_eq!(rig.writer.take_over().is_some(), rests);
    }
    assert!(!rig.writer.is_awake());
    rig.write(b"next\n");
    assert!(rig.writer.is_needed(), "another one is made for what comes then");
}

#[test]
fn a_writer_that_dies_keeps_nobody_waiting() {
    let mut rig = Rig::new();
    rig.write(b"line\n");
    rig.writer.flush(rig.log, &id());
    drop(rig.orders.take());
    rig.writer.receive();
    assert!(rig.writer.take_over().is_some());
    assert!(matches!(rig.writer.told[..], [Told::Flushed(_)]));
    assert!(rig.writer.is_needed(), "the next one is to open the log");
}
