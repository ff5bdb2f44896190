//! Container logs: their format, long lines, order, rotation.

use std::path::Path;

use wharf_cri_api::v1::ReopenContainerLogRequest;

use crate::world::{run, until};

/// One record of a log.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    stream: String,
    tag: String,
    text: String,
}

/// The records, checked for the CRI's format: `<time> <stream> <tags> <text>`.
fn records(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let record = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let time = words.next().unwrap();
        assert!(
            time.len() == 30 && &time[10..11] == "T" && time.ends_with('Z'),
            "a time of RFC 3339 with nanoseconds: {line}"
        );
        let mut next =
            || words.next().unwrap_or_else(|| panic!("a record has four words: {line}")).to_owned();
        Record { stream: next(), tag: next(), text: next() }
    };
    text.lines().map(record).collect()
}

/// The texts of a log's records.
pub(crate) fn texts(path: &Path) -> Vec<String> {
    records(path).into_iter().map(|record| record.text).collect()
}

#[test]
fn long_lines_are_split_and_ends_are_kept() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("long")).await.unwrap();
        // A line of 40,000 bytes, then one of exactly the limit, then one that does not end.
        let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; printf end";
        assert_eq!(client.to_end(&pod, "main", script).await.exit_code, 0);
        let records = records(&client.log_path("long", "main"));
        assert!(records.iter().all(|record| record.stream == "stdout" && record.text.len() <= 16384));
        let mut lines = vec![String::new()];
        for record in records {
            assert!(matches!(&*record.tag, "P" | "F"), "{}", record.tag);
            lines.last_mut().unwrap().push_str(&record.text);
            lines.extend((record.tag == "F").then(String::new));
        }
        // The last one is marked as a part, because nothing ended it.
        assert_eq!(lines, ["x".repeat(40_000), "y".repeat(16_384), "end".to_owned()]);
    });
}

#[test]
fn streams_are_told_apart_and_bytes_are_kept() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("streams")).await.unwrap();
        let script = "echo out; echo err >&2; printf 'carriage\\r\\n'; echo; echo 'spaces  and ü'";
        client.to_end(&pod, "main", script).await;
        let of = |stream: &str| {
            let text = std::fs::read_to_string(client.log_path("streams", "main")).unwrap();
            let marker = format!(" {stream} F ");
            text.split('\n')
                .filter_map(|line| Some(line.split_once(&marker)?.1.to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("stdout"), ["out", "carriage\r", "", "spaces  and ü"]);
        assert_eq!(of("stderr"), ["err"]);
    });
}

#[test]
fn a_flood_is_whole_and_in_order() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("flood")).await.unwrap();
        assert_eq!(client.to_end(&pod, "main", "seq 1 100000").await.exit_code, 0);
        let texts = texts(&client.log_path("flood", "main"));
        assert_eq!(texts.len(), 100_000);
        assert!(texts.iter().enumerate().all(|(index, text)| *text == (index + 1).to_string()));
    });
}

#[test]
fn a_reopened_log_is_a_new_file_and_nothing_is_lost_between() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("rotated")).await.unwrap();
        let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.002; done";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let log = client.log_path("rotated", "main");
        let mut rotated = Vec::new();
        for number in 0..5 {
            until("lines are logged", async || (texts(&log).len() > 5).then_some(())).await;
            let old = log.with_extension(number.to_string());
            std::fs::rename(&log, &old).unwrap();
            rotated.push(old);
            let request = ReopenContainerLogRequest { container_id: id.clone() };
            client.runtime.clone().reopen_container_log(request).await.unwrap();
            assert!(log.exists());
        }
        client.stop_container(&id, 0).await.unwrap();
        rotated.push(log);
        let all: Vec<String> = rotated.iter().flat_map(|log| texts(log)).collect();
        let expected: Vec<String> = (1..=all.len()).map(|n| n.to_string()).collect();
        assert_eq!(all, expected);
    });
}

/// The kubelet counts a container's restarts by its logs.
#[test]
fn a_container_that_could_not_be_made_leaves_no_log() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("unmade")).await.unwrap();
        let log = client.log_path("unmade", "main");
        let mut nowhere = client.container("main", "true");
        nowhere.working_dir = "/etc/passwd".to_owned();
        client.create(&pod, &nowhere).await.unwrap_err();
        assert!(!log.exists());
        // What an earlier container of this name has written stays.
        std::fs::write(&log, "earlier\n").unwrap();
        client.create(&pod, &nowhere).await.unwrap_err();
        assert!(log.exists());
    });
}

/// The kubelet removes all that begins with a removed container's path: in its working directory, if that is empty.
#[test]
fn the_path_of_a_log_that_is_not_there_is_a_path() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("silent")).await.unwrap();
        let mut config = client.container("main", "true");
        config.log_path.clear();
        let id = client.create(&pod, &config).await.unwrap();
        let path = client.status(&id).await.unwrap().log_path;
        assert!(path.starts_with("/dev/null/"), "{path:?}");
    });
}
