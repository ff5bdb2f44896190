# What a node does to its pods, and what it tells of them; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh; $rig, $place: hack/cluster; $plane_address: plane.sh

# limit FILE-V2 FILE-V1: prints a limit of a pod's container, as it sees it itself.
limit() {
    k exec main -- sh -c "cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2"
}

check_resize() {
    pod main "$idle" '"resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}'
    ready main
    has '^67108864$' limit memory.max memory/memory.limit_in_bytes
    k patch pod main --subresource=resize --patch '{"spec": {"containers": [{"name": "main",
        "resources": {"requests": {"cpu": "80m", "memory": "48Mi"}, "limits": {"cpu": "200m", "memory": "96Mi"}}}]}}'
    eventually 40 has '^100663296$' limit memory.max memory/memory.limit_in_bytes
    eventually 10 has '^20000( 100000)?$' limit cpu.max cpu/cpu.cfs_quota_us
    eventually 40 has '^96Mi$' field pod/main '.status.containerStatuses[0].resources.limits.memory'
    has '^0$' field pod/main '.status.containerStatuses[0].restartCount'
}

check_eviction() {
    servers web 2
    k create poddisruptionbudget web --selector=app=web --min-available=2
    eventually 20 has '^2$' field poddisruptionbudget/web .status.currentHealthy
    local name
    name=$(field pods '.items[0].metadata.name')
    fails evict "$name"
    k patch poddisruptionbudget web --patch '{"spec": {"minAvailable": 1}}'
    eventually 20 evict "$name"
    k wait --for=delete "pod/$name" --timeout=30s
    k rollout status deployment/web --timeout=60s
}

evict() {
    kubectl create --raw "/api/v1/namespaces/$namespace/pods/$1/eviction" -f - <<JSON
{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "$1", "namespace": "$namespace"}}
JSON
}

check_eviction_by_size() {
    pod fat "head -c 8000000 /dev/zero >/disk/file; $idle" '"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]' \
        '"volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "2Mi"}}]'
    pod fatter "head -c 8000000 /dev/zero >/file; $idle" '"resources": {"limits": {"ephemeral-storage": "2Mi"}}'
    k wait --for=jsonpath='{.status.reason}'=Evicted --timeout=90s pod/fat
    k wait --for=jsonpath='{.status.reason}'=Evicted --timeout=90s pod/fatter
}

check_static_pod() {
    local manifest=$rig/node1/manifests/static.json
    cat >"$manifest" <<JSON
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static", "namespace": "$namespace"},
 "spec": {"terminationGracePeriodSeconds": 1, "containers": [$(container main "echo static; $idle")]}}
JSON
    eventually 30 k get pod static-node1
    ready static-node1
    has '^static$' k logs static-node1
    sed -i 's/echo static/echo changed/' "$manifest"
    eventually 40 has '^changed$' k logs static-node1
    rm "$manifest"
    k wait --for=delete pod/static-node1 --timeout=40s
}

check_stats() {
    pod busy "ping -c 1 $plane_address; while :; do :; done" '"resources": {"limits": {"cpu": "100m", "memory": "64Mi"}}'
    ready busy
    eventually 30 summary '.cpu.usageNanoCores > 10000000 and .cpu.usageNanoCores < 200000000 and .memory.workingSetBytes > 0'
    eventually 30 summary '.network.rxBytes > 0 and .process_stats.process_count >= 1'
    eventually 30 summary '.containers[0] | .name == "main" and .cpu.usageCoreNanoSeconds > 0 and .rootfs.usedBytes > 0 and .logs.usedBytes >= 0'
    kubectl get --raw /api/v1/nodes/node1/proxy/stats/summary | jq --exit-status '.node | .cpu.usageNanoCores > 0 and .memory.availableBytes > 0
        and .fs.availableBytes > 0 and .runtime.imageFs.usedBytes > 0 and .runtime.containerFs.usedBytes > 0'
}

# summary FILTER: whether it holds of the pod busy in the node's statistics.
summary() {
    kubectl get --raw /api/v1/nodes/node1/proxy/stats/summary |
        jq --exit-status --arg namespace "$namespace" ".pods[] | select(.podRef.name == \"busy\" and .podRef.namespace == \$namespace) | $1"
}

