# Pods and containers, through crictl; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $work, $image: walk.sh

# Not with the ten seconds of its configuration: the machine may be a hundred times slower than a real one.
crictl() {
    "$clients/crictl" --timeout 120s "$@"
}

# pod NAME [JSON]: runs a pod, of the runtime handler $handler, whose configuration is merged with the JSON.
pod() {
    jq --null-input --arg name "$1" --argjson more "${2-"{}"}" '{
        metadata: {name: $name, namespace: "walk", uid: $name, attempt: 0},
        hostname: $name, log_directory: "/var/log/pods/\($name)", linux: {}
    } * $more' >"$work/$1.json"
    crictl runp --runtime "${handler-}" "$work/$1.json" >"$work/$1.id"
}

# container POD NAME JSON [COMMAND...]: starts a container in the pod of that name. Without a command it sleeps.
container() {
    local of=$1 name=$2 more=$3
    shift 3
    (($#)) || set -- sleep 1000000
    jq --null-input --arg name "$name" --arg image "$image" --argjson more "$more" '{
        metadata: {name: $name, attempt: 0}, image: {image: $image}, command: $ARGS.positional,
        log_path: "\($name).log", linux: {}
    } * $more' --args -- "$@" >"$work/$of-$name.json"
    crictl create "$(pod_id "$of")" "$work/$of-$name.json" "$work/$of.json" >"$work/$of-$name.id"
    crictl start "$(of "$of" "$name")"
}

pod_id() {
    cat "$work/$1.id"
}

# of POD NAME: prints the id of a container.
of() {
    cat "$work/$1-$2.id"
}

# inside CONTAINER COMMAND...: prints the output of a command in a container.
inside() {
    crictl exec --sync "$@"
}

# status CONTAINER FILTER: prints a container's status through a jq filter.
status() {
    crictl inspect "$1" | jq --raw-output "$2"
}

# cgroup_of PID: prints the directory of a process's cgroup.
cgroup_of() {
    echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"
}

# remove_pod NAME
remove_pod() {
    crictl rmp --force "$(pod_id "$1")"
}
