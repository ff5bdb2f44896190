# Takes pods through their lives with the kubelet's own code; sourced by hack/conformance, which defines $kubelet, $reports,
# $rig, $runtime and $socket.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig, $runtime: rig.sh; $socket: runtimes.sh; $kubelet, $reports: hack/conformance

# kubelet_walk: prints failures and a count, and fails if there were any. The log of the kubelet's code is kubelet.log.
kubelet_walk() {
    mkdir -p "$rig/kubelet"
    "$kubelet/kubelet" -endpoint "unix://$socket" -dir "$rig/kubelet" >"$reports/kubelet.txt" 2>"$reports/kubelet.log" ||
        echo "it ended with status $?" >>"$reports/kubelet.log"
    echo "the kubelet's code on $runtime:"
    # Without its last line, the program broke off.
    awk '/^FAILED/ { print; failed++ } /^passed/ { passed++ } /^passed over$/ { over++ }
        END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || !over }' "$reports/kubelet.txt"
}
