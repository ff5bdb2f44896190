# The rig: an isolated environment for a runtime under test. To be sourced by bash after lib.sh.
#
# A rig has its own network, mounts (one peer group, so that propagation can be tested), PID and IPC namespaces, cgroups and
# /run. However it ends, only files below $rig outlive it: processes die with their PID namespace; mounts, links and
# addresses disappear with their namespaces; the cgroups are all below one that this file removes.
# shellcheck shell=bash

# isolate ARGUMENT...: runs the calling script again, with these arguments, inside a rig. It returns only inside, where $rig
# is an empty directory for state.
isolate() {
    if [[ -n ${WHARF_RIG-} ]]; then
        rig=$WHARF_RIG
        settle
        return
    fi
    ((EUID == 0)) || die "needs root: it makes namespaces, mounts and cgroups"
    rig=$(mktemp --directory --tmpdir wharf-rig.XXXXXX)
    # The root user of a user namespace must be able to traverse it to a container's root directory.
    chmod 0711 "$rig"
    cgroups=()
    trap 'leave' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    make_cgroups
    # Only the child enters the cgroups: v2 passes controllers on only if every process is in an inner cgroup.
    # shellcheck disable=SC2016 # for the shell inside
    local enter='until [[ $1 = -- ]]; do echo 0 >"$1/cgroup.procs"; shift; done; shift; exec unshare --cgroup "$0" "$@"'
    (
        WHARF_RIG=$rig exec setpriv --pdeathsig KILL \
            unshare --net --mount --pid --ipc --fork --kill-child --mount-proc \
            bash -e -c "$enter" "$0" "${cgroups[@]}" -- "$@"
    ) &
    rig_pid=$!
    # For those who join its namespaces from outside.
    echo "$rig_pid" >"$rig/pid"
    local status=0
    wait "$rig_pid" || status=$?
    exit "$status"
}

# leave: cleans up outside the rig, however the rig ended.
leave() {
    local cgroup
    if [[ -n ${rig_pid-} ]] && kill -KILL "$rig_pid" 2>/dev/null; then
        wait "$rig_pid" 2>/dev/null || true
    fi
    for cgroup in "${cgroups[@]}"; do
        # A killed process leaves its cgroup a moment after its parent has been notified.
        attempt 50 remove_cgroup "$cgroup" || say "cannot remove the cgroup $cgroup"
    done
    rm -rf --one-file-system "$rig"
}

remove_cgroup() {
    [[ ! -d $1 ]] || find "$1" -depth -type d -exec rmdir {} +
}

# hierarchies: prints a line for each mounted cgroup hierarchy: type, v1 options, mount point, this process's path in it.
hierarchies() {
    local _ point fields type options path
    while read -r _ _ _ _ point fields; do
        read -r type _ options <<<"${fields#* - }"
        case $type in
            cgroup2) path=$(sed -n 's/^0:://p' /proc/self/cgroup) options=- ;;
            cgroup)
                options=$(tr , '\n' <<<"$options" | grep -vxE 'rw|ro|xattr|clone_children|release_agent=.*' | paste -sd,)
                path=$(awk -F: -v want="$options" '$2 == want { print $3 }' /proc/self/cgroup)
                ;;
            *) continue ;;
        esac
        echo "$type $options $point $path"
    done </proc/self/mountinfo
}

# make_cgroups: makes a cgroup for the rig in every hierarchy, and lists them in $cgroups.
make_cgroups() {
    local type options point path cgroup parent
    while read -r type options point path; do
        parent=$point$path
        # In v2 only a cgroup without processes passes controllers on; the root is exempt.
        [[ $type != cgroup2 ]] || parent=$point
        cgroup=${parent%/}/${rig##*/}
        [[ $type != cgroup2 ]] || pass_controllers "$parent"
        mkdir "$cgroup"
        cgroups+=("$cgroup")
        [[ ,$options, != *,cpuset,* ]] || cp_values "$parent" "$cgroup" cpuset.cpus cpuset.mems
    done < <(hierarchies)
}

# cp_values FROM TO FILE...: copies the values without which a v1 cpuset accepts no process.
cp_values() {
    local from=$1 to=$2 file
    shift 2
    for file; do cat "$from/$file" >"$to/$file"; done
}

# pass_controllers CGROUP: enables controllers for its children, one by one, because one failure would spoil the others.
pass_controllers() {
    local controller
    for controller in $(<"$1/cgroup.controllers"); do
        (echo "+$controller" >"$1/cgroup.subtree_control") 2>/dev/null || true
    done
}

# settle: sets up the inside of the rig, before anything else.
settle() {
    local type options point kept
    trap 'exit 143' INT TERM HUP
    mount --make-rshared /
    ip link set lo up
    mount -t tmpfs -o mode=0755 tmpfs /run
    mkdir -p /run/lock

    # Newly mounted, the hierarchies have the rig's own cgroups as their roots. The old mounts must go, because runtimes use
    # the first mount that they find.
    mapfile -t kept < <(hierarchies)
    umount --recursive /sys/fs/cgroup
    for point in "${kept[@]}"; do
        read -r type options point _ <<<"$point"
        [[ $point = /sys/fs/cgroup || $(stat -f -c %T /sys/fs/cgroup) = tmpfs ]] ||
            mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
        mkdir -p "$point"
        case $type in
            cgroup) mount -t cgroup -o "$options" cgroup "$point" ;;
            cgroup2)
                mount -t cgroup2 cgroup2 "$point"
                mkdir "$point/rig"
                echo $$ >"$point/rig/cgroup.procs"
                pass_controllers "$point"
                ;;
        esac
    done
}

# own_var: from now on, whatever is written below /var/lib and /var/log disappears with the rig.
own_var() {
    local directory
    for directory in lib log; do
        mkdir -p "$rig/$directory"/{upper,work}
        mount -t overlay overlay -o "lowerdir=/var/$directory,upperdir=$rig/$directory/upper,workdir=$rig/$directory/work" \
            "/var/$directory"
    done
}

# uplink: gives the rig a link with an address of its own, as a node has one before it has pods. Without one, the kernel
# looks for an address on every link when it adds the route to a pod.
uplink() {
    ip link add uplink0 type veth peer name uplink1
    ip address add 192.0.2.1/24 dev uplink0
    ip link set uplink1 up
    ip link set uplink0 up
}
