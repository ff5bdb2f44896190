# Limits, statistics and device filters of cgroup v2; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $work: walk.sh; what is in single quotes is for the shells of containers

see_cgroups() {
    see 'a container with every limit is made' limited_container
    see 'a container has a cgroup of its own' own_cgroup
    see 'limits are in the files of v2' limits_are_set
    see 'a container sees its limits, and cannot change them' limits_from_inside
    see 'a container that mounts its cgroups lifts no limit' lifts_nothing
    see 'pids.max ends forking' forks_end
    see 'limits stay when systemd is loaded anew' limits_outlive_systemd
    see 'limits are changed in use' limits_change
    see 'a change that the kernel refuses changes nothing' refused_change
    see 'crictl stats are not zero' container_stats
    see 'crictl statsp are not zero' pod_stats
    see 'wharf stats are not zero' own_stats
    see 'a command enters the cgroup of the container, and leaves none' exec_cgroup
    see 'a command that is late is killed' late_command
    see 'want of memory is reported as OOMKilled' out_of_memory 0
    see 'want of memory that ends the whole group too' out_of_memory 1
    see 'a device that was not asked for cannot be opened' device_refused
    see 'a device that was asked for can, as asked' device_asked
    see 'a privileged container opens any device' device_privileged
    see 'device filters stay when wharfd is started again' device_after_restart
    see 'a container manages cgroups below its own, and not its own' managed_cgroup
    see "a container can see the host's cgroups, and change none" hosts_cgroups
    see 'cgroups are gone with containers and pods' cgroups_are_removed
    see "a pod below the kubelet's cgroup stays within it" kubelet_cgroup
}

limited_container() {
    pod cgroups
    container cgroups limited '{"linux": {"resources": {
        "memory_limit_in_bytes": 67108864, "memory_swap_limit_in_bytes": 67108864, "cpu_quota": 20000, "cpu_period": 100000,
        "cpu_shares": 512, "cpuset_cpus": "0", "cpuset_mems": "0", "hugepage_limits": [{"page_size": "2MB", "limit": 0}],
        "unified": {"pids.max": "40", "memory.high": "60000000", "memory.oom.group": "1"}}}}'
}

# directory POD NAME: prints the directory of a container's cgroup. Its processes may be in another one below it.
directory() {
    local of_process
    of_process=$(cgroup_of "$(status "$(of "$1" "$2")" .info.pid)")
    echo "${of_process%/container}"
}

own_cgroup() {
    [[ $(directory cgroups limited) = "/sys/fs/cgroup/wharf/$(pod_id cgroups)/$(of cgroups limited)" ]]
}

# holds DIRECTORY FILE=VALUE...
holds() {
    local directory=$1 pair
    shift
    for pair; do
        [[ $(<"$directory/${pair%%=*}") = "${pair#*=}" ]]
    done
}

limits_are_set() {
    holds "$(directory cgroups limited)" memory.max=67108864 memory.swap.max=0 'cpu.max=20000 100000' cpu.weight=59 \
        cpuset.cpus=0 cpuset.cpus.effective=0 cpuset.mems=0 hugetlb.2MB.max=0 pids.max=40 memory.high=59998208 \
        memory.oom.group=1
}

limits_from_inside() {
    local id
    id=$(of cgroups limited)
    [[ $(inside "$id" cat /sys/fs/cgroup/memory.max) = 67108864 ]]
    not inside "$id" sh -c 'echo max >/sys/fs/cgroup/memory.max'
    [[ $(inside "$id" grep Cpus_allowed_list /proc/self/status) = *[[:space:]]0 ]]
}

# The container has no profiles, and the machine's programs. The kernel keeps it from the files at the root of its cgroup
# namespace, but not in another one that begins further down.
lifts_nothing() {
    local id own
    container cgroups lifts '{"mounts": [{"host_path": "/", "container_path": "/host", "readonly": true}],
        "linux": {"resources": {"memory_limit_in_bytes": 67108864},
            "security_context": {"seccomp": {"profile_type": 1}, "apparmor": {"profile_type": 1}}}}' sh -c 'mkdir /m
        L=/host/lib/x86_64-linux-gnu
        export U="$L/ld-linux-x86-64.so.2 --library-path $L /host/usr/bin/unshare"
        $U -U -r -C -m sh -c "mount -t cgroup2 none /m && cat /m/memory.max && mkdir /m/below &&
            echo \$\$ >/m/below/cgroup.procs && \$U -C sh -c \"echo max >/m/memory.max\""
        exec sleep 1000000'
    id=$(of cgroups lifts)
    attempt 100 runs_sleep "$id"
    own=$(directory cgroups lifts)
    [[ $(crictl logs "$id") = 67108864 ]]
    holds "$own/container" memory.max=max
    holds "$own" memory.max=67108864
    not inside "$id" dd if=/dev/zero of=/dev/null bs=100M count=1
    [[ $(inside "$id" cat /proc/self/cgroup) = 0::/exec-* ]]
    crictl update --memory 100663296 "$id"
    holds "$own/container" memory.max=100663296
    holds "$own" memory.max=100663296
    crictl rm --force "$id"
    [[ ! -e $own ]]
}

