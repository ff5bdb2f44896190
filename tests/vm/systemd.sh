# Cgroups that systemd makes, on v2 and on hybrid; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $work: walk.sh; what is in single quotes is for the shells of containers

see_systemd() {
    before_systemd=$(wharf_units)
    see 'wharfd starts with the driver of systemd' with_driver systemd
    see 'a kubelet is told of it' driver_is_told
    see 'a parent that is no slice is refused' refused 'does not end with a slice' \
        pod no-slice '{"linux": {"cgroup_parent": "/kubepods/burstable/pod1"}}'
    see 'a pod has a slice, its container a scope' own_scope
    see "a pod is in the kubelet's slice" kubelet_slice
    see 'limits are below the scope, shares in it' limits_of_scope
    see 'they stay when systemd is loaded anew' scope_outlives_reload
    see 'they are changed in use, and stay' scope_limits_change
    see 'a change that the kernel refuses changes nothing' refused_change_in_scope
    see 'a property that systemd lacks is refused' untold_file
    see 'a command enters the scope of the container, and leaves none' exec_in_scope
    see 'want of memory is reported as OOMKilled' out_of_memory_in_scope
    see 'a scope ends with its container' scope_ends_with_container
    see 'scopes outlive wharfd' scopes_outlive_wharfd
    see 'systemd ends a container as it would a service' stopped_scope
    see 'a call that hangs has an end, and leaves nothing' hanging_systemd
    see 'the bus is called where systemd does not listen itself' through_the_bus
    see 'a daemon that is killed while it makes a container leaves nothing' killed_while_making
    see 'twenty pods, five at once' twenty_pods
    see 'systemd has no unit of pods that are gone' only_the_parent_is_left
    see 'clean leaves no unit' cleaned_units
    see 'wharfd starts with its own driver again' with_driver cgroupfs
}

# with_driver NAME: starts wharfd with that driver.
with_driver() {
    mkdir -p /etc/wharf/config.toml.d
    printf 'cgroup_driver = "%s"\n' "$1" >/etc/wharf/config.toml.d/driver.toml
    [[ $1 != cgroupfs ]] || rm /etc/wharf/config.toml.d/driver.toml
    wharfd config check
    systemctl restart wharfd
    wharf ps
}

driver_is_told() {
    crictl runtime-config | grep -i systemd
}

# wharf_units: prints the names of wharf's scopes and slices.
wharf_units() {
    systemctl list-units --all --plain --no-legend --type scope,slice 'wharf*' 'kubepods*' | awk '{ print $1 }'
}

# unified: prints where v2 is mounted.
unified() {
    if [[ -d /sys/fs/cgroup/unified ]]; then echo /sys/fs/cgroup/unified; else echo /sys/fs/cgroup; fi
}

# path_of PID: prints the path of a process's cgroup.
path_of() {
    sed -n 's/^0:://p' "/proc/$1/cgroup"
}

# scope POD NAME: prints the path of a container's scope.
scope() {
    local path
    path=$(path_of "$(status "$(of "$1" "$2")" .info.pid)")
    echo "${path%%/payload*}"
}

# reads PATH FILE=VALUE FILE_OF_V1=VALUE...: checks files of a cgroup, in pairs; empty where a version has none. The
# directory of a v1 file is that of its first word.
reads() {
    local path=$1 v2 v1
    shift
    while (($#)); do
        v2=$1 v1=$2
        shift 2
        if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
            [[ -z $v2 ]] || holds "/sys/fs/cgroup$path" "$v2"
        else
            [[ -z $v1 ]] || holds "/sys/fs/cgroup/${v1%%.*}$path" "$v1"
        fi
    done
}

own_scope() {
    local id
    pod systemd
    container systemd main '{}'
    id=$(of systemd main)
    [[ $(scope systemd main) = "/wharf.slice/wharf-$(pod_id systemd).slice/wharf-$id.scope" ]]
    [[ $(systemctl is-active "wharf-$id.scope") = active ]]
    [[ $(systemctl show --property Delegate --value "wharf-$id.scope") = yes ]]
    [[ $(inside "$id" cat /proc/self/cgroup) = *0::/exec-* ]]
    crictl stats --output json --id "$id" | jq --exit-status '.stats[0].memory.workingSetBytes.value | tonumber > 0'
    crictl statsp --output json --id "$(pod_id systemd)" |
        jq --exit-status '.stats[0].linux.memory.workingSetBytes.value | tonumber > 0'
}

kubelet_slice() {
    slice=kubepods-burstable-pod0123_4567.slice
    pod kubelets '{"linux": {"cgroup_parent": "/kubepods.slice/kubepods-burstable.slice/'"$slice"'"}}'
    container kubelets inner '{"linux": {"resources": {
        "memory_limit_in_bytes": 67108864, "cpu_quota": 30000, "cpu_period": 100000, "cpu_shares": 512, "cpuset_cpus": "0"}}}'
    [[ $(scope kubelets inner) = "/kubepods.slice/kubepods-burstable.slice/$slice/wharf-$(of kubelets inner).scope" ]]
}

