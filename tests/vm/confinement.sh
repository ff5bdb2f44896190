# What a process in a container inherits from systemd and wharfd, and what it is kept from; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $work, $image: walk.sh

see_confinement() {
    see 'a container that asks for nothing, and one that does' two_containers
    see 'the oom_score_adj of wharfd, supervisors, containers' oom_scores
    see 'signals, umask and limits are not those of a unit' inherited
    see 'each container has a session keyring of its own' keyrings
    see 'a seccomp profile and no_new_privs are in force' seccomp
    see 'a pod has a user namespace, and an image as a volume' user_namespace
    see 'the pod confined is removed' remove_pod confined
}

two_containers() {
    pod confined
    container confined plain '{}'
    container confined asked '{"linux": {"resources": {"oom_score_adj": 500}, "security_context": {
        "no_new_privs": true, "seccomp": {"profile_type": 0}}}}'
}

# Debian's kernel is older than those that take layers from a detached mount.
user_namespace() {
    local seen
    seen=$(wharf run --rm --userns=100000 --name mapped --mount "type=image,source=$image,target=/volume" "$image" \
        sh -c 'cat /proc/self/uid_map; stat -c %u:%g / /etc/passwd /bin/busybox /volume/bin/busybox; touch /new && stat -c %u /new')
    echo "$seen"
    [[ $(head -n 1 <<<"$seen" | awk '{ print $1, $2 }') = '0 100000' ]]
    [[ $(tail -n +2 <<<"$seen" | sort -u) = $'0\n0:0' ]]
}

score() {
    cat "/proc/$1/oom_score_adj"
}

oom_scores() {
    [[ $(score "$(main_pid)") = -999 ]]
    local pid
    pid=$(status "$(of confined plain)" .info.pid)
    # A container's first process is its supervisor's child.
    [[ $(score "$(ps -o ppid= -p "$pid" | tr -d ' ')") -lt 0 ]]
    [[ $(score "$pid") = 0 ]]
    [[ $(score "$(status "$(of confined asked)" .info.pid)") = 500 ]]
    [[ $(inside "$(of confined plain)" cat /proc/self/oom_score_adj) = 0 ]]
    [[ $(inside "$(of confined asked)" cat /proc/self/oom_score_adj) = 500 ]]
}

inherited() {
    local pid
    pid=$(status "$(of confined plain)" .info.pid)
    cat "/proc/$pid/status"
    # systemd starts units with SIGPIPE ignored.
    grep -P '^SigIgn:\t0000000000000000' "/proc/$pid/status"
    grep -P '^SigBlk:\t0000000000000000' "/proc/$pid/status"
    grep -P '^Umask:\t0022' "/proc/$pid/status"
    cat "/proc/$pid/limits"
}

# keyring PROGRAM...: prints the session keyring of a program, from keyctl(KEYCTL_GET_KEYRING_ID).
keyring() {
    "$@" perl -e 'print syscall(250, 0, -3, 0)'
}

# Busybox has no program for it.
keyrings() {
    local image=docker.io/library/debian:bookworm name
    crictl pull "$image"
    for name in first second; do container confined "$name" "{\"image\": {\"image\": \"$image\"}}" sleep 100000; done
    keyring inside "$(of confined first)" >"$work/first"
    keyring inside "$(of confined second)" >"$work/second"
    grep -xE '[0-9]+' "$work/first"
    not cmp "$work/first" "$work/second"
}

seccomp() {
    inside "$(of confined asked)" cat /proc/self/status >"$work/status"
    grep -P '^Seccomp:\t2' "$work/status"
    grep -P '^NoNewPrivs:\t1' "$work/status"
    [[ $(inside "$(of confined plain)" grep Seccomp: /proc/self/status) = *0 ]]
}