runs_sleep() {
    [[ $(tr '\0' ' ' <"/proc/$(status "$1" .info.pid)/cmdline") = 'sleep '* ]]
}

forks_end() {
    refused "can't fork" inside "$(of cgroups limited)" sh -c 'for i in $(seq 60); do sleep 1234.5 & done'
    pkill --full '^sleep 1234.5$'
}

limits_outlive_systemd() {
    systemctl daemon-reload
    systemctl daemon-reexec
    systemd-run --quiet --wait --property CPUWeight=50 --property MemoryMax=50M true
    limits_are_set
}

limits_change() {
    local id
    id=$(of cgroups limited)
    crictl update --memory 100663296 --cpu-quota 50000 --cpu-share 2048 --cpuset-cpus 1 "$id"
    holds "$(directory cgroups limited)" memory.max=100663296 'cpu.max=50000 100000' cpu.weight=174 cpuset.cpus.effective=1 \
        pids.max=40
    [[ $(status "$id" .status.resources.linux.memoryLimitInBytes) = 100663296 ]]
}

refused_change() {
    not crictl update --memory 50331648 --cpuset-cpus 77 "$(of cgroups limited)"
    holds "$(directory cgroups limited)" memory.max=100663296 cpuset.cpus.effective=1
}

container_stats() {
    crictl stats --output json --id "$(of cgroups limited)" >"$work/stats"
    jq --compact-output '.stats[0] | .cpu, .memory' "$work/stats"
    jq --exit-status '.stats[0] | (.cpu.usageCoreNanoSeconds.value | tonumber > 0) and (.memory.workingSetBytes.value | tonumber > 0)
        and (.memory.usageBytes.value | tonumber > 0) and (.memory.availableBytes.value | tonumber > 0)
        and (.memory.pageFaults.value | tonumber > 0) and (.cpu.psi.Some.Total | tonumber > 0)' "$work/stats"
}

pod_stats() {
    crictl statsp --output json --id "$(pod_id cgroups)" >"$work/stats"
    jq --compact-output '.stats[0].linux | del(.containers)' "$work/stats"
    jq --exit-status '
        .stats[0].linux | (.cpu.usageCoreNanoSeconds.value | tonumber > 0)
        and (.memory.workingSetBytes.value | tonumber > 0) and (.process.processCount.value | tonumber > 0)
        and (.network.defaultInterface.name == "eth0") and (.containers | length > 0)' "$work/stats"
}

own_stats() {
    wharf stats
    wharf stats --json | jq --exit-status 'length > 0'
}

