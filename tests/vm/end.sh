# The quickstart, and what is left at the end; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $repository, $work: walk.sh

see_quickstart() {
    before=$(footprint)
    see 'hack/quickstart, not isolated' "$repository/hack/quickstart"
    see 'the quickstart leaves nothing' is_as_before
}

see_end() {
    see 'clean refuses while wharfd serves' clean_refused
    see 'pods outlive the disabled unit, and clean --force removes them' cleaned
    see 'nothing is left' nothing_is_left
    see 'the kernel has nothing to complain of' kernel_is_content
    see 'wharfd warned of nothing' no_warnings
}

# nothing_is_left: prints what is left.
nothing_is_left() {
    attempt 50 is_as_before || is_as_before
}

is_as_before() {
    diff <(sort <<<"$before") <(footprint | sort)
}

clean_refused() {
    not wharfd clean --force --images
}

cleaned() {
    pod last
    container last last '{}'
    systemctl disable --now wharfd
    [[ $(systemctl is-active wharfd) = inactive ]]
    not wharfd clean --images
    wharfd clean --force --images
}

# Earlier checks have containers OOM-killed, which the kernel logs with a trace.
kernel_is_content() {
    without_kills <(dmesg --level emerg,alert,crit,err)
    not grep -E 'Call Trace|WARNING:|BUG:' <(without_kills <(dmesg))
}

# without_kills FILE: prints the kernel's messages without its reports of OOM kills, each from the call to the victim.
without_kills() {
    awk '/invoked oom-killer:/ { reports = 1 }
        !reports && !/Memory cgroup out of memory: Killed process|oom_reaper:/
        /out of memory: Killed process|oom_reaper:/ { reports = 0 }' "$1"
}

# The log of wharfd alone; systemd reports that an earlier check killed it. Some do while it makes a container, and some
# hide a record or an overlay's layers from it. A machine without KVM is slow.
no_warnings() {
    journalctl --sync
    journalctl --identifier wharfd --priority warning --output short-precise
    [[ -z $(journalctl --identifier wharfd --priority warning --quiet --output cat |
        grep --invert-match --line-regexp --regexp 'removing a container that was left half made' \
            --regexp 'this takes long: .*' \
            --regexp 'layers that no image uses could not be removed; each sweep tries again' \
            --regexp "a container's record cannot be used now: the container is left alone and not listed") ]]
}
