# AppArmor: wharf's own profile and those of the node; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $work, $image: walk.sh; what is in single quotes is for the shells of containers

see_apparmor() {
    see 'AppArmor is on' grep -qx Y /sys/module/apparmor/parameters/enabled
    see 'a pod for AppArmor' apparmor_pod
    see "a container that asks for nothing has wharf's own profile, and its commands too" own_profile
    see 'so it is whatever its user, namespaces and no_new_privs' own_profile_everywhere
    see 'the words Unconfined and privileged mean no profile' no_profile
    see 'a profile of the node confines, by the newer field and by the older' nodes_profile
    see 'a profile that is not loaded fails the container, and is named' missing_profile
    see "a beginning of the kernel's word for no profile names none" no_word_for_none
    see 'a container with CAP_SYS_ADMIN mounts nothing with mount(2)' no_mounts
    see 'a sysctl is not written, even if its file can be' no_sysctls
    see 'a socket of the families alg and vsock is refused' no_odd_sockets
    see 'a container that sees the host neither signals nor traces it' no_neighbours
    see "signals of the runtime and of the container's own arrive" signals_arrive
    see 'after wharfd is started again, commands are confined' confined_after_restart
    see 'a profile that somebody unloads is loaded again' loaded_again
    see 'doctor and the kernel agree' apparmor_doctor
    see 'the pod apparmor is removed' remove_pod apparmor
}

readonly OWN='wharf-default (enforce)'

apparmor_pod() {
    pod apparmor '{"linux": {"security_context": {"privileged": true, "namespace_options": {"pid": 1}}}}'
}

# label CONTAINER: prints how its first process is confined.
label() {
    cat "/proc/$(status "$1" .info.pid)/attr/apparmor/current"
}

# confined NAME LABEL SECURITY_CONTEXT: checks that a container with this context has the label, from outside and
# in a command.
confined() {
    local name=$1 label=$2 context=$3 id
    container apparmor "$name" "{\"linux\": {\"security_context\": $context}}"
    id=$(of apparmor "$name")
    [[ $(label "$id") = "$label" ]]
    [[ $(inside "$id" cat /proc/self/attr/apparmor/current) = "$label" ]]
}

own_profile() {
    confined plain "$OWN" '{"namespace_options": {"pid": 1}}'
    [[ $(status "$(of apparmor plain)" .info.runtimeSpec.process.apparmorProfile) = wharf-default ]]
    confined default "$OWN" '{"namespace_options": {"pid": 1}, "apparmor": {"profile_type": 0}}'
}

own_profile_everywhere() {
    confined user "$OWN" '{"run_as_user": {"value": 1000}, "no_new_privs": true, "seccomp": {"profile_type": 0}}'
    # Among others: its process is cloned by one that has asked for the profile.
    confined shared "$OWN" '{"namespace_options": {"pid": 0}, "seccomp": {"profile_type": 0}}'
    confined shared-too "$OWN" '{"namespace_options": {"pid": 0}, "run_as_user": {"value": 1000}, "no_new_privs": true}'
    [[ $(wharf run --rm --userns=100000 --name mapped "$image" cat /proc/self/attr/apparmor/current) = "$OWN" ]]
}

no_profile() {
    confined free unconfined '{"apparmor": {"profile_type": 1}}'
    confined free-too unconfined '{"apparmor_profile": "unconfined"}'
    confined privileged unconfined '{"privileged": true}'
}

