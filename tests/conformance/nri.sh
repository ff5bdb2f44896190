# Runs a pod with NRI plugins of others, which the daemon starts; sourced by hack/conformance, which defines crictl, $image,
# check and $programs.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig: rig.sh; $socket: runtimes.sh; $programs, $plugins, $reports: hack/conformance; $image: smoke.sh

# nri_plugins DIR: runs them from DIR; prints failures and a count, and fails if there were any.
nri_plugins() {
    local passed=0 failed=0 dir=$rig/nri pod container
    mkdir -p "$dir/logs" "$dir/nri/plugins" "$dir/nri/conf.d"
    cp "$1/logger" "$dir/nri/plugins/10-logger"
    cp "$1/device-injector" "$dir/nri/plugins/20-device-injector"
    cp "$1/hook-injector" "$dir/nri/plugins/30-hook-injector"
    echo "{\"logFile\": \"$dir/events\", \"events\": [\"all\"]}" >"$dir/nri/conf.d/logger.conf"
    nri_pod "$dir"
    start_wharf "$dir" "$programs" "$plugins"
    trap 'cp "$rig/wharf/daemon.log" "$reports/"; cp "$rig/nri/daemon.log" "$reports/nri.log"' EXIT
    # This one wants to know where the socket is, and a file instead of an API server.
    echo '{}' >"$dir/template.yaml"
    "$1/template" -nri-socket "$dir/nri.sock" -nri-plugin-index 90 -nri-plugin-name template \
        -config-file "$dir/template.yaml" -state-dir "$dir/template" -pid-file "$dir/template.pid" \
        </dev/null >"$reports/template.log" 2>&1 &
    attempt 100 connected "$dir" || say "not all plugins are connected"
    check 'nri pull' '' crictl pull "$image"
    check 'nri runp' '' crictl runp "$dir/pod.json"
    pod=$(<"$dir/out")
    check 'nri create' '' crictl create "$pod" "$dir/container.json" "$dir/pod.json"
    container=$(<"$dir/out")
    check 'nri start' '' crictl start "$container"
    check 'nri device' 'test("1:3")' crictl exec --sync "$container" stat -c %t:%T /dev/injected
    check 'nri stopp' '' crictl stopp "$pod"
    check 'nri rmp' '' crictl rmp "$pod"
    local event
    for event in Synchronize RunPodSandbox CreateContainer PostCreateContainer StartContainer PostStartContainer \
        StopContainer RemoveContainer StopPodSandbox RemovePodSandbox; do
        check "nri logger: $event" '' grep -q "$event" "$dir/events"
    done
    check 'nri all connected' '' connected "$dir"
    check 'nri none gone' 'test("^0")' gone_plugins "$dir"
    stop_runtime
    echo "NRI plugins of others on wharf:"
    echo "$passed passed, $failed failed"
    ((failed == 0))
}

# connected DIR: whether all four are connected.
connected() {
    [[ $(grep -c 'an NRI plugin is connected' "$1/daemon.log") = 4 ]]
}

# gone_plugins DIR: prints how many are gone.
gone_plugins() {
    grep -c 'an NRI plugin is gone' "$1/daemon.log" || true
}

# nri_pod DIR: writes the requests for a pod with what the device injector is to inject, and for its container.
nri_pod() {
    cat >"$1/pod.json" <<CONFIG
{"metadata": {"name": "nri", "namespace": "default", "uid": "nri-1", "attempt": 0},
 "hostname": "nri", "log_directory": "$1/logs", "linux": {"cgroup_parent": "/nri"},
 "annotations": {"devices.noderesource.dev/container.main": "- path: /dev/injected\\n  type: c\\n  major: 1\\n  minor: 3\\n"}}
CONFIG
    cat >"$1/container.json" <<CONFIG
{"metadata": {"name": "main", "attempt": 0}, "image": {"image": "$image"}, "log_path": "nri.log",
 "command": ["sleep", "1000"], "linux": {}}
CONFIG
}
