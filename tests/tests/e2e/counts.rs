//! How many system calls and allocations a pod and a command cost the daemon and the supervisor; unlike times, counts
//! repeat. There must be no more than `TREE` says, and no more with many other pods than with none.
//!
//! What is counted are the programs that the end-to-end tests run: the daemon as `cargo build` makes it, and the
//! supervisor as it is shipped.

use std::collections::BTreeMap;
use std::ops::Add;

use wharf_cri_api::v1::{ContainerFilter, ListContainersRequest};

use crate::allocations::Allocations;
use crate::client::Client;
use crate::place::Built;
use crate::steps::Tracer;
use crate::wedge::Supervisor;
use crate::world::{World, run_on, until};

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

/// What is counted of the daemon, and of the supervisor with the processes that it makes until they execute their
/// program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    daemon: usize,
    supervisor: usize,
}

/// A part of a pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Costs {
    calls: Cost,
    allocations: Cost,
}

/// What each may take with v1 or hybrid cgroups; v2 takes less. Lower a number when less is needed.
const TREE: [(&str, Costs); 6] = [
    ("pod up", costs((397, 534), (2300, 515))),
    ("ExecSync", costs((30, 127), (59, 128))),
    ("ContainerStats", costs((31, 0), (52, 0))),
    ("PodSandboxStats", costs((70, 0), (79, 0))),
    ("ListContainers of the pod", costs((4, 0), (49, 0))),
    ("pod down", costs((267, 92), (617, 116))),
];

const fn costs(calls: (usize, usize), allocations: (usize, usize)) -> Costs {
    Costs {
        calls: Cost { daemon: calls.0, supervisor: calls.1 },
        allocations: Cost { daemon: allocations.0, supervisor: allocations.1 },
    }
}

#[test]
fn a_pod_costs_no_more_than_the_tree_says_whoever_is_there() {
    run_on(Built::copy, async |world| {
        // Pays for whatever only the first pod causes.
        world.client.down(&world.client.run(&world.client.pod("first")).await.unwrap()).await.unwrap();
        world.is_clean().await;
        let alone = least(world, "alone").await;
        println!("beside none {alone:#?}");
        for n in 0..BESIDE {
            let pod = world.client.run(&world.client.pod(&format!("there-{n}"))).await.unwrap();
            world.client.launch(&pod, &world.client.container("main", "sleep 1000")).await.unwrap();
        }
        let beside = least(world, "beside").await;
        println!("beside {BESIDE} {beside:#?}");
        for (what, most) in TREE {
            assert_within(what, "the tree says", alone[what], most);
            assert_within(what, "beside none it took", beside[what], alone[what]);
        }
    });
}

fn assert_within(what: &str, says: &str, took: Costs, most: Costs) {
    let fits = |took: usize, most: usize| 100 * took <= most * (100 + MARGIN_PERCENT);
    let both =
        |took: Cost, most: Cost| fits(took.daemon, most.daemon) && fits(took.supervisor, most.supervisor);
    let all = both(took.calls, most.calls) && both(took.allocations, most.allocations);
    assert!(all, "{what}: {took:?}, and {says} {most:?}");
}

/// The smallest counts over several pods.
async fn least(world: &World, name: &str) -> BTreeMap<&'static str, Costs> {
    let mut meter = Meter::new(world);
    let mut least: BTreeMap<&'static str, Costs> = BTreeMap::new();
    for n in 0..TIMES {
        for (what, costs) in life(&mut meter, &format!("{name}-{n}")).await {
            least.entry(what).and_modify(|known| *known = known.least(costs)).or_insert(costs);
        }
    }
    least
}

