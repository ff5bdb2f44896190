//! What Prometheus is shown: figures that rise with what happens, and a server that hostile clients do not block. The
//! metrics that kubelets ask for are another matter (`metrics`).

mod page;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wharf_cri_api::v1::GetEventsRequest;

use crate::place;
use crate::streams::{OUTPUT, SPEECHES, Session};
use crate::wedge::Supervisor;
use crate::world::{World, run, run_on, until};
use page::Page;

/// Each test has its own loopback.
const ADDRESS: &str = "127.0.0.1:10213";

/// What no panel shows.
const OFF_THE_BOARD: [&str; 6] = [
    "process_virtual_memory_bytes",
    "wharf_image_pulls_started",
    "wharf_image_store_inodes",
    "wharf_image_sweep_freed_bytes",
    "wharf_image_sweep_last_failure_timestamp_seconds",
    "wharf_pool_threads_limit",
];

const RUNTIME: &str = "runtime.v1.RuntimeService";
const IMAGES: &str = "runtime.v1.ImageService";

/// Has the daemon that starts in a directory serve metrics.
pub(crate) fn turn_on(dir: &Path) {
    fs::create_dir(dir.join("config.toml.d")).unwrap();
    let text = format!("[metrics]\naddress = \"{ADDRESS}\"\n");
    fs::write(dir.join("config.toml.d/metrics.toml"), text).unwrap();
}

/// The head and the body of the response to a request.
async fn ask(request: &str) -> (String, String) {
    let mut client = TcpStream::connect(ADDRESS).await.unwrap();
    client.write_all(format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response:?}"));
    (head.to_owned(), body.to_owned())
}

/// Reads the page.
pub(crate) async fn scrape() -> Page {
    let request = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0";
    let (head, body) = ask(request).await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    Page::parse(&body)
}

/// Waits until a page shows something: one that was written a moment ago is shown again.
async fn shows(what: &str, is_shown: impl Fn(&Page) -> bool) -> Page {
    until(what, async || Some(scrape().await).filter(&is_shown)).await
}

fn calls(page: &Page, service: &str, method: &str, code: &str) -> f64 {
    let labels = [("service", service), ("method", method), ("code", code)];
    page.of("wharf_cri_calls_total", &labels).unwrap_or(0.0)
}

fn in_flight(page: &Page, method: &str) -> f64 {
    page.of("wharf_cri_calls_in_flight", &[("service", RUNTIME), ("method", method)]).unwrap_or(0.0)
}

