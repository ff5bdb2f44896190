#!/usr/bin/env bash
# Runs a kubelet without letting it change this machine: it sets some of the kernel's settings that belong to no namespace,
# unless they are as it wants them. Here it finds them so, in files that nobody else sees.
#   tunables.sh DIR COMMAND...     DIR: a directory for these files
set -euo pipefail

settings=(vm.overcommit_memory=1 vm.panic_on_oom=0 kernel.panic=10 kernel.panic_on_oops=1
    kernel.keys.root_maxkeys=1000000 kernel.keys.root_maxbytes=25000000)

main() {
    local dir=$1 setting name
    shift
    if [[ -z ${TUNABLES-} ]]; then
        # All other mounts, such as volumes, are still seen by the runtime.
        TUNABLES=$dir exec unshare --mount --propagation unchanged "$0" "$dir" "$@"
    fi
    mount --make-rprivate /proc
    mkdir -p "$dir"
    for setting in "${settings[@]}"; do
        name=${setting%=*}
        echo "${setting#*=}" >"$dir/$name"
        mount --bind "$dir/$name" "/proc/sys/${name//.//}"
    done
    exec "$@"
}

main "$@"