check_metrics() {
    pod busy "$idle"
    ready busy
    local name
    for name in container_cpu_usage_seconds_total container_memory_working_set_bytes container_network_receive_bytes_total \
        container_fs_usage_bytes container_processes container_start_time_seconds; do
        eventually 30 has "^$name\{.*namespace=\"$namespace\".*pod=\"busy\"" metrics cadvisor
    done
    eventually 30 has "^container_cpu_usage_seconds_total\{container=\"main\",namespace=\"$namespace\",pod=\"busy\"" metrics resource
    has '^node_cpu_usage_seconds_total [1-9]' metrics resource
}

# metrics WHICH: prints the node's, without those of other namespaces, which would be much.
metrics() {
    kubectl get --raw "/api/v1/nodes/node1/proxy/metrics/$1" | grep -E "^node_|namespace=\"$namespace\""
}

check_quality() {
    pod best "$idle"
    pod burstable "$idle" '"resources": {"requests": {"memory": "16Mi"}}'
    pod guaranteed "$idle" '"resources": {"limits": {"cpu": "50m", "memory": "16Mi"}}'
    ready best burstable guaranteed
    has '^BestEffort$' field pod/best .status.qosClass
    has '^1000$' k exec best -- cat /proc/1/oom_score_adj
    has '^Burstable$' field pod/burstable .status.qosClass
    has '^Guaranteed$' field pod/guaranteed .status.qosClass
    pod overloaded "$idle" '"resources": {"requests": {"cpu": "1000"}}'
    eventually 20 has 'Insufficient cpu' k events
}

check_node_status() {
    has "$busybox|busybox" kubectl get node node1 -o 'jsonpath={.status.images}'
    has '"pods":"110"' kubectl get node node1 -o 'jsonpath={.status.allocatable}'
}

alone_drain() {
    # Its pods have nowhere else to go.
    [[ ! -e $rig/node2 ]] || kubectl cordon node2
    servers web 2
    kubectl drain node1 --pod-selector=app=web --timeout=60s
    has SchedulingDisabled kubectl get node node1
    eventually 20 has '^2$' sh -c "$(declare_k) get pods --field-selector status.phase=Pending --no-headers | wc -l"
    kubectl uncordon node1
    k rollout status deployment/web --timeout=60s
    [[ ! -e $rig/node2 ]] || kubectl uncordon node2
}

alone_all_drained() {
    servers web 2
    kubectl drain node1 --ignore-daemonsets --delete-emptydir-data --force --timeout=120s
    kubectl uncordon node1
    k rollout status deployment/web --timeout=60s
    kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s
}

# killed NAME: kills a service, and waits for the one that comes after it.
killed() {
    local old
    old=$(<"$rig/run/$1")
    enter_processes kill -KILL "$old"
    eventually 10 fails grep -qx "$old" "$rig/run/$1"
}

enter_processes() {
    local pid
    pid=$(<"$rig/pid")
    nsenter --pid="/proc/$pid/ns/pid_for_children" --mount="/proc/$pid/ns/mnt" -- "$@"
}

alone_runtime_killed() {
    local before
    # shellcheck disable=SC2016 # for the container's shell
    pod main 'i=0; while :; do i=$((i + 1)); echo line $i; sleep 0.1; done'
    ready main
    before=$(field pod/main '.status.containerStatuses[0].containerID')
    killed node1-wharfd
    eventually 30 k exec main -- true
    sleep 6
    kubectl wait --for=condition=Ready --timeout=30s node/node1
    has "^$before 0$" field pod/main '.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount'
    k logs main | awk '$2 != last + 1 { exit 1 } { last = $2 }'
    pod later "$idle"
    ready later
}

alone_kubelet_killed() {
    local before
    pod main "$idle"
    ready main
    before=$(field pod/main '.status.containerStatuses[0].containerID')
    killed node1-kubelet
    pod later "$idle"
    ready later
    has "^$before 0$" field pod/main '.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount'
}