# before a change: what kubelet_slice asked for.
limits_of_scope() {
    local own
    own=$(scope kubelets inner)
    reads "$own" cpu.weight=59 cpu.shares=512
    reads "$own/payload" memory.max=67108864 memory.limit_in_bytes=67108864 \
        'cpu.max=30000 100000' cpu.cfs_quota_us=30000 cpuset.cpus=0 cpuset.cpus=0
    container kubelets protected '{"linux": {"resources": {"memory_limit_in_bytes": 67108864}}}'
    [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || protected_scope
}

protected_scope() {
    container kubelets guarded '{"linux": {"resources": {"memory_limit_in_bytes": 67108864,
        "unified": {"memory.min": "8388608", "memory.low": "16M", "memory.high": "60000000", "memory.oom.group": "1"}}}}'
    holds "/sys/fs/cgroup$(scope kubelets guarded)" memory.min=8388608 memory.low=16777216 pids.max=max memory.max=max
    holds "/sys/fs/cgroup$(scope kubelets guarded)/payload" memory.min=8388608 memory.high=59998208 memory.oom.group=1
}

scope_outlives_reload() {
    systemctl daemon-reload
    systemctl daemon-reexec
    systemd-run --quiet --wait --property CPUWeight=50 --property MemoryMax=50M true
    reads "$(scope kubelets inner)" cpu.weight=59 cpu.shares=512
    reads "$(scope kubelets inner)/payload" memory.max=67108864 memory.limit_in_bytes=67108864 \
        'cpu.max=30000 100000' cpu.cfs_quota_us=30000 cpuset.cpus=0 cpuset.cpus=0
    [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || {
        holds "/sys/fs/cgroup$(scope kubelets guarded)" memory.min=8388608 memory.low=16777216
        holds "/sys/fs/cgroup$(scope kubelets guarded)/payload" memory.oom.group=1 memory.high=59998208
    }
}

scope_limits_change() {
    crictl update --memory 100663296 --cpu-quota 50000 --cpu-share 2048 --cpuset-cpus 1 "$(of kubelets inner)"
    changed_limits
    systemctl daemon-reload
    changed_limits
    systemctl restart wharfd
    changed_limits
}

changed_limits() {
    reads "$(scope kubelets inner)" cpu.weight=174 cpu.shares=2048
    reads "$(scope kubelets inner)/payload" memory.max=100663296 memory.limit_in_bytes=100663296 \
        'cpu.max=50000 100000' cpu.cfs_quota_us=50000 cpuset.cpus=1 cpuset.cpus=1
}

refused_change_in_scope() {
    not crictl update --memory 50331648 --cpu-share 512 --cpuset-cpus 77 "$(of kubelets inner)"
    changed_limits
}

untold_file() {
    [[ -e /sys/fs/cgroup/cgroup.controllers ]] || return 0
    refused 'systemd' container kubelets untold '{"linux": {"resources": {"unified": {"cpu.weight.nice": "5"}}}}'
}

exec_in_scope() {
    local id pid own
    id=$(of kubelets inner)
    own=$(unified)$(scope kubelets inner)/payload
    crictl exec "$id" sleep 123.25 &
    attempt 100 pgrep --full '^sleep 123.25$'
    pid=$(pgrep --full '^sleep 123.25$')
    [[ $(unified)$(path_of "$pid") = "$own"/* ]]
    kill "$pid"
    wait $! || true
    attempt 50 no_children "$own/container"
    not crictl exec --sync --timeout 2 "$id" sleep 4321.5
    not pgrep --full '^sleep 4321.5$'
}

out_of_memory_in_scope() {
    container systemd hungry '{"linux": {"resources": {"memory_limit_in_bytes": 15728640,
        "memory_swap_limit_in_bytes": 15728640}}}' sh -c 'sleep 1; dd if=/dev/zero of=/dev/null bs=20M; exit $?'
    attempt 300 has_exited "$(of systemd hungry)"
    [[ $(status "$(of systemd hungry)" '.status.reason, .status.exitCode') = $'OOMKilled\n137' ]]
}

scope_ends_with_container() {
    local unit
    unit=wharf-$(of systemd hungry).scope
    attempt 50 no_unit "$unit"
    [[ -z $(find /sys/fs/cgroup -type d -name "$unit") ]]
    crictl rm "$(of systemd hungry)"
}

no_unit() {
    [[ -z $(systemctl list-units --all --plain --no-legend "$1") ]]
}

scopes_outlive_wharfd() {
    local id pid
    id=$(of systemd main)
    pid=$(status "$id" .info.pid)
    killed
    [[ $(status "$id" .info.pid) = "$pid" ]]
    [[ $(inside "$id" echo inside) = inside ]]
    systemctl stop wharfd
    kill -KILL "$pid"
    attempt 100 gone "$pid"
    systemctl start wharfd
    [[ $(status "$id" '.status.state, .status.exitCode') = $'CONTAINER_EXITED\n137' ]]
    crictl rm "$id"
    attempt 50 no_unit "wharf-$id.scope"
}

stopped_scope() {
    container systemd stopped '{}' sh -c 'trap "exit 7" TERM; while :; do sleep 0.1; done'
    systemctl stop "wharf-$(of systemd stopped).scope"
    attempt 100 has_exited "$(of systemd stopped)"
    crictl rm "$(of systemd stopped)"
}

# Something else listens where systemd does, and never responds.
hanging_systemd() {
    local units status=0
    units=$(wharf_units | sort)
    jq '.metadata.name = "late"' "$work/systemd-main.json" >"$work/systemd-late.json"
    mv /run/systemd/private /run/systemd/private.away
    systemd-socket-activate --listen /run/systemd/private sleep 100000 &
    attempt 50 test -S /run/systemd/private
    (refused 'systemd did not respond within' crictl create "$(pod_id systemd)" "$work/systemd-late.json" \
        "$work/systemd.json") || status=$?
    kill $!
    mv /run/systemd/private.away /run/systemd/private
    ((status == 0))
    [[ $(wharf_units | sort) = "$units" ]]
    container systemd later '{}'
}

through_the_bus() {
    local status=0
    mv /run/systemd/private /run/systemd/private.away
    container systemd bus '{}' || status=$?
    mv /run/systemd/private.away /run/systemd/private
    ((status == 0))
    [[ $(systemctl is-active "wharf-$(of systemd bus).scope") = active ]]
}

# Kills wharfd at some moments of the making of a container.
killed_while_making() {
    local units delay
    units=$(wharf_units | sort)
    jq '.metadata.name = "killed"' "$work/systemd-bus.json" >"$work/systemd-killed.json"
    for delay in 0.1 0.2 0.4; do
        crictl create "$(pod_id systemd)" "$work/systemd-killed.json" "$work/systemd.json" || true &
        sleep "$delay"
        killed
        wait $! || true
        crictl ps --all --quiet --state created | xargs --no-run-if-empty "$clients/crictl" rm
    done
    attempt 100 units_are "$units"
}

units_are() {
    [[ $(wharf_units | sort) = "$1" ]]
}

twenty_pods() {
    local number began=$SECONDS
    five_at_once loaded_pod
    echo "made in $((SECONDS - began)) s"
    for number in {1..20}; do
        reads "$(scope "load$number" main)" cpu.weight=17 cpu.shares=102
        [[ $(inside "$(of "load$number" main)" echo inside) = inside ]]
    done
    systemctl daemon-reload
    five_at_once remove_pod
    [[ -z $(crictl pods --quiet --name load) ]]
}

# five_at_once COMMAND: executes it for each of twenty pods. With more clients at once on this slow machine, some do not get
# a connection within the time that they have for that. Later checks shall not meet those that are left.
five_at_once() {
    local first number jobs failed=0
    for first in 1 6 11 16; do
        jobs=()
        for ((number = first; number < first + 5; number++)); do
            "$1" "load$number" >"$work/load$number.said" 2>&1 &
            jobs[number]=$!
        done
        for number in "${!jobs[@]}"; do
            wait "${jobs[number]}" || { failed=1 && cat "$work/load$number.said"; }
        done
    done
    ((failed == 0))
}

loaded_pod() {
    pod "$1" '{"linux": {"cgroup_parent": "/kubepods.slice/kubepods-pod'"$1"'.slice"}}'
    container "$1" main '{"linux": {"resources": {"memory_limit_in_bytes": 33554432, "cpu_shares": 102}}}'
}

# The slices that requests named are the kubelet's to end.
only_the_parent_is_left() {
    remove_pod systemd
    remove_pod kubelets
    [[ -z $(find /sys/fs/cgroup -type d -name 'wharf-*.scope' ! -name wharf-supervisors.scope) ]]
    systemctl stop kubepods.slice
    attempt 100 units_are $'wharf-supervisors.scope\nwharf.slice'
}

cleaned_units() {
    systemctl stop wharfd
    wharfd clean --force
    attempt 50 units_are "$before_systemd"
    [[ -z $(find /sys/fs/cgroup -type d -name 'wharf*' ! -path '*/system.slice/wharfd.service') ]]
    not pgrep --full '^wharf-'
}
