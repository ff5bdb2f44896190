# Containers that Debian's runc and crun make, on v2 and, runc alone, on hybrid; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $work: walk.sh; what is in single quotes is for the shells of containers

see_handlers() {
    local driver runtime runtimes=(runc crun)
    # crun refuses to work where v2 has controllers beside v1.
    [[ -e /sys/fs/cgroup/cgroup.controllers ]] || runtimes=(runc)
    see 'runc and crun are handlers' with_runtimes
    for driver in cgroupfs systemd; do
        see "wharfd has the driver $driver" with_driver "$driver"
        for runtime in "${runtimes[@]}"; do
            handler=$runtime
            see "$runtime, $driver: a pod and a container are made" made_by_runtime
            see "$runtime, $driver: its limits are in its cgroup" limits_by_runtime
            see "$runtime, $driver: a container sees its limits, and no other cgroup" cgroup_inside_runtime
            see "$runtime, $driver: a command is in the cgroup, and leaves none" command_by_runtime
            see "$runtime, $driver: limits are changed in use" changed_by_runtime
            see "$runtime, $driver: statistics are not zero" statistics_by_runtime
            see "$runtime, $driver: a device that was not asked for cannot be opened" refused 'Operation not permitted' \
                reads_disk "$(of "$runtime" main)"
            see "$runtime, $driver: it outlives wharfd and a systemd that is loaded anew" outlives_by_runtime
            see "$runtime, $driver: want of memory is reported as OOMKilled" hungry_by_runtime
            see "$runtime, $driver: a container is stopped and removed" stopped_by_runtime
            see "$runtime, $driver: a pod is removed, and leaves nothing" removed_by_runtime
            handler=
        done
    done
    see 'wharfd has no handlers again' without_runtimes
}

with_runtimes() {
    mkdir -p /etc/wharf/config.toml.d
    printf '[handlers.runc]\npath = "/usr/sbin/runc"\n[handlers.crun]\npath = "/usr/bin/crun"\n' \
        >/etc/wharf/config.toml.d/handlers.toml
    wharfd config check
    systemctl restart wharfd
    crictl info | jq --exit-status '[.runtimeHandlers[].name] | contains(["crun", "runc"])'
}

without_runtimes() {
    rm -f /etc/wharf/config.toml.d/handlers.toml
    # What systemd has for wharf is known to a wharfd with that driver alone.
    systemctl stop wharfd
    wharfd clean
    with_driver cgroupfs
}

made_by_runtime() {
    pod "$handler"
    container "$handler" main '{"linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_quota": 20000,
        "cpu_period": 100000, "cpu_shares": 512, "cpuset_cpus": "0", "unified": {}}}}' \
        sh -c 'trap "exit 3" TERM; echo out; while :; do sleep 0.1; done'
    [[ -d /run/wharf/pods/$(pod_id "$handler")/runtime/state/$(of "$handler" main) ]]
    [[ $(status "$(of "$handler" main)" .status.state) = CONTAINER_RUNNING ]]
    attempt 50 has_written
}

has_written() {
    [[ $(crictl logs "$(of "$handler" main)") = out ]]
}

# cgroup_by_runtime: prints the path of the cgroup with the container's limits.
cgroup_by_runtime() {
    local path
    path=$(path_of "$(status "$(of "$handler" main)" .info.pid)")
    echo "${path%/container}"
}

limits_by_runtime() {
    local own
    own=$(cgroup_by_runtime)
    [[ $own = */"$(of "$handler" main)" || $own = *"/wharf-$(of "$handler" main).scope/payload" ]]
    reads "$own" memory.max=67108864 memory.limit_in_bytes=67108864 'cpu.max=20000 100000' cpu.cfs_quota_us=20000 \
        cpuset.cpus=0 cpuset.cpus=0
    reads "${own%/payload}" cpu.weight=59 cpu.shares=512
}

