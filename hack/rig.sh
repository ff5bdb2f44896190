# The rig: an isolated environment for a runtime under test. To be sourced by bash after lib.sh.
#
# A rig has its own network, mounts (one peer group, so that propagation can be tested), PID and IPC namespaces, cgroups and
# /run. However it ends, only files below $rig outlive it: processes die with their PID namespace; mounts, links and
# addresses disappear with their namespaces; the cgroups are all below one that this file removes.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $cache, $program: lib.sh

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

# serve_images IMAGES: starts the registry, and sets $certificates to the directory of its hosts.toml files.
serve_images() {
    "$repository/tests/images/serve.sh" 5000 "$rig/registry" "$1" >/dev/null
    certificates=$rig/registry/certs.d
}

# start_containerd DIR PEERS: starts containerd with all its state in DIR, and sets $socket and $daemon.
start_containerd() {
    local dir=$1 peers=$2
    mkdir -p "$dir/cni"
    cni_network "$dir" >"$dir/cni/10-bridge.conflist"
    containerd_config "$dir" "$peers" >"$dir/config.toml"
    socket=$dir/containerd.sock
    PATH=$peers:$PATH setsid "$peers/containerd" --config "$dir/config.toml" </dev/null >"$dir/daemon.log" 2>&1 &
    daemon=$!
    await_runtime containerd "$dir"
}

containerd_config() {
    cat <<CONFIG
version = 3
root = "$1/root"
state = "$1/state"
imports = []

[grpc]
address = "$1/containerd.sock"

[plugins.'io.containerd.internal.v1.opt']
path = "$1/opt"

[plugins.'io.containerd.nri.v1.nri']
socket_path = "$1/nri.sock"
plugin_path = "$1/nri/plugins"
plugin_config_path = "$1/nri/conf.d"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10"

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "$certificates"

[plugins.'io.containerd.cri.v1.runtime']
# Some environments do not let root lower oom_score_adj.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["$2/cni"]
conf_dir = "$1/cni"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
CONFIG
}

# cni_network DIR: prints the configuration of a network that stores its addresses in DIR.
cni_network() {
    cat <<CONFIG
{
  "cniVersion": "1.0.0",
  "name": "rig",
  "plugins": [
    {
      "type": "bridge", "bridge": "rig0", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$1/addresses",
        "ranges": [[{"subnet": "10.86.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "snat": true, "backend": "nftables", "capabilities": {"portMappings": true}}
  ]
}
CONFIG
}

# start_wharf DIR PROGRAMS [PLUGINS]: starts wharfd with all its state in DIR, with these CNI plugins instead of the built-in
# network if they are given, and sets $socket and $daemon.
start_wharf() {
    local dir=$1 programs=$2 plugins=${3-} builtin=on
    mkdir -p "$dir/cni"
    [[ -z $plugins ]] || builtin=off
    [[ -z $plugins ]] || cni_network "$dir" >"$dir/cni/10-bridge.conflist"
    cat >"$dir/config.toml" <<CONFIG
root = "$dir/root"
state = "$dir/state"
socket = "$dir/wharf.sock"

[registry]
certs_dir = "$certificates"

[network]
# Whatever signs of a cluster's node this machine shows.
builtin = "$builtin"
cni_conf_dir = "$dir/cni"
cni_bin_dirs = [${plugins:+"\"$plugins\""}]

[nri]
socket = "$dir/nri.sock"
plugin_dir = "$dir/nri/plugins"
plugin_config_dir = "$dir/nri/conf.d"
CONFIG
    socket=$dir/wharf.sock
    PATH=$programs:$PATH setsid "$programs/wharfd" --config "$dir/config.toml" </dev/null >"$dir/daemon.log" 2>&1 &
    daemon=$!
    await_runtime wharfd "$dir"
}

# await_runtime NAME DIR: waits until the runtime and its network are ready; after 20 s prints the end of its log and dies.
await_runtime() {
    local name=$1
    if ! attempt 200 ready_or_gone || ! ready; then
        tail -n 20 "$2/daemon.log" >&2
        die "$name is not ready; the end of its log is above"
    fi
}

ready_or_gone() {
    gone || ready
}

gone() {
    ! kill -0 "$daemon"
}

ready() {
    [[ -S $socket ]] && crictl info --output json | jq --exit-status '[.status.conditions[] | select(.type == "RuntimeReady" or .type == "NetworkReady").status] == [true, true]' >/dev/null
}

# crictl ARGUMENT...: runs crictl with the runtime that was started last.
crictl() {
    "$clients/crictl" --config <(printf '%s-endpoint: "unix://%s"\n' runtime "$socket" image "$socket"; echo 'timeout: 60') "$@"
}

# stop_runtime: asks the daemon to exit, and waits.
stop_runtime() {
    kill "$daemon" 2>/dev/null || return 0
    attempt 100 gone || kill -KILL "$daemon"
    wait "$daemon" 2>/dev/null || true
}