#[test]
fn figures_rise_with_what_happens() {
    run_on(turn_on, async |world| {
        let client = &world.client;
        let first = scrape().await;
        assert_eq!(calls(&first, IMAGES, "PullImage", "OK"), 1.0);
        assert_eq!(first.of("wharf_image_pulls_total", &[("result", "succeeded")]), Some(1.0));
        assert_eq!((first.all("wharf_image_pulls_started_total"), first.all("wharf_images")), (1.0, 1.0));
        assert!(first.all("wharf_image_pull_fetched_bytes_total") > 100_000.0);
        assert!(first.all("wharf_image_store_bytes") > 100_000.0 && first.all("wharf_image_layers") >= 1.0);
        assert_eq!(first.of("wharf_pods", &[("state", "ready")]), Some(0.0));
        assert_eq!(first.of("wharf_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));

        let pod = client.run(&client.pod("seen")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        client.to_end(&pod, "short", "true").await;
        for _ in 0..3 {
            client.output(&id, "true").await;
        }
        client.status("no-such-container").await.unwrap_err();
        client.pull("registry.invalid/nothing:at-all").await.unwrap_err();
        let now = shows("the last call is counted", |page| {
            calls(page, IMAGES, "PullImage", "OK") > 0.0
                && page.of("wharf_image_pulls_total", &[("result", "failed")]) == Some(1.0)
        })
        .await;
        for (method, code, count) in [
            ("RunPodSandbox", "OK", 1.0),
            ("CreateContainer", "OK", 2.0),
            ("ExecSync", "OK", 3.0),
            ("ContainerStatus", "NotFound", 1.0),
        ] {
            assert_eq!(calls(&now, RUNTIME, method, code), count, "{method}");
        }
        let took = [("service", RUNTIME), ("method", "ExecSync")];
        assert_eq!(now.of("wharf_cri_call_duration_seconds_count", &took), Some(3.0));
        assert!(now.of("wharf_cri_call_duration_seconds_sum", &took).unwrap() > 0.001);
        assert_eq!(now.of("wharf_pods", &[("state", "ready")]), Some(1.0));
        assert_eq!(now.of("wharf_containers", &[("state", "running")]), Some(1.0));
        assert_eq!(now.of("wharf_containers", &[("state", "exited")]), Some(1.0));
        assert_eq!(now.of("wharf_supervisors", &[("contact", "connected")]), Some(1.0));
        assert_eq!(now.all("wharf_cri_calls_in_flight"), 0.0);
        assert_eq!(now.decreased(&first), Vec::<String>::new());
        assert!(now.values().len() < 80, "{:?}", now.values());

        client.down(&pod).await.unwrap();
        let last = shows("the pod is gone", |page| page.all("wharf_pods") == 0.0).await;
        assert_eq!((last.all("wharf_containers"), last.all("wharf_supervisors")), (0.0, 0.0));
        process_is_shown(world, &last);
    });
}

#[test]
fn every_figure_of_the_board_is_on_the_page() {
    run_on(turn_on, async |_world| {
        let board = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana.json");
        let board: serde_json::Value = serde_json::from_str(&fs::read_to_string(board).unwrap()).unwrap();
        let page = scrape().await;
        let panels = board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
        let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
        let mut used = BTreeSet::new();
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            used.extend(words.filter(|word| word.starts_with("wharf_") || word.starts_with("process_")));
        }
        let family = |name: &str| {
            let ends = ["_total", "_bucket", "_info", ""].into_iter();
            { ends }
                .filter_map(|end| name.strip_suffix(end))
                .find_map(|name| page.families.get_key_value(name))
        };
        let unknown: Vec<_> = used.iter().filter(|name| family(name).is_none()).collect();
        assert_eq!(unknown, Vec::<&&str>::new());
        let shown: BTreeSet<_> = used.iter().filter_map(|name| Some(family(name)?.0.as_str())).collect();
        let missing: Vec<_> = page.families.keys().filter(|name| !shown.contains(name.as_str())).collect();
        assert_eq!(missing, OFF_THE_BOARD);
    });
}

/// The figures of the process are those that the kernel shows of it.
fn process_is_shown(world: &World, page: &Page) {
    let descriptors = world.daemon.descriptors().len();
    // The connection of the scrape, and what the pool of threads is about to close.
    let shown = page.all("process_open_fds");
    assert!((shown - descriptors as f64).abs() <= 8.0, "{shown} {descriptors}");
    assert!(page.all("process_max_fds") >= 1024.0);
    assert!(page.all("process_resident_memory_bytes") > 1e6 && page.all("process_threads") >= 4.0);
    assert!(page.all("process_cpu_seconds_total") > 0.0);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - page.all("process_start_time_seconds");
    assert!((0.0..120.0).contains(&age), "{age}");
}

#[test]
fn streams_and_sessions_are_in_flight_until_they_end() {
    run_on(turn_on, async |world| {
        let client = &world.client;
        let events = client.runtime.clone().get_container_events(GetEventsRequest {}).await.unwrap();
        let pod = client.run(&client.pod("open")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let session = Session::exec(client, SPEECHES[0], &id, "echo on; sleep 1001", OUTPUT).await;
        session.until("on").await;
        let exec = [("kind", "exec")];
        let open = shows("both are open", |page| {
            in_flight(page, "GetContainerEvents") == 1.0
                && page.of("wharf_streaming_sessions", &exec) == Some(1.0)
        })
        .await;
        assert_eq!(open.all("wharf_event_listeners"), 1.0);
        drop((events, session));
        let closed = shows("both have ended", |page| {
            in_flight(page, "GetContainerEvents") == 0.0
                && page.of("wharf_streaming_sessions", &exec) == Some(0.0)
        })
        .await;
        assert_eq!(calls(&closed, RUNTIME, "GetContainerEvents", "Canceled"), 1.0);
        assert_eq!(closed.all("wharf_event_listeners"), 0.0);
    });
}

#[test]
fn what_does_not_respond_is_seen() {
    run_on(turn_on, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let contact = |page: &Page, word| page.of("wharf_supervisors", &[("contact", word)]).unwrap();
        assert_eq!(contact(&scrape().await, "connected"), 1.0);
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        let (caller, of) = (client.clone(), id.clone());
        let exec = tokio::spawn(async move { caller.exec(&of, "true", 1).await });
        let waits = shows("the command is in flight", |page| in_flight(page, "ExecSync") == 1.0).await;
        assert_eq!(waits.all("wharf_exec_syncs_in_progress"), 1.0);
        let (caller, of, other) = (client.clone(), pod.clone(), client.container("other", "true"));
        let creation = tokio::spawn(async move { caller.create(&of, &other).await });
        shows("the creation goes on", |page| page.all("wharf_creations_in_progress") == 1.0).await;
        exec.await.unwrap().unwrap_err();
        let silent = shows("the supervisor is silent", |page| contact(page, "silent") == 1.0).await;
        assert_eq!(contact(&silent, "connected"), 0.0);
        assert_eq!(calls(&silent, RUNTIME, "ExecSync", "Unavailable"), 1.0);
        creation.await.unwrap().unwrap_err();
        shows("nothing is made", |page| page.all("wharf_creations_in_progress") == 0.0).await;
        supervisor.go_on();
        assert_eq!(client.output(&id, "echo still").await, "still");
        shows("the supervisor responds", |page| contact(page, "connected") == 1.0).await;
    });
}

#[test]
fn hostile_clients_cost_nobody_else() {
    run_on(turn_on, async |world| {
        let pod = world.client.run(&world.client.pod("beside")).await.unwrap();
        let id = world.client.launch(&pod, &world.client.container("main", "sleep 1000")).await.unwrap();
        let descriptors = world.daemon.descriptors().len();
        // More than the server has places for: some say nothing, some begin, some never read.
        let mut hostile = Vec::new();
        for (number, words) in
            ["", "GET /met", "GET /metrics HTTP/1.1\r\nA: b\r\n", "GET /metrics HTTP/1.1\r\n\r\n"]
                .iter()
                .cycle()
                .take(400)
                .enumerate()
        {
            let mut client = TcpStream::connect(ADDRESS).await.unwrap();
            client.write_all(words.as_bytes()).await.unwrap();
            hostile.push(client);
            if number % 50 == 0 {
                let begin = Instant::now();
                scrape().await;
                assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
                assert_eq!(world.client.output(&id, "echo fine").await, "fine");
            }
        }
        let few = async || (world.daemon.descriptors().len() < descriptors + 80).then_some(());
        until("only so many connections are kept", few).await;
        // A head without an end is cut off, however it is sent.
        let mut endless = TcpStream::connect(ADDRESS).await.unwrap();
        endless.write_all(b"GET /metrics HTTP/1.1\r\nA: ").await.unwrap();
        let line = [b'x'; 1024];
        let cut = async || endless.write_all(&line).await.err();
        until("an endless head is cut off", cut).await;
        for (request, status) in [
            ("GET /other HTTP/1.1", "404"),
            ("PUT /metrics HTTP/1.1", "405"),
            ("GET /metrics HTTP/1.1", "200"),
        ] {
            let (head, _) = ask(request).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        }
        drop(hostile);
        let freed = async || (world.daemon.descriptors().len() <= descriptors + 2).then_some(());
        until("their connections are closed", freed).await;
    });
}

#[test]
fn an_address_that_is_taken_keeps_no_node_from_its_runtime() {
    run(async |world| {
        assert_eq!(listening(world), 1, "only the server of sessions listens by default");
        world.daemon.end().await;
        turn_on(&world.dir);
        let taken = TcpListener::bind(ADDRESS).await.unwrap();
        let mut check = place::command(&place::built().wharfd);
        check.arg("--config").arg(world.dir.join("config.toml")).args(["config", "check"]);
        let told = String::from_utf8(check.output().unwrap().stderr).unwrap();
        assert!(told.contains(&format!("metrics.address: {ADDRESS} is in use by ")), "{told}");
        world.start_again().await;
        let told = async || world.daemon.has_logged("metrics cannot be served").then_some(());
        until("it says that it cannot listen", told).await;
        drop(taken);
        let served = async || TcpStream::connect(ADDRESS).await.ok();
        drop(until("it listens as soon as it can", served).await);
        assert!(scrape().await.all("wharf_build_info") == 1.0);
        assert_eq!(listening(world), 2);
        fs::remove_dir_all(world.dir.join("config.toml.d")).unwrap();
        world.daemon.end().await;
        world.start_again().await;
        assert_eq!(listening(world), 1);
    });
}

/// How many sockets listen for TCP connections in the test's network, where nobody else does.
fn listening(world: &World) -> usize {
    let table = |name| fs::read_to_string(format!("/proc/{}/net/{name}", world.daemon.pid())).unwrap();
    let table = table("tcp") + &table("tcp6");
    let registry = format!(":{:04X}", world.registry.address.port());
    let listening = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    listening.filter(|fields| fields.get(3) == Some(&"0A") && !fields[1].ends_with(&registry)).count()
}