cgroup_inside_runtime() {
    local id
    id=$(of "$handler" main)
    if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
        [[ $(inside "$id" cat /sys/fs/cgroup/memory.max) = 67108864 ]]
        not inside "$id" sh -c 'echo max >/sys/fs/cgroup/memory.max'
    else
        [[ $(inside "$id" cat /sys/fs/cgroup/memory/memory.limit_in_bytes) = 67108864 ]]
        not inside "$id" sh -c 'echo -1 >/sys/fs/cgroup/memory/memory.limit_in_bytes'
    fi
    in_every "$handler" main "$(status "$id" .info.pid)"
    # The first process there is the pod's, which is not in the container's cgroup.
    not inside "$id" grep -F /.. /proc/self/cgroup
    [[ $(inside "$id" grep Cpus_allowed_list /proc/self/status) = *[[:space:]]0 ]]
}

command_by_runtime() {
    local id own pid status=0
    id=$(of "$handler" main)
    own=$(cgroup_by_runtime)
    [[ $(inside "$id" echo inside) = inside ]]
    crictl exec "$id" sh -c 'exit 5' || status=$?
    ((status != 0))
    crictl exec "$id" sleep 123.75 &
    attempt 100 pgrep --full '^sleep 123.75$'
    pid=$(pgrep --full '^sleep 123.75$')
    [[ $(path_of "$pid") = "$own"/* ]]
    kill "$pid"
    wait $! || true
    attempt 50 no_children "$(unified)$(path_of "$(status "$id" .info.pid)")"
}

changed_by_runtime() {
    crictl update --memory 100663296 --cpu-quota 50000 --cpu-share 2048 --cpuset-cpus 1 "$(of "$handler" main)"
    changed_limits_by_runtime
}

changed_limits_by_runtime() {
    local own
    own=$(cgroup_by_runtime)
    reads "$own" memory.max=100663296 memory.limit_in_bytes=100663296 'cpu.max=50000 100000' cpu.cfs_quota_us=50000 \
        cpuset.cpus=1 cpuset.cpus=1
    reads "${own%/payload}" cpu.weight=174 cpu.shares=2048
}

statistics_by_runtime() {
    crictl stats --output json --id "$(of "$handler" main)" >"$work/stats"
    jq --compact-output '.stats[0] | .cpu, .memory' "$work/stats"
    jq --exit-status '.stats[0] | (.cpu.usageCoreNanoSeconds.value | tonumber > 0)
        and (.memory.workingSetBytes.value | tonumber > 0)' "$work/stats"
}

outlives_by_runtime() {
    local id pid
    id=$(of "$handler" main)
    pid=$(status "$id" .info.pid)
    systemctl daemon-reload
    systemctl daemon-reexec
    systemd-run --quiet --wait --property CPUWeight=50 --property MemoryMax=50M true
    killed
    [[ $(status "$id" .info.pid) = "$pid" ]]
    [[ $(inside "$id" echo inside) = inside ]]
    changed_limits_by_runtime
    refused 'Operation not permitted' reads_disk "$id"
}

hungry_by_runtime() {
    container "$handler" hungry '{"linux": {"resources": {"memory_limit_in_bytes": 15728640,
        "memory_swap_limit_in_bytes": 15728640}}}' sh -c 'sleep 1; dd if=/dev/zero of=/dev/null bs=20M; exit $?'
    attempt 300 has_exited "$(of "$handler" hungry)"
    [[ $(status "$(of "$handler" hungry)" '.status.reason, .status.exitCode') = $'OOMKilled\n137' ]]
}

stopped_by_runtime() {
    local id
    id=$(of "$handler" main)
    crictl stop --timeout 30 "$id"
    [[ $(status "$id" '.status.state, .status.exitCode') = $'CONTAINER_EXITED\n3' ]]
    crictl rm "$id"
    [[ ! -e /run/wharf/pods/$(pod_id "$handler")/runtime/state/$id ]]
    attempt 50 no_cgroup "$id"
}

removed_by_runtime() {
    remove_pod "$handler"
    attempt 50 no_cgroup "$(pod_id "$handler")"
    attempt 50 no_cgroup "$(of "$handler" hungry)"
    [[ ! -e /run/wharf/pods/$(pod_id "$handler") ]]
    not pgrep --exact "$handler"
    [[ $handler != runc || -z $(find /run -maxdepth 1 -name runc) ]]
}
