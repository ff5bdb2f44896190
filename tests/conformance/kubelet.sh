# A walk through the lives of pods with the kubelet's own code; sourced by hack/conformance, which defines $kubelet, $reports,
# $rig, $runtime and $socket.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig, $runtime, $socket: rig.sh; $kubelet, $reports: hack/conformance

# kubelet_walk: prints what failed and a count; fails if anything did. What the kubelet's code logs is in kubelet.log.
kubelet_walk() {
    mkdir -p "$rig/kubelet"
    "$kubelet/kubelet" -endpoint "unix://$socket" -dir "$rig/kubelet" >"$reports/kubelet.txt" 2>"$reports/kubelet.log" ||
        echo "it ended with status $?" >>"$reports/kubelet.log"
    echo "the kubelet's code on $runtime:"
    # A walk that broke off has not said that it is over.
    awk '/^FAILED/ { print; failed++ } /^passed/ { passed++ } /^passed over$/ { over++ }
        END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || !over }' "$reports/kubelet.txt"
}
