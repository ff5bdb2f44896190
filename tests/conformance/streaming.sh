# Tests exec, attach and port-forward with clients in other languages; sourced by hack/conformance, which defines crictl,
# $rig, $runtime, $socket and $streaming.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $repository: lib.sh; $rig, $runtime: rig.sh; $streaming: hack/conformance

# streaming: prints failures and a count, and fails if there were any.
streaming() {
    local dir=$rig/streaming server front language protocol protocols=(v4.channel.k8s.io)
    # No other runtime supports v5.
    [[ $runtime != wharf ]] || protocols=(v5.channel.k8s.io v4.channel.k8s.io)
    mkdir -p "$dir/logs"
    # Node looks for modules beside the program.
    cp "$repository"/tests/clients/streaming/walk.* "$repository/tests/clients/streaming/apiserver.mjs" "$dir"
    ln -s "$streaming/node_modules" "$dir"
    streaming_pod "$dir"
    node "$dir/apiserver.mjs" "$repository/proto/runtime/v1/api.proto" "$socket" >"$dir/server" &
    front=$!
    attempt 100 test -s "$dir/server" || die "the stand-in of the API server did not start"
    server=$(<"$dir/server")
    for language in python node; do
        for protocol in "${protocols[@]}"; do
            streaming_walk "$language" "$protocol"
        done
    done >"$dir/results"
    kill "$front"
    crictl rmp --force "$pod" >/dev/null
    echo "other clients on $runtime:"
    awk '/^FAILED/ { print; failed++ } /^passed/ { passed++ }
        END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || !passed }' "$dir/results"
}

# streaming_walk LANGUAGE PROTOCOL: prints one client's results, with its name; a client that breaks off has failed.
streaming_walk() {
    local walk lines
    case $1 in
        python) walk=("$streaming/venv/bin/python" "$dir/walk.py") ;;
        node) walk=(node "$dir/walk.mjs") ;;
    esac
    # It exits during the test.
    lines=$(streaming_container lines-"$1-$2")
    "${walk[@]}" "$2" "$server" "$pod" "$commands" "$lines" "$terminal" >"$dir/walk.out" 2>"$dir/walk.err" ||
        echo "FAILED walk: $(grep --max-count 1 Error "$dir/walk.err")" >>"$dir/walk.out"
    sed -E "s/^(passed|FAILED) /&$1 $2: /" "$dir/walk.out"
}

# streaming_pod DIR: starts a pod with a web server, a container for commands with 50 MiB in /random, and one with a shell
# on a terminal; sets $pod, $commands and $terminal.
streaming_pod() {
    local image
    for image in busybox nginx; do crictl pull "docker.io/library/$image:latest" >/dev/null; done
    cat >"$1/pod.json" <<CONFIG
{"metadata": {"name": "streaming", "namespace": "default", "uid": "streaming-1"}, "log_directory": "$1/logs"}
CONFIG
    pod=$(crictl runp "$1/pod.json")
    streaming_container web nginx >/dev/null
    commands=$(streaming_container commands busybox '"command": ["sleep", "3600"]')
    crictl exec --sync "$commands" sh -c "head -c $((50 << 20)) /dev/urandom >/random" >/dev/null
    terminal=$(streaming_container terminal busybox '"command": ["sh"], "stdin": true, "tty": true')
}

# streaming_container NAME [IMAGE FIELDS]: starts a container in the pod and prints its id; the default one answers each
# line of its input, and exits with code 7 at the word "end".
streaming_container() {
    local name=$1 image=${2-busybox} fields=${3-} id
    # shellcheck disable=SC2016 # for the container's shell
    (($# > 1)) || fields='"stdin": true, "command": ["sh", "-c",
        "while read word; do [ $word != end ] || { echo the end >&2; exit 7; }; echo got $word; done"]'
    cat >"$dir/$name.json" <<CONFIG
{"metadata": {"name": "$name"}, "image": {"image": "docker.io/library/$image:latest"}, "log_path": "$name.log"
 ${fields:+, $fields}}
CONFIG
    id=$(crictl create "$pod" "$dir/$name.json" "$dir/pod.json")
    crictl start "$id" >/dev/null
    echo "$id"
}
