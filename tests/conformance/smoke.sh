# Runs crictl's commands one by one; sourced by hack/conformance, which defines crictl, $rig and $runtime.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig, $runtime: rig.sh

image=docker.io/library/busybox:latest

# smoke: prints failures and a count, and fails if there were any.
smoke() {
    local passed=0 failed=0 pod container dir=$rig/smoke
    mkdir -p "$dir/logs"
    smoke_configs "$dir"
    check version 'test("RuntimeApiVersion: *v1")' crictl version
    check info '.status.conditions | length >= 2' crictl info
    check pull '' crictl pull "$image"
    check images '[.images[].repoTags[]] | index("'"$image"'")' crictl images --output json
    check inspecti '.status.id | startswith("sha256:")' crictl inspecti "$image"
    check imagefsinfo '.status.imageFilesystems[0].fsId.mountpoint | startswith("/")' crictl imagefsinfo --output json
    check runp '' crictl runp "$dir/pod.json"
    pod=$(<"$dir/out")
    check pods '.items | length == 1' crictl pods --id "$pod" --state ready --output json
    check inspectp '.status.network.ip | test("^[0-9.]+$")' crictl inspectp "$pod"
    check create '' crictl create "$pod" "$dir/container.json" "$dir/pod.json"
    container=$(<"$dir/out")
    check start '' crictl start "$container"
    check ps '.containers | length == 1' crictl ps --id "$container" --output json
    check inspect '.status.state == "CONTAINER_RUNNING"' crictl inspect "$container"
    check 'exec --sync' 'test("inside")' crictl exec --sync "$container" echo inside
    check exec 'test("inside")' crictl exec "$container" echo inside
    if [[ $runtime = wharf ]]; then
        # No other runtime supports crictl's protocol over WebSocket.
        check 'exec, websocket' 'test("inside")' crictl exec --transport websocket "$container" echo inside
    fi
    check 'exec, input' 'test("^ *3")' crictl_input "$container" wc -l
    check logs 'test("hello from the container")' eventually crictl logs "$container"
    check stats '.stats[0].memory.workingSetBytes.value | tonumber > 0' crictl stats --id "$container" --output json
    check statsp '.stats[0].attributes.id == "'"$pod"'"' crictl statsp --id "$pod" --output json
    check update '' crictl update --memory 67108864 "$container"
    check stop '' crictl stop --timeout 5 "$container"
    check 'inspect, stopped' '.status.state == "CONTAINER_EXITED"' crictl inspect "$container"
    check rm '' crictl rm "$container"
    check stopp '' crictl stopp "$pod"
    check rmp '' crictl rmp "$pod"
    check 'pods, removed' '.items | length == 0' crictl pods --id "$pod" --output json
    check rmi '' crictl rmi "$image"
    echo "crictl on $runtime:"
    echo "$passed passed, $failed failed"
    ((failed == 0))
}

# crictl_input CONTAINER COMMAND...: sends a command three lines of input.
crictl_input() {
    printf '1\n2\n3\n' | crictl exec --interactive "$@"
}

smoke_configs() {
    cat >"$1/pod.json" <<CONFIG
{"metadata": {"name": "smoke", "namespace": "default", "uid": "smoke-1", "attempt": 0},
 "hostname": "smoke", "log_directory": "$1/logs", "linux": {"cgroup_parent": "/smoke"}}
CONFIG
    cat >"$1/container.json" <<CONFIG
{"metadata": {"name": "smoke", "attempt": 0}, "image": {"image": "$image"}, "log_path": "smoke.log",
 "command": ["sh", "-c", "trap exit TERM; echo hello from the container; while :; do sleep 1; done"],
 "linux": {"resources": {"memory_limit_in_bytes": 134217728}}}
CONFIG
}

# check NAME FILTER COMMAND...: checks that the command succeeds and, if there is a filter, that jq finds it true of the
# output. Updates the caller's counts and leaves the output in $dir/out.
check() {
    local name=$1 filter=$2
    shift 2
    if ! "$@" >"$dir/out" 2>"$dir/err"; then
        echo "FAILED crictl $name: $(tail -n 1 "$dir/err")"
    elif [[ $filter = test* ]] && ! jq --raw-input --slurp --exit-status "$filter" <"$dir/out" >/dev/null; then
        echo "FAILED crictl $name: unexpected output: $(head -c 200 "$dir/out")"
    elif [[ -n $filter && $filter != test* ]] && ! jq --exit-status "$filter" <"$dir/out" >"$dir/err" 2>&1; then
        echo "FAILED crictl $name: not $filter: $(head -c 200 "$dir/err")"
    else
        passed=$((passed + 1))
        return 0
    fi
    failed=$((failed + 1))
}

# eventually COMMAND...: repeats a command for up to 5 s until it prints something.
eventually() {
    local _ text
    for _ in {1..50}; do
        text=$("$@") || return
        [[ -z $text ]] || break
        sleep 0.1
    done
    echo "$text"
}
