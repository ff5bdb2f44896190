//! The log writer's two sides, with a process that starts when the test says so.

use super::*;
use wharf_isolation::LogLimits;
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
        let mut writer = LogWriter::default();
        writer.queue.connect(ours);
        let directory = HostPath::new(dir.path().to_str().unwrap()).unwrap();
        let log = writer.open(
            LogFile { directory, name: "0.log".into(), limits: LogLimits::default() },
            None,
            id(),
        );
        Self { dir, writer, orders: Some(orders), log }
    }

    /// Lets the writer start.
    fn begin(&mut self) {
        let orders = self.orders.take().unwrap();
        std::thread::spawn(move || process::run(&orders));
    }

    /// A rig whose writer has opened its log.
    fn running() -> Self {
        let mut rig = Self::new();
        rig.begin();
        assert!(matches!(rig.event(), LogEvent::Opened(of, Ok(())) if of == id()));
        rig
    }

    /// Opens a log that the daemon has made in the same directory.
    fn open_made(&self, writer: &mut LogWriter, name: &str) -> u64 {
        let directory = HostPath::new(self.dir.path().to_str().unwrap()).unwrap();
        let file = LogFile { directory, name: name.into(), limits: LogLimits::default() };
        let made = file.make().unwrap();
        writer.open(file, Some(made), id())
    }

    /// Waits until everything has been written.
    fn flush(&mut self) {
        self.writer.flush(self.log, &id());
        assert!(matches!(self.event(), LogEvent::Flushed(of) if of == id()));
    }

    fn write(&mut self, text: &[u8]) {
        let mut buffer = [&[0; HEADER_BYTES], text].concat();
        self.writer.write(self.log, Stream::Stdout, &mut buffer, text.len());
    }

    /// The next event.
    fn event(&mut self) -> LogEvent {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            self.writer.pump();
            self.writer.receive();
            if let Some(event) = self.writer.events.pop() {
                return event;
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
    let mut rig = Rig::running();
    rig.write(b"before\n");
    let (path, rotated) = (rig.dir.path().join("0.log"), rig.dir.path().join("0.log.1"));
    std::fs::rename(&path, &rotated).unwrap();
    rig.writer.reopen(rig.log, RequestId::of_test(1).until(1));
    assert!(matches!(rig.event(), LogEvent::Reopened(_, Err(_))), "its caller has seen it fail");
    // As a kubelet does in this case.
    std::fs::rename(&rotated, &path).unwrap();
    rig.write(b"after\n");
    rig.flush();
    assert_eq!(rig.texts(), ["before", "after"]);
}

/// The call that has the log reopened succeeds, and the kubelet does not learn of it. The container then has nothing to
/// say before the next rotation, whatever others of its pod say.
#[test]
fn what_was_written_before_the_old_file_was_put_back_is_added_in_time() {
    for others_write in [false, true] {
        let mut rig = Rig::running();
        let mut writer = std::mem::take(&mut rig.writer);
        let other = rig.open_made(&mut writer, "1.log");
        rig.writer = writer;
        assert!(matches!(rig.event(), LogEvent::Opened(_, Ok(()))));
        let (path, rotated) = (rig.dir.path().join("0.log"), rig.dir.path().join("0.log.1"));
        rig.write(b"one\n");
        rig.flush();
        std::fs::rename(&path, &rotated).unwrap();
        rig.writer.reopen(rig.log, RequestId::of_test(1));
        assert!(matches!(rig.event(), LogEvent::Reopened(_, Ok(()))));
        rig.write(b"two\n");
        rig.flush();
        std::fs::rename(&rotated, &path).unwrap();
        let begin = Instant::now();
        while rig.texts() != ["one", "two"] {
            assert!(begin.elapsed() < Duration::from_secs(20), "others write: {others_write}");
            if others_write {
                let log = std::mem::replace(&mut rig.log, other);
                rig.write(b"line\n");
                rig.flush();
                rig.log = log;
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn flushed_output_is_in_the_file() {
    let mut rig = Rig::running();
    for number in 0..5000 {
        rig.write(format!("line {number}\n").as_bytes());
    }
    rig.write(b"end");
    rig.writer.finish(rig.log, Stream::Stdout);
    rig.flush();
    let texts = rig.texts();
    assert_eq!((texts.len(), &*texts[4999], &*texts[5000]), (5001, "line 4999", "end"));
}

#[test]
fn a_log_that_the_daemon_made_needs_no_writer_before_its_first_line() {
    let rig = Rig::running();
    let mut quiet = LogWriter::default();
    let log = rig.open_made(&mut quiet, "1.log");
    assert!(matches!(quiet.take_events()[..], [LogEvent::Opened(_, Ok(()))]));
    assert!(!quiet.is_awake() && rig.dir.path().join("1.log").exists());
    quiet.write(log, Stream::Stdout, &mut [0; HEADER_BYTES + 1], 1);
    assert!(quiet.is_needed());
}

#[test]
fn a_running_writer_opens_a_log_that_the_daemon_made() {
    let mut rig = Rig::running();
    let mut writer = std::mem::take(&mut rig.writer);
    rig.log = rig.open_made(&mut writer, "0.log");
    rig.writer = writer;
    assert!(matches!(rig.event(), LogEvent::Opened(_, Ok(()))));
    rig.write(b"line\n");
    rig.flush();
    assert_eq!(rig.texts(), ["line"]);
}

#[test]
fn rotations_without_a_writer_are_all_answered_by_the_next() {
    let mut rig = Rig::running();
    let mut quiet = LogWriter::default();
    let logs = ["1.log", "2.log"].map(|name| rig.open_made(&mut quiet, name));
    quiet.take_events();
    let requests = [1, 2, 3].map(RequestId::of_test);
    quiet.reopen(logs[1], requests[0]);
    quiet.reopen(logs[1], requests[1]);
    quiet.reopen(logs[0], requests[2]);
    quiet.take_up(rig.writer.connection().unwrap().try_clone_to_owned().unwrap());
    rig.writer = quiet;
    let mut answered = requests.map(|_| match rig.event() {
        LogEvent::Reopened(request, Ok(())) => request,
        other => panic!("{other:?} is no rotation"),
    });
    answered.sort_by_key(|request| format!("{request:?}"));
    assert_eq!(answered, requests);
    assert!(rig.writer.waiting.is_empty() && !rig.writer.is_needed());
}

#[test]
fn output_beyond_the_queue_limit_is_counted() {
    let mut rig = Rig::new();
    let block = "0123456\n".repeat(8 * 1024);
    while rig.writer.is_clear() {
        rig.write(block.as_bytes());
    }
    let blocks = 2 * queue::LIMIT_BYTES / block.len();
    (0..blocks).for_each(|_| rig.write(block.as_bytes()));
    assert!(!rig.writer.queue.has_room_for(block.len()), "the queue is full");
    rig.writer.flush(rig.log, &id());
    rig.begin();
    while !matches!(rig.event(), LogEvent::Flushed(_)) {}
    let texts = rig.texts();
    let (note, lines) = texts.split_last().unwrap();
    let lost: usize = note.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(lost > 0 && lines.iter().all(|line| line == "0123456"), "{note}");
    assert!(lines.len() + lost > blocks * 8 * 1024, "{} and {lost}", lines.len());
}

#[test]
fn a_log_that_cannot_be_opened_is_reported() {
    let mut rig = Rig::new();
    std::fs::create_dir(rig.dir.path().join("0.log")).unwrap();
    rig.begin();
    assert!(matches!(rig.event(), LogEvent::Opened(_, Err(_))));
}

#[test]
fn an_idle_writer_is_dismissed_unless_it_holds_something() {
    let mut rig = Rig::running();
    let later = || Instant::now() + REST_AFTER + Duration::from_secs(1);
    for (text, rests) in [(&b"beginning of a"[..], false), (b" line\n", true)] {
        rig.write(text);
        rig.writer.tick(later());
        // A later order is answered later.
        rig.flush();
        assert!(rig.writer.take_ended().is_none(), "more was ordered since");
        rig.writer.tick(later());
        while !rig.writer.waiting.is_empty() {
            rig.writer.receive();
            std::thread::yield_now();
        }
        assert_eq!(rig.writer.take_ended().is_some(), rests);
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
    assert!(rig.writer.take_ended().is_some());
    assert!(matches!(rig.writer.events[..], [LogEvent::Flushed(_)]));
    assert!(rig.writer.is_needed(), "the next one is to open the log");
}

#[test]
fn what_is_ordered_after_a_dismissal_is_for_the_next_writer() {
    let mut rig = Rig::running();
    rig.writer.queue.dismiss();
    rig.write(b"line\n");
    assert!(!rig.writer.is_clear() && rig.writer.take_ended().is_some());
    let (ours, orders) = socket::pair().unwrap();
    crate::spawn::set_nonblocking(&ours).unwrap();
    rig.orders = Some(orders);
    rig.begin();
    rig.writer.take_up(ours);
    rig.flush();
    assert_eq!(rig.texts(), ["line"]);
}

#[test]
fn a_kernel_without_memory_is_asked_again_within_a_second() {
    let mut rig = Rig::running();
    rig.writer.queue.starve();
    assert!(rig.writer.queue.is_starved() && rig.writer.is_awake());
    rig.writer.tick(Instant::now());
    assert!(!rig.writer.queue.is_starved());
    rig.write(b"line\n");
    rig.flush();
    assert_eq!(rig.texts(), ["line"]);
}
