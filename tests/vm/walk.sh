#!/bin/bash
# Checks an installed wharf on a machine with systemd and cgroup v2; hack/vm runs it in its machine, as root. Prints a line
# for each check, with the last output of those that fail, and fails if one did.
#   walk.sh [PART...]   machine, unit, cgroups, systemd, hierarchies, handlers, layers, confinement, apparmor, network, streams,
#     end (default: all, in this order). systemd, hierarchies and handlers also run on hybrid cgroups. Not among them are
#     selinux, which runs in a machine of `hack/vm --selinux`; package, which needs what hack/package makes; releases, which
#     needs that of an earlier release in target/package/previous, too; and kubeadm, which needs `hack/vm --two` beside the first.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=../../hack/lib.sh
. "$here/../../hack/lib.sh"
# shellcheck source=pods.sh
. "$here/pods.sh"
# shellcheck source=unit.sh
. "$here/unit.sh"
# shellcheck source=cgroups.sh
. "$here/cgroups.sh"
# shellcheck source=systemd.sh
. "$here/systemd.sh"
# shellcheck source=hierarchies.sh
. "$here/hierarchies.sh"
# shellcheck source=handlers.sh
. "$here/handlers.sh"
# shellcheck source=layers.sh
. "$here/layers.sh"
# shellcheck source=confinement.sh
. "$here/confinement.sh"
# shellcheck source=apparmor.sh
. "$here/apparmor.sh"
# shellcheck source=selinux.sh
. "$here/selinux.sh"
# shellcheck source=network.sh
. "$here/network.sh"
# shellcheck source=streams.sh
. "$here/streams.sh"
# shellcheck source=package.sh
. "$here/package.sh"
# shellcheck source=releases.sh
. "$here/releases.sh"
# shellcheck source=kubeadm.sh
. "$here/kubeadm.sh"
# shellcheck source=end.sh
. "$here/end.sh"

main() {
    work=$(mktemp --directory)
    passed=0 failed=0
    image=docker.io/library/busybox:latest
    clients=$("$repository/hack/clients" conformance)
    (($#)) || set -- machine unit cgroups systemd hierarchies handlers layers confinement apparmor network streams end
    before=$(footprint)
    [[ $1 != machine ]] || { see_machine && shift; }
    serve_images
    see_installation
    for part; do "see_$part"; done
    echo "$passed passed, $failed failed ($SECONDS s)"
    ((failed == 0))
}

# see NAME COMMAND...: runs a command with errexit and reports whether it succeeded; if not, with its last output.
see() {
    local name=$1 status start=$SECONDS
    shift
    # Not as a condition, in which errexit would have no effect.
    set +e
    (
        # Keeps the trace apart from the command's standard error.
        exec 9>&1
        BASH_XTRACEFD=9
        set -ex
        "$@"
    ) >"$work/said" 2>&1
    status=$?
    set -e
    if ((status == 0)); then
        passed=$((passed + 1))
        echo "ok      $name ($((SECONDS - start)) s)"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        tail -n 12 "$work/said" | cut -c 1-300 | sed 's/^/        /'
    fi
}

# not COMMAND...: succeeds if the command fails; errexit ignores `!`.
not() {
    if "$@"; then return 1; fi
}

# refused WORDS COMMAND...: succeeds if the command fails with these words.
refused() {
    local words=$1
    shift
    not "$@" >"$work/words" 2>&1
    cat "$work/words"
    grep --quiet --fixed-strings "$words" "$work/words"
}

see_machine() {
    echo "$(. /etc/os-release && echo "$PRETTY_NAME"), Linux $(uname -r), $(systemctl --version | head -n 1)"
    see 'systemd is the first process' grep -qx systemd /proc/1/comm
    see 'cgroup v2 alone is mounted' test "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs
    see 'hack/quickstart, not isolated' "$repository/hack/quickstart"
    see 'the quickstart leaves nothing' is_as_before
}

# The registry has only what the checks need, so that it is ready soon.
serve_images() {
    mkdir "$work/images"
    ln -s "$repository/tests/images/out/library" "$work/images/library"
    jq 'map(select(.name == "library/nginx" or .name == "library/busybox" or .name == "library/debian"))' "$repository/tests/images/out/images.json" \
        >"$work/images/images.json"
    "$repository/tests/images/serve.sh" 5000 "$work/registry" "$work/images" >/dev/null
}

main "$@"