exec_cgroup() {
    local id pid own
    id=$(of cgroups limited)
    own=$(directory cgroups limited)
    crictl exec "$id" sleep 123.25 &
    attempt 100 pgrep --full '^sleep 123.25$'
    pid=$(pgrep --full '^sleep 123.25$')
    [[ $(cgroup_of "$pid") = "$own"/* ]]
    kill "$pid"
    wait $! || true
    attempt 50 no_children "$own/container"
}

no_children() {
    [[ -z $(find "$1" -mindepth 1 -type d) ]]
}

late_command() {
    not crictl exec --sync --timeout 2 "$(of cgroups limited)" sleep 4321.5
    not pgrep --full '^sleep 4321.5$'
}

# out_of_memory GROUP: checks that an OOM kill ends the whole container (the kubelet's setting) or one process.
out_of_memory() {
    container cgroups "hungry$1" '{"linux": {"resources": {"memory_limit_in_bytes": 15728640,
        "memory_swap_limit_in_bytes": 15728640, "unified": {"memory.oom.group": "'"$1"'"}}}}' \
        sh -c 'sleep 1; dd if=/dev/zero of=/dev/null bs=20M; exit $?'
    attempt 300 has_exited "$(of cgroups "hungry$1")"
    [[ $(status "$(of cgroups "hungry$1")" '.status.reason, .status.exitCode') = $'OOMKilled\n137' ]]
}

has_exited() {
    [[ $(status "$1" .status.state) = CONTAINER_EXITED ]]
}

# reads_disk CONTAINER: checks that it can read the machine's disk through a device node of its own making.
reads_disk() {
    # shellcheck disable=SC2046 # major and minor are two words
    inside "$1" sh -c "test -e /tmp/disk || mknod /tmp/disk b $(stat -c '%Hr %Lr' /dev/vda)"
    inside "$1" dd if=/tmp/disk of=/dev/null bs=512 count=1
}

device_refused() {
    inside "$(of cgroups limited)" dd if=/dev/zero of=/dev/null bs=512 count=1
    refused 'Operation not permitted' reads_disk "$(of cgroups limited)"
}

device_asked() {
    container cgroups device '{"devices": [{"host_path": "/dev/vda", "container_path": "/dev/disk", "permissions": "r"}]}'
    inside "$(of cgroups device)" dd if=/dev/disk of=/dev/null bs=512 count=1
    refused 'Operation not permitted' inside "$(of cgroups device)" dd if=/dev/zero of=/dev/disk bs=512 count=0
}

device_privileged() {
    pod privileged '{"linux": {"security_context": {"privileged": true}}}'
    container privileged any '{"linux": {"security_context": {"privileged": true}}}'
    reads_disk "$(of privileged any)"
    remove_pod privileged
}

device_after_restart() {
    systemctl restart wharfd
    refused 'Operation not permitted' reads_disk "$(of cgroups limited)"
    crictl update --memory 104857600 "$(of cgroups limited)"
    refused 'Operation not permitted' reads_disk "$(of cgroups limited)"
    inside "$(of cgroups device)" dd if=/dev/disk of=/dev/null bs=512 count=1
}

# moved ID: divides a container's cgroup as an init system would: all processes are in cgroups below, which get controllers.
moved() {
    inside "$1" sh -c 'cd /sys/fs/cgroup && mkdir part && echo 1 >part/cgroup.procs && echo +memory >cgroup.subtree_control &&
        echo 16777216 >part/memory.max && grep -q 1 part/cgroup.procs'
}

managed_cgroup() {
    local id own
    id=$(wharf run --detach --name managed --cgroup-write --memory 64m --user 1000:1000 "$image" sleep 100000)
    own=$(cgroup_of "$(status "$id" .info.pid)")
    [[ $(inside "$id" cat /proc/1/cgroup) = 0::/ ]]
    moved "$id"
    [[ $(<"$own/part/memory.max") = 16777216 ]]
    refused 'ermission denied' inside "$id" sh -c 'echo max >/sys/fs/cgroup/memory.max'
    [[ $(<"$own/memory.max") = 67108864 ]]
    # A command still finds its place, and the figures are those of the whole.
    [[ $(inside "$id" id -u) = 1000 ]]
    crictl stats --output json --id "$id" | jq --exit-status '.stats[0].memory.workingSetBytes.value | tonumber > 0'
    wharf rm --force managed
    [[ ! -e $own ]]
    # The root user of a container is not above the limits of its own cgroup either.
    id=$(wharf run --detach --name managed --cgroup-write --memory 64m "$image" sleep 100000)
    refused 'ermitted' inside "$id" sh -c 'echo max >/sys/fs/cgroup/memory.max'
    moved "$id"
    wharf rm --force managed
}

hosts_cgroups() {
    local id
    id=$(wharf run --detach --name seen --cgroupns host "$image" sleep 100000)
    [[ $(inside "$id" cat /proc/1/cgroup) = 0::/wharf/*/"$id"* ]]
    inside "$id" test -d /sys/fs/cgroup/system.slice
    refused 'Read-only file system' inside "$id" mkdir /sys/fs/cgroup/made
    wharf rm --force seen
    refused 'cgroup_mount_mode' wharf run --rm --cgroupns host --cgroup-write "$image" true
    # No mount has taken the option away from the host's.
    grep --quiet ' - cgroup2 .*nsdelegate' /proc/self/mountinfo
}

cgroups_are_removed() {
    local container pod
    container=$(directory cgroups device)
    pod=${container%/*}
    [[ -d $container ]]
    crictl rm --force "$(of cgroups device)"
    [[ ! -e $container ]]
    remove_pod cgroups
    [[ ! -e $pod ]]
    [[ -z $(find /sys/fs/cgroup/wharf -mindepth 1 -type d -regextype egrep -regex '.*/[0-9a-f]{64}') ]]
}

# The kubelet makes the pod's cgroup before it requests the pod, and removes it afterwards.
kubelet_cgroup() {
    local parent=/kubepods/burstable/pod0123 directory=/sys/fs/cgroup/kubepods/burstable/pod0123 id
    mkdir -p "$directory"
    echo +memory +pids >/sys/fs/cgroup/cgroup.subtree_control
    echo +memory +pids >/sys/fs/cgroup/kubepods/cgroup.subtree_control
    echo +memory +pids >/sys/fs/cgroup/kubepods/burstable/cgroup.subtree_control
    echo 134217728 >"$directory/memory.max"
    echo 100 >"$directory/pids.max"
    pod kubelet '{"linux": {"cgroup_parent": "'"$parent"'"}}'
    container kubelet inner '{"linux": {"resources": {"cpu_quota": 30000, "cpu_period": 100000, "cpuset_cpus": "0"}}}'
    id=$(of kubelet inner)
    [[ $(directory kubelet inner) = "$directory/$id" ]]
    holds "$directory/$id" 'cpu.max=30000 100000' cpuset.cpus.effective=0 memory.max=max
    holds "$directory" memory.max=134217728 pids.max=100
    remove_pod kubelet
    holds "$directory" cgroup.procs= memory.max=134217728
    rmdir "$directory" /sys/fs/cgroup/kubepods/burstable /sys/fs/cgroup/kubepods
}
