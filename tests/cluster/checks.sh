# The checks of a cluster, and how they are run; sourced by hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what the checks use; $place, kubectl, enter: hack/cluster
#
# A check is a function check_NAME in checks/, with a namespace of its own named by $namespace. It fails as soon as a command
# in it fails. Those named two_NAME need two nodes. Those named alone_NAME disturb others, and come last, one by one.

for part in "$repository"/tests/cluster/checks/*.sh; do
    # shellcheck disable=SC1090 # the files in that directory
    . "$part"
done

busybox=docker.io/library/busybox:latest
nginx=docker.io/library/nginx:latest
python=docker.io/library/python:latest
# A command that does nothing, until it is told to end.
idle='trap exit TERM; sleep 100000 & wait'
# How many checks run at a time: they mostly wait.
at_once=4

# checks [NAME...]: runs these or all; prints a line for each and a count, and fails if one failed.
checks() {
    local name function names=("$@") began=$SECONDS
    reports=$place/checks
    rm -rf "$reports"
    mkdir -p "$reports"
    ((${#names[@]})) || mapfile -t names < <(all_checks)
    kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s >"$reports/coredns" 2>&1 ||
        say "CoreDNS is not ready"
    for name in "${names[@]}"; do
        function=$(function_of "$name")
        ! is_function "alone_$name" || continue
        while (($(jobs -pr | wc -l) >= at_once)); do wait -n || true; done
        run_check "$function" &
    done
    wait
    for name in "${names[@]}"; do
        function=$(function_of "$name")
        ! is_function "alone_$name" || run_check "alone_$name"
    done
    say "$((SECONDS - began)) s; each check's output is in ${reports#"$repository/"}"
    echo "$(find "$reports" -name '*.ok' | wc -l) passed, $(find "$reports" -name '*.failed' | wc -l) failed"
    [[ -z $(find "$reports" -name '*.failed') ]]
}

all_checks() {
    local kinds='check|alone'
    [[ ! -e $place/rig/node2 ]] || kinds+='|two'
    compgen -A function | sed -nE "s/^($kinds)_//p"
}

# function_of NAME: prints the name of a check's function.
function_of() {
    local kind
    for kind in check two alone; do
        ! is_function "${kind}_$1" || { echo "${kind}_$1" && return; }
    done
    die "no check is called $1"
}

is_function() {
    [[ $(type -t "$1") = function ]]
}

# run_check FUNCTION: in a shell of its own, which ends at the first command that fails.
run_check() {
    local name=${1#*_} began=$SECONDS
    if "$0" check "$1" >"$reports/$name" 2>&1; then
        mv "$reports/$name" "$reports/$name.ok"
        echo "ok $name ($((SECONDS - began)) s)"
    else
        kubectl --namespace "${name//_/-}" get pods,events -o wide >>"$reports/$name" 2>&1 || true
        mv "$reports/$name" "$reports/$name.failed"
        echo "FAILED $name: $(sed -n '/^failed at /{p;q}' "$reports/$name.failed")"
    fi
}

# check FUNCTION: runs a check, and removes its namespace, unless it fails: then what it made can be looked at until it
# runs again. $scratch is a file for the check.
check() {
    rig=$(readlink "$place/rig")
    scratch=$(mktemp)
    trap 'rm -rf "$scratch"' EXIT
    namespace=${1#*_}
    namespace=${namespace//_/-}
    set -E
    # shellcheck disable=SC2064 # the name is this function's, not that of the one which fails
    trap "explain $1" ERR
    kubectl delete namespace "$namespace" --ignore-not-found --timeout=60s
    kubectl create namespace "$namespace"
    "$1"
    kubectl delete namespace "$namespace" --wait=false
}

# explain FUNCTION: says which line of a check failed, however deep below.
explain() {
    local i
    for i in "${!FUNCNAME[@]}"; do
        if [[ ${FUNCNAME[i]} = "$1" ]]; then
            echo "failed at ${BASH_SOURCE[i]##*/}:${BASH_LINENO[i - 1]}: $(sed -n "${BASH_LINENO[i - 1]}s/^ *//p" "${BASH_SOURCE[i]}")"
        fi
    done >&2
}

# k ARGUMENT...: kubectl in the check's namespace.
k() {
    kubectl --namespace "$namespace" "$@"
}

# pod NAME SCRIPT [CONTAINER [SPEC [META]]]: makes a pod of one container that runs a shell script; the rest are more fields of the
# container, of the pod's specification and of its metadata, as JSON without braces.
pod() {
    k apply -f - <<JSON
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1", "labels": {"app": "$1"} ${5:+, $5}},
 "spec": {"terminationGracePeriodSeconds": 5, "containers": [$(container main "$2" "${3-}")] ${4:+, $4}}}
JSON
}

# container NAME SCRIPT [FIELDS]: prints a container.
container() {
    printf '{"name": "%s", "image": "%s", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", %s] %s}' \
        "$1" "$busybox" "$(jq --null-input --arg script "$2" '$script')" "${3:+, $3}"
}

# servers NAME COUNT: makes a deployment of pods that say their name to whoever asks at port 8080.
servers() {
    k apply -f - <<JSON
{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "$1"},
 "spec": {"replicas": $2, "selector": {"matchLabels": {"app": "$1"}},
  "template": {"metadata": {"labels": {"app": "$1"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [
   $(container main 'hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp' '"ports": [{"containerPort": 8080}],
     "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1}')]}}}}
JSON
    k rollout status "deployment/$1" --timeout=60s
}

# ready NAME...: waits until these pods are.
ready() {
    k wait --for=condition=Ready --timeout=60s "${@/#/pod/}"
}

# ended NAME PHASE: waits until a pod is Succeeded or Failed.
ended() {
    k wait --for=jsonpath="{.status.phase}=$2" --timeout=60s "pod/$1"
}

# field RESOURCE PATH: prints a field of a resource.
field() {
    k get "$1" -o "jsonpath={$2}"
}

# has PATTERN COMMAND...: whether the command succeeds and its output has a line that matches.
has() {
    local pattern=$1 output
    shift
    output=$("$@") || return
    echo "$output"
    grep -qE -- "$pattern" <<<"$output"
}

# hasnt PATTERN COMMAND...: whether the command succeeds and its output has no such line.
hasnt() {
    local pattern=$1 output
    shift
    output=$("$@") || return
    echo "$output"
    ! grep -qE -- "$pattern" <<<"$output"
}

# fails COMMAND...: whether the command fails.
fails() {
    ! "$@"
}

# eventually SECONDS COMMAND...: repeats a command until it succeeds.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.3
    done
}
