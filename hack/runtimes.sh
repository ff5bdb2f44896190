# The runtimes under test: wharf and containerd, each with all its state in one directory of a rig. To be sourced by bash after
# lib.sh and rig.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $repository, $clients: lib.sh and the caller; $rig: rig.sh

# serve_images IMAGES [PORT]: starts the registry, and sets $certificates to the directory of its hosts.toml files.
serve_images() {
    "$repository/tests/images/serve.sh" "${2-5000}" "$rig/registry" "$1" >/dev/null
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

# start_wharf DIR PROGRAMS [PLUGINS]: starts wharfd with all its state in DIR, and sets $socket and $daemon.
start_wharf() {
    local dir=$1 programs=$2
    wharf_config "$dir" "${3-}"
    socket=$dir/wharf.sock
    PATH=$programs:$PATH setsid "$programs/wharfd" --config "$dir/config.toml" </dev/null >"$dir/daemon.log" 2>&1 &
    daemon=$!
    await_runtime wharfd "$dir"
}

# wharf_config DIR [PLUGINS]: writes a configuration with all of wharfd's state in DIR; if a directory of CNI plugins is given,
# pods are connected by these instead of the built-in network.
wharf_config() {
    local dir=$1 plugins=${2-} builtin=on
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
