# A node of a cluster: wharfd, a kubelet and kube-proxy; sourced by hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig: rig.sh; $plane_address and others: plane.sh; $kubernetes, $programs, $plugins, $suite: hack/cluster

# start_node NAME ADDRESS [COMMAND...]: starts a node whose programs are run by a command, if there is one.
start_node() {
    local name=$1 dir=$rig/$1 within=("${@:3}")
    # Like a default route: without a way to a service's address, the node's own requests end before they are translated.
    "${within[@]}" ip route add "$service_range" dev "uplink$((${name#node} - 1))"
    mkdir -p "$dir/pods" "$dir/manifests" "$dir/logs"
    : >"$dir/resolv.conf"
    wharf_config "$dir" "$plugins"
    mkdir -p "$dir/config.toml.d"
    [[ -n $plugins ]] || printf '[network]\ncluster_subnets = ["%s"]\n' "$pod_range" >"$dir/config.toml.d/cluster.toml"
    # The Node authorizer knows a kubelet by this name, and the API server finds the kubelet at this address.
    user "$name" "/O=system:nodes/CN=system:node:$name" "IP:$2,DNS:$name"
    node_cgroup "$name"
    kubelet_config "$dir" >"$dir/kubelet.json"
    proxy_config "$name" >"$dir/proxy.json"
    keep "$name-wharfd" "${within[@]}" env "PATH=$programs:$PATH" "$programs/wharfd" --config "$dir/config.toml"
    await wharfd 100 test -S "$dir/wharf.sock"
    keep "$name-kubelet" "${within[@]}" "$repository/tests/cluster/tunables.sh" "$dir/tunables" \
        "$kubernetes/kubelet" --config "$dir/kubelet.json" --root-dir "$dir/kubelet" \
        --kubeconfig "$rig/plane/$name.conf" --hostname-override "$name" --node-ip "$2"
    keep "$name-kube-proxy" "${within[@]}" "$kubernetes/kube-proxy" --config "$dir/proxy.json"
}

# second_node: starts a node at the other end of the link, in a network namespace of its own, which has its own 127.0.0.1 and
# so needs a registry of its own there.
second_node() {
    ip netns add node2
    ip link set uplink1 netns node2
    ip -netns node2 link set lo up
    ip -netns node2 address add "$second_address/24" dev uplink1
    ip -netns node2 link set uplink1 up
    local within=(nsenter --net=/run/netns/node2)
    keep node2-registry "${within[@]}" docker-registry serve "$rig/registry/registry.yml"
    start_node node2 "$second_address" "${within[@]}"
}

# connect_nodes: routes each node's pods from the other, as a cloud does.
connect_nodes() {
    ip route add "$(pod_range_of node2)" via "$second_address"
    ip -netns node2 route add "$(pod_range_of node1)" via "$plane_address"
}

pod_range_of() {
    kubectl get node "$1" -o 'jsonpath={.spec.podCIDR}'
}

# node_cgroup NAME: makes the cgroup of a node's pods in every hierarchy; two kubelets in one would take each other's pods for
# remains.
node_cgroup() {
    local type point
    while read -r type _ point _; do
        mkdir -p "$point/$1"
        [[ $type != cgroup2 ]] || pass_controllers "$point/$1"
    done < <(hierarchies)
}

kubelet_config() {
    cat <<CONFIG
{
  "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
  "containerRuntimeEndpoint": "unix://$1/wharf.sock",
  "featureGates": {"PodAndContainerStatsFromCRI": true, "ContainerStopSignals": true},
  "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": "$rig/plane/ca.crt"}},
  "authorization": {"mode": "Webhook"},
  "tlsCertFile": "$rig/plane/${1##*/}.crt", "tlsPrivateKeyFile": "$rig/plane/${1##*/}.key",
  "clusterDNS": ["$dns_address"], "clusterDomain": "cluster.local", "resolvConf": "$1/resolv.conf",
  "staticPodPath": "$1/manifests", "podLogsDir": "$1/pods", "volumePluginDir": "$1/plugins",
  "cgroupRoot": "/${1##*/}", "failSwapOn": false, "failCgroupV1": false, "makeIPTablesUtilChains": false,
  "oomScoreAdj": $(</proc/self/oom_score_adj),
  "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
  "syncFrequency": "10s", "fileCheckFrequency": "2s", "nodeStatusUpdateFrequency": "5s", "serializeImagePulls": false
  $([[ -n $suite ]] || hasty)
}
CONFIG
}

# hasty: prints what keeps the checks short. The end-to-end suite measures the values that Kubernetes has by default.
hasty() {
    cat <<'FIELDS'
, "containerLogMaxSize": "64Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
  "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"}
FIELDS
}

# proxy_config NODE: pods in one bridge answer each other directly, past the translation of a service's address, unless
# kube-proxy makes their requests come from the node.
proxy_config() {
    cat <<CONFIG
{
  "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
  "mode": "nftables", "clusterCIDR": "$pod_range", "hostnameOverride": "$1",
  "clientConnection": {"kubeconfig": "$rig/plane/proxy.conf"},
  "nftables": {"masqueradeAll": $([[ -z $plugins ]] && echo false || echo true), "minSyncPeriod": "100ms", "syncPeriod": "30s"},
  "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
  "oomScoreAdj": $(</proc/self/oom_score_adj)
}
CONFIG
}
