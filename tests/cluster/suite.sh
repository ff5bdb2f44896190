# Kubernetes' own end-to-end suite in the cluster; sourced by hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # $place, $nodes, up, enter: hack/cluster; what verdict.sh uses
#
# In suite/ are lists of specs. must-pass.txt has whole names, and only grows; short.txt has those of it that a short run has.
# skipped.txt has regular expressions for those that cannot pass here or are not worth their time, and behind a tab the reason.

# What runs: all that needs nothing but a node as Kubernetes has it by default. A gate that is off by default is a Feature, too.
selection='(NodeConformance || sig-node) && Feature: isEmpty && !Flaky'
# How many specs run at a time: they mostly wait.
specs_at_once=8
lists=$repository/tests/cluster/suite

parse_e2e() {
    bless='' short='' extra=()
    cni='' e2e=yes nodes=(node1)
    while (($#)); do
        case $1 in
            --short) short=yes && shift ;;
            --bless) bless=yes && shift ;;
            --) shift && extra=("$@") && break ;;
            *) usage ;;
        esac
    done
    # What is new is found only by running everything.
    [[ -z $bless || -z $short ]] || usage
}

# run_e2e: runs the suite in the cluster that is up, or one of its own.
run_e2e() {
    if ! is_up; then
        up
        trap down EXIT
    fi
    suite=$(<"$place/suite")
    [[ -n $suite ]] || die "the cluster has no images of the suite: start it with 'cluster up --e2e'"
    reports=$place/e2e
    list=$lists/must-pass.txt
    [[ -z $short ]] || list=$lists/short.txt
    rm -rf "$reports"
    mkdir -p "$reports"
    kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s >"$reports/coredns" 2>&1 ||
        say "CoreDNS is not ready"
    run_suite
    spec_report e2e
    known_skips
    # Leaves out what was not selected.
    sed -i '/^skipped\t[^\t]*\t$/d' "$reports/e2e.tsv"
    verdict e2e wharf "${extra[0]+some}"
}

# run_suite: runs the selected specs, and leaves ginkgo's report.
run_suite() {
    local at arguments
    at=$(readlink "$place/rig")
    arguments=(--procs "$specs_at_once" --no-color --timeout 3h --output-dir "$reports" --json-report e2e.json
        --label-filter "$selection")
    [[ -z $short ]] || arguments+=(--focus "$(any_of "$lists/short.txt")")
    arguments+=(--skip "$(cut -f 1 "$lists/skipped.txt" | paste -sd '|')")
    arguments+=("${extra[@]}")
    say "running the suite; its output goes to ${reports#"$repository/"}/e2e.log"
    # Some specs fail, so the report decides and not the exit status.
    (cd "$reports" && enter "$suite/ginkgo" "${arguments[@]}" "$suite/e2e.test" -- \
        --kubeconfig "$at/plane/admin.conf" --kubectl-path "$(<"$place/kubernetes")/kubectl" --kubelet-root-dir "$at/node1/kubelet" \
        --container-runtime-endpoint "unix://$at/node1/wharf.sock" >e2e.log 2>&1) || true
    [[ -s $reports/e2e.json ]] || {
        tail -n 30 "$reports/e2e.log" >&2
        die "the suite left no report; the end of its output is above"
    }
}

# any_of FILE: prints a regular expression for the whole names in a file.
any_of() {
    sed -E 's/[][\.|$(){}?+*^]/\\&/g; s/ /\\s+/g' "$1" | paste -sd '|' | sed 's/.*/(&)$/'
}

# known_skips: fails if the suite has no spec that an expression of skipped.txt is for.
known_skips() {
    local pattern
    while read -r pattern; do
        cut -f 2 "$reports/e2e.tsv" | grep -E -- "$pattern" >/dev/null || die "skipped.txt skips what the suite does not have: $pattern"
    done < <(cut -f 1 "$lists/skipped.txt")
}