/// Counts each part of a pod's life.
async fn life(meter: &mut Meter<'_>, name: &str) -> [(&'static str, Costs); 6] {
    let world = meter.world;
    let before = world.footprint();
    let (pod, run) = meter.of_daemon(async |client| client.run(&client.pod(name)).await.unwrap()).await;
    let supervisor = Supervisor::of(&pod).await.pid();
    let (container, launch) = meter
        .of_both(supervisor, async |client| {
            client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap()
        })
        .await;
    let mut exec: Option<Costs> = None;
    // Which of two messages comes first makes a difference of 5 %.
    for _ in 0..TIMES {
        let ((), costs) = meter
            .of_both(supervisor, async |client| {
                assert_eq!(client.exec(&container, "true", 20).await.unwrap().exit_code, 0);
            })
            .await;
        exec = Some(exec.map_or(costs, |known| known.least(costs)));
    }
    // The first one asks for measurements of writable layers, and waits for them.
    world.client.container_stats(&container).await;
    let ((), container_stats) = meter
        .of_daemon(async |client| {
            client.container_stats(&container).await;
        })
        .await;
    let ((), pod_stats) = meter
        .of_daemon(async |client| {
            client.pod_stats(&pod).await;
        })
        .await;
    let ((), list) = meter.of_daemon(async |client| lists_one(&client, &pod).await).await;
    let (stop, down) = meter
        .of_daemon(async |client| {
            let mut tracer = Tracer::counting(world, supervisor, BY_CHANCE);
            client.stop_container(&container, 0).await.unwrap();
            client.remove_container(&container).await.unwrap();
            tracer.end_all();
            client.down(&pod).await.unwrap();
            // Some of it is removed after the call returns. Processes may differ: there are the tracer, and programs
            // under new names.
            let left =
                || world.footprint().beyond(&before).into_iter().filter(|line| !line.starts_with("process "));
            until("all is gone", async || left().next().is_none().then_some(())).await;
            tracer.count()
        })
        .await;
    [
        ("pod up", run + launch),
        ("ExecSync", exec.unwrap()),
        ("ContainerStats", container_stats),
        ("PodSandboxStats", pod_stats),
        ("ListContainers of the pod", list),
        ("pod down", Costs { calls: Cost { supervisor: stop, ..down.calls }, ..down }),
    ]
}

async fn lists_one(client: &Client, pod: &str) {
    let filter = ContainerFilter { pod_sandbox_id: pod.to_owned(), ..ContainerFilter::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let listed = client.runtime.clone().list_containers(request).await.unwrap().into_inner().containers;
    assert_eq!(listed.len(), 1);
}

/// Counts what the programs do. They are copies that nobody else executes.
struct Meter<'a> {
    world: &'a World,
    daemon: Allocations,
    supervisor: Allocations,
}

impl<'a> Meter<'a> {
    fn new(world: &'a World) -> Self {
        let daemon = Allocations::of(&Built::of(&world.dir).wharfd);
        Self { world, daemon, supervisor: Allocations::of(&world.daemon.supervisors_program()) }
    }

    fn allocations(&mut self) -> Cost {
        Cost { daemon: self.daemon.count(), supervisor: self.supervisor.count() }
    }

    /// Makes a call, and counts what it costs.
    async fn of_both<T>(&mut self, supervisor: i32, call: impl AsyncFn(Client) -> T) -> (T, Costs) {
        let mut tracer = Tracer::counting(self.world, supervisor, BY_CHANCE);
        let (result, mut costs) = self.of_daemon(call).await;
        tracer.end_all();
        costs.calls.supervisor = tracer.count();
        (result, costs)
    }

    /// The same without the supervisor's calls. Those at its beginning cannot be counted, because a program is not
    /// traced when it is executed, nor can those at its end, which its tracer would hide from the daemon.
    async fn of_daemon<T>(&mut self, call: impl AsyncFn(Client) -> T) -> (T, Costs) {
        let before = self.allocations();
        let mut tracer = Tracer::counting(self.world, self.world.daemon.pid().cast_signed(), BY_CHANCE);
        let result = call(self.world.client.clone()).await;
        tracer.end_all();
        let after = self.allocations();
        let allocations =
            Cost { daemon: after.daemon - before.daemon, supervisor: after.supervisor - before.supervisor };
        (result, Costs { calls: Cost { daemon: tracer.count(), supervisor: 0 }, allocations })
    }
}

impl Cost {
    fn least(self, other: Self) -> Self {
        Self { daemon: self.daemon.min(other.daemon), supervisor: self.supervisor.min(other.supervisor) }
    }
}

impl Costs {
    fn least(self, other: Self) -> Self {
        Self { calls: self.calls.least(other.calls), allocations: self.allocations.least(other.allocations) }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { daemon: self.daemon + other.daemon, supervisor: self.supervisor + other.supervisor }
    }
}

impl Add for Costs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, allocations: self.allocations + other.allocations }
    }
}
