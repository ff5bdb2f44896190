//! CNI: real plugins, and fake ones that fail.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tonic::{Code, Status};
use wharf_cri_api::admin::InfoRequest;
use wharf_cri_api::admin::admin_client::AdminClient;
use wharf_cri_api::v1::*;
use wharf_tests::connect::connect;

use crate::client::{Client, own_processes, pod_security};
use crate::host_mounts::host_mounts;
use crate::place;
use crate::world::{World, run_on, until};

/// The beginning of a fake plugin: it notes the call and keeps its input.
const NOTE: &str = "cat >$DIR/$NAME.$CNI_COMMAND; echo $NAME $CNI_COMMAND >>$DIR/calls\n";

/// A fake plugin that works: a pod has a file as long as it is added.
const GOOD: &str = r#"
    if [ $CNI_COMMAND = DEL ]; then rm -f $DIR/added/$CNI_CONTAINERID.$NAME; exit; fi
    touch $DIR/added/$CNI_CONTAINERID.$NAME
    echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}],
        "ips": [{"address": "10.9.0.7/24", "interface": 0}]}'
"#;

/// Writes a fake plugin.
fn plugin(dir: &Path, name: &str, script: &str) {
    fs::create_dir_all(dir.join("plugins")).unwrap();
    fs::create_dir_all(dir.join("added")).unwrap();
    let path = dir.join("plugins").join(name);
    let head = format!("#!/bin/sh\nDIR={} NAME={name}\n{NOTE}", dir.display());
    fs::write(&path, format!("{head}{script}")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Writes a network configuration.
fn configure(dir: &Path, network: &str, plugins: &Value) {
    configure_list(dir, &json!({ "cniVersion": "1.0.0", "name": network, "plugins": plugins }));
}

fn configure_list(dir: &Path, list: &Value) {
    drop_in(dir, "cni", "builtin = \"auto\"");
    fs::create_dir_all(dir.join("net.d")).unwrap();
    let (path, temporary) = (dir.join("net.d/10-test.conflist"), dir.join("net.d/new"));
    fs::write(&temporary, list.to_string()).unwrap();
    fs::rename(&temporary, path).unwrap();
}

/// Writes wharfd's network settings.
pub(crate) fn set(dir: &Path, settings: &str) {
    drop_in(dir, "network", settings);
}

fn drop_in(dir: &Path, name: &str, settings: &str) {
    fs::create_dir_all(dir.join("config.toml.d")).unwrap();
    fs::write(
        dir.join("config.toml.d").join(name).with_extension("toml"),
        format!("[network]\n{settings}\n"),
    )
    .unwrap();
}

/// A network with the fake plugins `one`, which works, and `two`.
fn chain(dir: &Path, two: &str) {
    plugin(dir, "one", GOOD);
    plugin(dir, "two", two);
    configure(dir, "chain", &json!([{ "type": "one" }, { "type": "two" }]));
}

fn calls(world: &World) -> Vec<String> {
    let calls = fs::read_to_string(world.dir.join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

/// The name of the network in the last call of a fake plugin.
fn network_of(world: &World, call: &str) -> Value {
    let input = fs::read(world.dir.join(call)).unwrap();
    serde_json::from_slice::<Value>(&input).unwrap()["name"].take()
}

fn added(world: &World) -> usize {
    fs::read_dir(world.dir.join("added")).unwrap().count()
}

pub(crate) async fn ip(client: &Client, pod: &str) -> String {
    client.pod_status(pod).await.unwrap().network.unwrap().ip
}

async fn network_condition(world: &World) -> RuntimeCondition {
    let status = world.client.runtime.clone().status(StatusRequest::default()).await.unwrap();
    let conditions = status.into_inner().status.unwrap().conditions;
    conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap()
}

fn refused(result: Result<String, Status>, code: Code, words: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    for word in words {
        assert!(status.message().contains(word), "{word} is missing in: {}", status.message());
    }
}

/// Runs a command on the node, which must succeed, and returns its output.
pub(crate) fn node(line: &str) -> String {
    let output = place::command(Path::new("sh")).args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn real_network(dir: &Path) {
    let needed = ["/usr/lib/cni/bridge", "/usr/sbin/iptables"];
    let there = needed.iter().all(|program| Path::new(program).exists());
    assert!(there, "needs Debian's containernetworking-plugins and iptables, which hack/test installs");
    let leases = dir.join("leases");
    let ipam = json!({ "type": "host-local", "dataDir": leases, "ranges": [[{ "subnet": "10.85.0.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
        "hairpinMode": true, "ipam": ipam });
    let ports = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } });
    configure(dir, "real", &json!([bridge, ports, { "type": "firewall" }]));
}

/// A pod that serves its own name on port 80, and on a host port unless that is 0.
pub(crate) async fn server(client: &Client, name: &str, host_port: i32) -> (String, String) {
    let mut config = client.pod(name);
    config.port_mappings.push(PortMapping { container_port: 80, host_port, ..PortMapping::default() });
    let pod = client.run(&config).await.unwrap();
    let script = format!("mkdir /www; echo I am {name} >/www/index.html; exec httpd -f -p 80 -h /www");
    let container = Box::pin(client.launch(&pod, &client.container("main", &script))).await.unwrap();
    let answers = async || {
        let asked = client.exec(&container, "wget -qO- http://127.0.0.1", 10).await.unwrap();
        (asked.exit_code == 0).then_some(())
    };
    until("the server answers", answers).await;
    (pod, container)
}

/// Fetches a page from a web server, from the host.
pub(crate) fn page(host: &str, port: u16) -> String {
    let mut stream = TcpStream::connect((host, port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// Checks that two pods reach each other, and that the host port of one is reachable from everywhere.
async fn all_reach(client: &Client, (web, one): (&str, &str), (other, two): (&str, &str)) {
    let (web_ip, other_ip) = (ip(client, web).await, ip(client, other).await);
    assert_ne!(web_ip, other_ip);
    assert!([&web_ip, &other_ip].iter().all(|ip| ip.starts_with("10.85.0.")), "{web_ip} {other_ip}");
    let ask = async |from, url: &str| client.output(from, &format!("wget -T 10 -qO- {url}")).await;
    assert_eq!(ask(two, &format!("http://{web_ip}")).await, "I am web");
    assert_eq!(ask(one, &format!("http://{other_ip}")).await, "I am other");
    for from in [one, two] {
        assert_eq!(ask(from, "http://10.85.0.1:12080").await, "I am web", "by the host's port");
    }
    for host in ["127.0.0.1", "10.85.0.1"] {
        let page = page(host, 12080);
        assert!(page.ends_with("I am web\n"), "{page}");
    }
}

#[test]
fn real_plugins_connect_pods_and_leave_nothing() {
    run_on(real_network, async |world| {
        let rules = || node("nft --stateless list ruleset");
        let dir = world.dir.clone();
        let leases = || node(&format!("ls {}/leases/real", dir.display()));
        // The first pod makes what belongs to the node: the bridge and the chains.
        let (first, _) = server(&world.client, "first", 12080).await;
        world.client.down(&first).await.unwrap();
        let (rules_before, leases_before) = (rules(), leases());

        let (web, one) = server(&world.client, "web", 12080).await;
        let (other, two) = server(&world.client, "other", 0).await;
        all_reach(&world.client, (&web, &one), (&other, &two)).await;
        assert_eq!(node("ip -oneline link show master cni0").lines().count(), 2);
        assert_ne!((rules(), leases()), (rules_before.clone(), leases_before.clone()));
        let address = ip(&world.client, &web).await;

        world.daemon.kill();
        world.start_again().await;
        assert_eq!(ip(&world.client, &web).await, address);
        all_reach(&world.client, (&web, &one), (&other, &two)).await;
        let (third, _) = server(&world.client, "third", 12081).await;
        assert_ne!(ip(&world.client, &third).await, address);

        world.clear().await;
        assert_eq!((rules(), leases()), (rules_before, leases_before));
        assert_eq!(node("ip -oneline link show master cni0"), "");
        // What plugins made for the node is theirs to keep.
        node("ip link delete cni0; nft flush ruleset");
    });
}

#[test]
fn a_pod_keeps_its_address_and_is_deleted_even_if_its_record_is_lost() {
    run_on(real_network, async |world| {
        let dir = world.dir.clone();
        let leases = || node(&format!("ls {}/leases/real", dir.display()));
        let (first, _) = server(&world.client, "first", 0).await;
        world.client.down(&first).await.unwrap();
        let leases_before = leases();
        let (web, one) = server(&world.client, "web", 12080).await;
        let (other, two) = server(&world.client, "other", 0).await;
        let (web_ip, other_ip) = (ip(&world.client, &web).await, ip(&world.client, &other).await);

        world.daemon.kill();
        let record = |pod: &str| world.dir.join("root/network/cni").join(format!("{pod}.json"));
        fs::write(record(&web), "{").unwrap();
        fs::remove_file(record(&other)).unwrap();
        world.start_again().await;
        assert_eq!((ip(&world.client, &web).await, ip(&world.client, &other).await), (web_ip, other_ip));
        all_reach(&world.client, (&web, &one), (&other, &two)).await;

        world.clear().await;
        assert_eq!(leases(), leases_before, "DEL was run for both");
        node("ip link delete cni0; nft flush ruleset");
        fs::remove_dir_all(world.dir.join("root/network/quarantine")).expect("the damaged record is kept");
    });
}

#[test]
fn a_pod_of_plugins_has_one_mount_of_the_host_until_they_have_deleted_it() {
    run_on(
        |dir| chain(dir, GOOD),
        async |world| {
            let client = &world.client;
            let before = host_mounts();
            let (one, two) = (client.pod("one"), client.pod("two"));
            let (one, two) = (client.run(&one).await.unwrap(), client.run(&two).await.unwrap());
            client.launch(&one, &client.container("main", "sleep 1000")).await.unwrap();
            let added = || host_mounts().into_iter().filter(|mount| !before.contains(mount));
            let pin = |pod: &str| world.dir.join("state/pods").join(pod).join("ns/net").display().to_string();
            assert_eq!(added().collect::<Vec<_>>(), [pin(&one), pin(&two)]);
            client.stop(&one).await.unwrap();
            assert_eq!(added().collect::<Vec<_>>(), [pin(&two)]);
            world.clear().await;
            assert_eq!(host_mounts(), before);
        },
    );
}

#[test]
fn a_plugin_that_fails_is_named_and_leaves_nothing() {
    let failing = r#"
        [ $CNI_COMMAND = ADD ] || exit 0
        echo '{"cniVersion": "1.0.0", "code": 11, "msg": "no cable", "details": "try the other port"}'; exit 1"#;
    run_on(
        |dir| chain(dir, failing),
        async |world| {
            let pod = world.client.pod("unconnected");
            let words = ["attaching the pod", "plugin two", "ADD", "no cable", "try the other port"];
            refused(world.client.run(&pod).await, Code::Unavailable, &words);
            assert_eq!(calls(world), ["one ADD", "two ADD", "two DEL", "one DEL"]);
            assert_eq!((added(world), world.client.pods().await.len()), (0, 0));
            world.is_clean().await;
            plugin(&world.dir, "two", GOOD);
            let pod = world.client.run(&pod).await.unwrap();
            assert_eq!((ip(&world.client, &pod).await.as_str(), added(world)), ("10.9.0.7", 2));
            world.clear().await;
            assert_eq!(added(world), 0);
        },
    );
}

#[test]
fn a_plugin_that_hangs_is_killed_with_all_it_started() {
    let hanging = "[ $CNI_COMMAND = DEL ] || { sleep 1000 & wait; }";
    let prepare = |dir: &Path| {
        chain(dir, hanging);
        set(dir, "cni_add_timeout_s = 1");
    };
    run_on(prepare, async |world| {
        let refusal = world.client.run(&world.client.pod("stuck")).await;
        refused(refusal, Code::DeadlineExceeded, &["plugin two", "ADD", "in time"]);
        assert_eq!(calls(world), ["one ADD", "two ADD", "two DEL", "one DEL"]);
        assert_eq!(added(world), 0);
        world.is_clean().await;
    });
}

#[test]
fn plugins_that_hang_hold_up_nobody_else() {
    let waiting = format!("until [ $CNI_COMMAND = DEL -o -e $DIR/go ]; do sleep 0.1; done\n{GOOD}");
    run_on(
        |dir| chain(dir, GOOD),
        async |world| {
            let client = &world.client;
            let free = client.run(&client.pod("free")).await.unwrap();
            plugin(&world.dir, "two", &waiting);
            // More than wharfd has threads.
            let stuck: Vec<_> = (0..80)
                .map(|number| {
                    let client = client.clone();
                    tokio::spawn(async move { client.run(&client.pod(&format!("stuck-{number}"))).await })
                })
                .collect();
            until("pods wait for the plugin", async || (calls(world).len() >= 20).then_some(())).await;
            let container = client.launch(&free, &client.container("main", "sleep 1000")).await.unwrap();
            assert_eq!(client.output(&container, "echo served").await, "served");
            // An agent for which the plugin waits is such a pod.
            let mut agent = client.pod("agent");
            let options = NamespaceOption { network: NamespaceMode::Node.into(), ..own_processes() };
            pod_security(&mut agent).namespace_options = Some(options);
            let agent = client.run(&agent).await.unwrap();
            client.down(&agent).await.unwrap();
            assert_eq!(client.pods().await.len(), 1, "the others still wait");
            fs::write(world.dir.join("go"), "").unwrap();
            for pod in stuck {
                pod.await.unwrap().unwrap();
            }
        },
    );
}

#[test]
fn a_delete_that_fails_is_done_by_a_later_call() {
    let broken =
        format!("[ $CNI_COMMAND = ADD -o ! -e $DIR/broken ] || {{ echo cut off >&2; exit 3; }}\n{GOOD}");
    run_on(
        |dir| chain(dir, &broken),
        async |world| {
            let pod = world.client.run(&world.client.pod("held")).await.unwrap();
            fs::write(world.dir.join("broken"), "").unwrap();
            let events = world.client.runtime.clone().get_container_events(GetEventsRequest {}).await;
            for _ in 0..2 {
                let stopped = world.client.stop(&pod).await.map(|()| String::new());
                refused(stopped, Code::Unavailable, &["detaching the pod", "plugin two", "DEL", "cut off"]);
            }
            let event = events.unwrap().into_inner().message().await.unwrap().unwrap();
            let kind = event.container_event_type();
            assert_eq!((event.container_id, kind), (pod.clone(), ContainerEventType::ContainerStoppedEvent));
            assert_eq!(
                world.client.pod_status(&pod).await.unwrap().state(),
                PodSandboxState::SandboxNotready
            );
            world.daemon.kill();
            world.start_again().await;
            assert!(world.client.remove(&pod).await.is_err());
            assert_eq!((added(world), world.client.pods().await.len()), (2, 1), "nothing is forgotten");
            fs::remove_file(world.dir.join("broken")).unwrap();
            world.client.remove(&pod).await.unwrap();
            assert_eq!(added(world), 0);
            world.is_clean().await;
        },
    );
}

#[test]
fn a_pod_that_can_be_neither_made_nor_undone_is_undone_later() {
    let broken = format!("[ ! -e $DIR/broken ] || exit 3\n{GOOD}");
    let prepare = |dir: &Path| {
        chain(dir, &broken);
        fs::write(dir.join("broken"), "").unwrap();
    };
    run_on(prepare, async |world| {
        refused(world.client.run(&world.client.pod("one")).await, Code::Unavailable, &["plugin two", "ADD"]);
        world.daemon.kill();
        world.start_again().await;
        refused(world.client.run(&world.client.pod("two")).await, Code::Unavailable, &["plugin two", "ADD"]);
        assert_eq!((added(world), world.client.pods().await.len()), (2, 0));
        fs::remove_file(world.dir.join("broken")).unwrap();
        world.is_clean().await;
        assert_eq!(added(world), 0, "one from before the daemon's death, and one of its successor");
    });
}

#[test]
fn a_daemon_starts_while_plugins_hang() {
    let hanging = "until [ -e $DIR/go ]; do sleep 0.1; done";
    let prepare = |dir: &Path| {
        plugin(dir, "only", hanging);
        configure(dir, "hanging", &json!([{ "type": "only" }]));
        set(dir, "cni_add_timeout_s = 1\ncni_delete_timeout_s = 100");
    };
    run_on(prepare, async |world| {
        let (client, pod) = (world.client.clone(), world.client.pod("stuck"));
        let call = tokio::spawn(async move { client.run(&pod).await });
        until("its DEL hangs", async || (calls(world) == ["only ADD", "only DEL"]).then_some(())).await;
        world.daemon.kill();
        assert!(call.await.unwrap().is_err());
        world.start_again().await;
        assert_eq!((world.client.pods().await, calls(world).len()), (vec![], 2), "no call beside another");
        plugin(&world.dir, "only", GOOD);
        fs::write(world.dir.join("go"), "").unwrap();
        world.is_clean().await;
    });
}

#[test]
fn what_a_plugin_adds_after_its_daemons_death_is_deleted() {
    let slow = format!("until [ $CNI_COMMAND = DEL -o -e $DIR/go ]; do sleep 0.1; done\n{GOOD}");
    let prepare = |dir: &Path| {
        plugin(dir, "only", &slow);
        configure(dir, "slow", &json!([{ "type": "only" }]));
    };
    run_on(prepare, async |world| {
        let (client, pod) = (world.client.clone(), world.client.pod("late"));
        let call = tokio::spawn(async move { client.run(&pod).await });
        until("its ADD is under way", async || (calls(world) == ["only ADD"]).then_some(())).await;
        world.daemon.kill();
        assert!(call.await.unwrap().is_err());
        world.start_again().await;
        assert_eq!((world.client.pods().await, calls(world)), (vec![], vec!["only ADD".to_owned()]));
        fs::write(world.dir.join("go"), "").unwrap();
        world.is_clean().await;
        assert_eq!((calls(world), added(world)), (["only ADD", "only DEL"].map(str::to_owned).to_vec(), 0));
    });
}

#[test]
fn pods_leave_the_network_that_they_were_added_to() {
    let prepare = |dir: &Path| {
        plugin(dir, "old", GOOD);
        plugin(dir, "new", &GOOD.replace("10.9.0.7", "10.9.1.8"));
        configure(dir, "before", &json!([{ "type": "old" }]));
    };
    run_on(prepare, async |world| {
        let old = world.client.run(&world.client.pod("old")).await.unwrap();
        let older = world.client.run(&world.client.pod("older")).await.unwrap();
        configure(&world.dir, "after", &json!([{ "type": "new" }]));
        let new = world.client.run(&world.client.pod("new")).await.unwrap();
        world.client.down(&older).await.unwrap();
        world.daemon.kill();
        world.start_again().await;
        assert_eq!(
            (&*ip(&world.client, &old).await, &*ip(&world.client, &new).await),
            ("10.9.0.7", "10.9.1.8")
        );
        for pod in [old, new] {
            world.client.down(&pod).await.unwrap();
        }
        let expected = ["old ADD", "old ADD", "new ADD", "old DEL", "old DEL", "new DEL"];
        assert_eq!((calls(world), added(world)), (expected.map(str::to_owned).to_vec(), 0));
        assert_eq!(
            (network_of(world, "old.DEL"), network_of(world, "new.DEL")),
            ("before".into(), "after".into())
        );
    });
}

#[test]
fn a_configuration_that_goes_away_puts_no_pod_on_the_builtin_network() {
    let prepare = |dir: &Path| {
        set(dir, "builtin = \"auto\"");
        plugin(dir, "only", GOOD);
    };
    run_on(prepare, async |world| {
        let client = &world.client;
        let early = client.run(&client.pod("early")).await.unwrap();
        assert!(ip(client, &early).await.starts_with("10.213."));
        configure(&world.dir, "late", &json!([{ "type": "only" }]));
        let left = network_condition(world).await;
        assert!(
            left.status && left.message.starts_with("pods still on the built-in network"),
            "{}",
            left.message
        );
        let pod = client.run(&client.pod("on-cni")).await.unwrap();
        assert_eq!(ip(client, &pod).await, "10.9.0.7");
        fs::remove_file(world.dir.join("net.d/10-test.conflist")).unwrap();
        let missing = network_condition(world).await;
        assert_eq!((missing.status, &*missing.reason), (false, "NoCniConfig"), "{}", missing.message);
        let words = ["net.d", "network.builtin"];
        refused(client.run(&client.pod("between")).await, Code::FailedPrecondition, &words);
        configure(&world.dir, "late", &json!([{ "type": "only" }]));
        client.down(&early).await.unwrap();
        let after = network_condition(world).await;
        assert_eq!((after.status, after.message.as_str()), (true, ""));
        client.run(&client.pod("after")).await.unwrap();
        assert_eq!(added(world), 2);
    });
}

#[test]
fn a_kubelet_that_sends_a_pod_cidr_makes_the_node_wait_for_its_network() {
    run_on(
        |dir| set(dir, "builtin = \"auto\""),
        async |world| {
            assert!(network_condition(world).await.status);
            let network_config = Some(NetworkConfig { pod_cidr: "10.244.3.0/24".into() });
            let runtime_config = Some(RuntimeConfig { network_config });
            let request = UpdateRuntimeConfigRequest { runtime_config };
            world.client.runtime.clone().update_runtime_config(request).await.unwrap();
            let mut admin = AdminClient::new(connect(&world.daemon.socket()).await.unwrap());
            let shown = admin.info(InfoRequest {}).await.unwrap().into_inner().subnets;
            assert_eq!(shown, "10.244.3.0/24", "what is in effect, not what is configured");
            let waiting = network_condition(world).await;
            assert_eq!((waiting.status, &*waiting.reason), (false, "NoCniConfig"), "{}", waiting.message);
            refused(
                world.client.run(&world.client.pod("coredns")).await,
                Code::FailedPrecondition,
                &["10.244.3.0/24", "network.builtin"],
            );
            plugin(&world.dir, "only", GOOD);
            configure(&world.dir, "late", &json!([{ "type": "only" }]));
            assert!(network_condition(world).await.status);
            let pod = world.client.run(&world.client.pod("coredns")).await.unwrap();
            assert_eq!(ip(&world.client, &pod).await, "10.9.0.7");
        },
    );
}

#[test]
fn a_node_without_the_builtin_network_waits_for_cni() {
    let prepare = |dir: &Path| {
        set(dir, "builtin = \"off\"");
        plugin(dir, "only", GOOD);
        configure(dir, "first", &json!([{ "type": "only" }]));
    };
    run_on(prepare, async |world| {
        assert!(network_condition(world).await.status);
        let list = world.dir.join("net.d/10-test.conflist");
        fs::remove_file(&list).unwrap();
        let missing = network_condition(world).await;
        assert_eq!((missing.status, &*missing.reason), (false, "NoCniConfig"), "{}", missing.message);
        assert!(missing.message.contains("net.d"), "{}", missing.message);
        refused(world.client.run(&world.client.pod("early")).await, Code::FailedPrecondition, &["net.d"]);
        fs::write(&list, "{").unwrap();
        let invalid = network_condition(world).await;
        assert_eq!((invalid.status, &*invalid.reason), (false, "InvalidCniConfig"), "{}", invalid.message);
        configure(&world.dir, "second", &json!([{ "type": "only" }, { "type": "missing" }]));
        let unready = network_condition(world).await;
        assert_eq!((unready.status, &*unready.reason), (false, "CniPluginMissing"), "{}", unready.message);
        plugin(&world.dir, "missing", GOOD);
        assert!(network_condition(world).await.status);
        world.client.run(&world.client.pod("late")).await.unwrap();
        assert_eq!(network_of(world, "only.ADD"), "second");
    });
}

#[test]
fn a_node_is_ready_when_its_plugins_say_so() {
    let status = r#"
        if [ $CNI_COMMAND = STATUS ]; then
            [ ! -e $DIR/hang ] || sleep 1000
            [ ! -e $DIR/up ] || exit 0
            echo '{"cniVersion": "1.1.0", "code": 50, "msg": "the agent starts"}'; exit 1
        fi"#;
    let prepare = |dir: &Path| {
        set(dir, "cni_add_timeout_s = 1");
        plugin(dir, "only", &format!("{status}\n{GOOD}"));
        fs::write(dir.join("up"), "").unwrap();
        configure_list(
            dir,
            &json!({ "cniVersion": "1.1.0", "name": "new", "plugins": [{ "type": "only" }] }),
        );
    };
    run_on(prepare, async |world| {
        let unready = async |words: &str| {
            let said =
                async || Some(network_condition(world).await).filter(|said| said.message.contains(words));
            let said = until("the plugin says so", said).await;
            assert_eq!((said.status, &*said.reason), (false, "CniPluginNotReady"), "{}", said.message);
        };
        let ready = async || network_condition(world).await.status.then_some(());
        fs::remove_file(world.dir.join("up")).unwrap();
        unready("the CNI plugin only failed during STATUS: the agent starts (code 50)").await;
        fs::write(world.dir.join("up"), "").unwrap();
        until("the plugin is ready", ready).await;
        fs::write(world.dir.join("hang"), "").unwrap();
        unready("only did not finish STATUS in time and was killed").await;
        let pod = world.client.run(&world.client.pod("meanwhile")).await.unwrap();
        world.client.down(&pod).await.unwrap();
        fs::remove_file(world.dir.join("hang")).unwrap();
        until("the plugin is ready again", ready).await;
    });
}