nodes_profile() {
    apparmor_parser --replace <<'PROFILE'
profile walk-read-only flags=(attach_disconnected) {
  file,
  network,
  unix,
  deny /tmp/** w,
  signal (receive) peer=unconfined,
}
PROFILE
    confined nodes 'walk-read-only (enforce)' '{"apparmor": {"profile_type": 2, "localhost_ref": "walk-read-only"}}'
    confined nodes-too 'walk-read-only (enforce)' '{"apparmor_profile": "localhost/walk-read-only"}'
    confined nodes-three 'walk-read-only (enforce)' \
        '{"privileged": true, "apparmor": {"profile_type": 2, "localhost_ref": "localhost/walk-read-only"}}'
    refused 'Permission denied' inside "$(of apparmor nodes)" touch /tmp/new
    inside "$(of apparmor plain)" touch /tmp/new
}

missing_profile() {
    refused 'is not loaded on this node: load it with apparmor_parser' \
        container apparmor missing '{"linux": {"security_context": {"apparmor": {"profile_type": 2, "localhost_ref": "no-such"}}}}'
}

no_word_for_none() {
    local name
    for name in u unconfine unconfined; do
        refused 'cannot name a profile, because the kernel reads it as' container apparmor none \
            "{\"linux\": {\"security_context\": {\"apparmor\": {\"profile_type\": 2, \"localhost_ref\": \"$name\"}}}}"
    done
}

no_mounts() {
    local admin='"capabilities": {"add_capabilities": ["SYS_ADMIN"]}'
    confined admin "$OWN" "{$admin}"
    not inside "$(of apparmor admin)" mount -t tmpfs none /tmp
    not inside "$(of apparmor admin)" mount -o bind /bin /tmp
    not inside "$(of apparmor admin)" grep ' /tmp ' /proc/mounts
    confined free-admin unconfined "{$admin, \"apparmor\": {\"profile_type\": 1}}"
    inside "$(of apparmor free-admin)" mount -t tmpfs none /tmp
    inside "$(of apparmor free-admin)" mount -o bind /bin /tmp
}

# What is masked and read-only is what the request says.
no_sysctls() {
    local few='"masked_paths": ["/proc/keys"], "readonly_paths": ["/proc/bus"]' id
    confined sysctls "$OWN" "{$few}"
    id=$(of apparmor sysctls)
    refused 'ermission denied' inside "$id" sh -c 'echo 1 >/proc/sys/kernel/shm_rmid_forced'
    refused 'ermission denied' inside "$id" sh -c 'echo wharf >/proc/sys/kernel/domainname'
    inside "$id" sh -c 'echo 0 >/proc/self/oom_score_adj'
    confined free-sysctls unconfined "{$few, \"apparmor\": {\"profile_type\": 1}}"
    inside "$(of apparmor free-sysctls)" sh -c 'echo 1 >/proc/sys/kernel/shm_rmid_forced'
}

# family CONTAINER NUMBER: makes a socket of this address family. Busybox has no program for it.
family() {
    inside "$1" perl -e "socket(my \$socket, $2, 5, 0) or die \"\$!\\n\""
}

# No request has a seccomp filter, so only AppArmor can refuse: 38 is alg, 40 is vsock, and 1 is unix.
no_odd_sockets() {
    local debian='"image": {"image": "docker.io/library/debian:bookworm"}'
    crictl pull docker.io/library/debian:bookworm
    container apparmor sockets "{$debian}"
    refused 'ermission denied' family "$(of apparmor sockets)" 38
    refused 'ermission denied' family "$(of apparmor sockets)" 40
    family "$(of apparmor sockets)" 1
    container apparmor free-sockets "{$debian, \"linux\": {\"security_context\": {\"apparmor\": {\"profile_type\": 1}}}}"
    not refused 'ermission denied' family "$(of apparmor free-sockets)" 38
}

no_neighbours() {
    local context='"namespace_options": {"pid": 2}, "capabilities": {"add_capabilities": ["SYS_PTRACE", "KILL"]}' id host
    pod neighbours '{"linux": {"security_context": {"namespace_options": {"pid": 2}}}}'
    sleep 1000000 &
    host=$!
    container neighbours close "{\"linux\": {\"security_context\": {$context}}}"
    id=$(of neighbours close)
    refused 'ermission denied' inside "$id" kill "$host"
    refused 'ermission denied' inside "$id" cat "/proc/$host/environ"
    container neighbours free "{\"linux\": {\"security_context\": {$context, \"apparmor\": {\"profile_type\": 1}}}}"
    id=$(of neighbours free)
    inside "$id" cat "/proc/$host/environ" >/dev/null
    inside "$id" kill "$host"
    remove_pod neighbours
}

signals_arrive() {
    local id
    container apparmor trapped '{}' sh -c 'trap "exit 7" TERM; trap "" USR1; while :; do sleep 0.1; done'
    id=$(of apparmor trapped)
    inside "$id" kill -USR1 1
    crictl stop --timeout 60 "$id"
    [[ $(status "$id" .status.exitCode) = 7 ]]
    kill "$(status "$(of apparmor default)" .info.pid)"
    not inside "$(of apparmor plain)" sh -c 'sleep 60 & kill $!; wait $!'
}

confined_after_restart() {
    systemctl restart wharfd
    [[ $(inside "$(of apparmor plain)" cat /proc/self/attr/apparmor/current) = "$OWN" ]]
    confined restarted "$OWN" '{}'
}

loaded_again() {
    echo 'profile wharf-default {}' | apparmor_parser --remove
    not grep '^wharf-default ' /sys/kernel/security/apparmor/profiles
    confined again "$OWN" '{}'
}

apparmor_doctor() {
    wharf doctor --json | jq --exit-status 'any(.what == "AppArmor" and .verdict == "ok" and (.found | startswith("enabled")))'
}
