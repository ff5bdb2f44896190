//! How many system calls a pod and a command cost the daemon and the supervisor; unlike times, counts repeat. There
//! must be no more than `TREE` says, and no more with many other pods than with none.

use std::collections::BTreeMap;

use crate::client::Client;
use crate::steps::Tracer;
use crate::wedge::Supervisor;
use crate::world::{World, run, until};

/// Calls whose number depends on chance: waits and wake-ups, threads that start and end, and the allocator's memory.
const BY_CHANCE: &str = "--trace=!futex,epoll_wait,epoll_pwait,poll,ppoll,restart_syscall,sched_yield,%memory,\
    set_robust_list,rseq,sigaltstack,prctl,sched_getaffinity,exit,gettid";

/// How often each is counted. The smallest count is used.
const TIMES: usize = 5;

/// The number of other pods in the second round.
const BESIDE: usize = 50;

/// By how many percent a count may exceed its limit, for example because of a read that came too early or one more
/// thread.
const MARGIN_PERCENT: usize = 5;

/// Calls of the daemon, and of the supervisor with the processes that it makes until they execute their program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    daemon: usize,
    supervisor: usize,
}

/// What each may take with v1 or hybrid cgroups; v2 takes less. Lower a number when less is needed.
const TREE: [(&str, Cost); 5] = [
    ("pod up", Cost { daemon: 426, supervisor: 563 }),
    ("ExecSync", Cost { daemon: 30, supervisor: 141 }),
    ("ContainerStats", Cost { daemon: 31, supervisor: 0 }),
    ("PodSandboxStats", Cost { daemon: 70, supervisor: 0 }),
    ("pod down", Cost { daemon: 262, supervisor: 95 }),
];

#[test]
fn a_pod_costs_no_more_calls_than_the_tree_says_whoever_is_there() {
    run(async |world| {
        // Pays for whatever only the first pod causes.
        world.client.down(&world.client.run(&world.client.pod("first")).await.unwrap()).await.unwrap();
        world.is_clean().await;
        let alone = least(world, "alone").await;
        println!("beside none {alone:?}");
        for n in 0..BESIDE {
            let pod = world.client.run(&world.client.pod(&format!("there-{n}"))).await.unwrap();
            world.client.launch(&pod, &world.client.container("main", "sleep 1000")).await.unwrap();
        }
        let beside = least(world, "beside").await;
        println!("beside {BESIDE} {beside:?}");
        for (what, most) in TREE {
            assert_within(what, "the tree says", alone[what], most);
            assert_within(what, "beside none it took", beside[what], alone[what]);
        }
    });
}

fn assert_within(what: &str, says: &str, took: Cost, most: Cost) {
    let fits = |took: usize, most: usize| 100 * took <= most * (100 + MARGIN_PERCENT);
    let both = fits(took.daemon, most.daemon) && fits(took.supervisor, most.supervisor);
    assert!(both, "{what}: {took:?}, and {says} {most:?}");
}

/// The smallest counts over several pods.
async fn least(world: &World, name: &str) -> BTreeMap<&'static str, Cost> {
    let mut least: BTreeMap<&'static str, Cost> = BTreeMap::new();
    for n in 0..TIMES {
        for (what, cost) in life(world, &format!("{name}-{n}")).await {
            least
                .entry(what)
                .and_modify(|known| {
                    known.daemon = known.daemon.min(cost.daemon);
                    known.supervisor = known.supervisor.min(cost.supervisor);
                })
                .or_insert(cost);
        }
    }
    least
}

/// Counts each part of a pod's life.
async fn life(world: &World, name: &str) -> [(&'static str, Cost); 5] {
    let before = world.footprint();
    let (pod, run) = traced_daemon(world, async |client| client.run(&client.pod(name)).await.unwrap()).await;
    let supervisor = Supervisor::of(&pod).await.pid();
    let (container, launch) = traced(world, supervisor, async |client| {
        client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap()
    })
    .await;
    let ((), exec) = traced(world, supervisor, async |client| {
        assert_eq!(client.exec(&container, "true", 20).await.unwrap().exit_code, 0);
    })
    .await;
    // The first one asks for measurements of writable layers, and waits for them.
    world.client.container_stats(&container).await;
    let ((), container_stats) = traced_daemon(world, async |client| {
        client.container_stats(&container).await;
    })
    .await;
    let ((), pod_stats) = traced_daemon(world, async |client| {
        client.pod_stats(&pod).await;
    })
    .await;
    let (stop, down) = traced_daemon(world, async |client| {
        let mut tracer = Tracer::counting(world, supervisor, BY_CHANCE);
        client.stop_container(&container, 0).await.unwrap();
        client.remove_container(&container).await.unwrap();
        tracer.end_all();
        client.down(&pod).await.unwrap();
        // Some of it is removed after the call returns. Processes may differ: there are the tracer, and programs under
        // new names.
        let left =
            || world.footprint().beyond(&before).into_iter().filter(|line| !line.starts_with("process "));
        until("all is gone", async || left().next().is_none().then_some(())).await;
        tracer.count()
    })
    .await;
    let up = Cost { daemon: run + launch.daemon, ..launch };
    let of_daemon = |daemon| Cost { daemon, supervisor: 0 };
    [
        ("pod up", up),
        ("ExecSync", exec),
        ("ContainerStats", of_daemon(container_stats)),
        ("PodSandboxStats", of_daemon(pod_stats)),
        ("pod down", Cost { daemon: down, supervisor: stop }),
    ]
}

/// Makes a call, and counts what the daemon and the supervisor do for it.
async fn traced<T>(world: &World, supervisor: i32, call: impl AsyncFn(Client) -> T) -> (T, Cost) {
    let mut tracer = Tracer::counting(world, supervisor, BY_CHANCE);
    let (result, daemon) = traced_daemon(world, call).await;
    tracer.end_all();
    (result, Cost { daemon, supervisor: tracer.count() })
}

/// Makes a call, and counts what the daemon does for it. A supervisor's beginning cannot be counted, because a program
/// is not traced when it is executed, nor can its end, which its tracer would hide from the daemon.
async fn traced_daemon<T>(world: &World, call: impl AsyncFn(Client) -> T) -> (T, usize) {
    let mut tracer = Tracer::counting(world, world.daemon.pid().cast_signed(), BY_CHANCE);
    let result = call(world.client.clone()).await;
    tracer.end_all();
    (result, tracer.count())
}
