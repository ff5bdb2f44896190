# Containers in every hierarchy, beside systemd's own cgroups, with both drivers; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $work: walk.sh

see_hierarchies() {
    local driver
    systems_own >"$work/own"
    for driver in cgroupfs systemd; do
        see "$driver: wharfd starts" with_driver "$driver"
        see "$driver: a container is in its own cgroup in every hierarchy" own_everywhere
        see "$driver: a command is, too" command_everywhere
        see "$driver: a privileged container that sees all cgroups is, too" privileged_everywhere
        see "$driver: they stay when systemd is loaded anew, and a command finds them" everywhere_after_reload
        see "$driver: what a container makes in them is removed with it" removed_everywhere
        see "$driver: systemd's own units and cgroups are as they were" systems_own_are_kept
    done
    see 'clean leaves no cgroup in any hierarchy' cleaned_everywhere
    see "and systemd's own as they were" systems_own_are_kept
    see 'systemd makes and ends units as ever' systemd_is_well
    see 'wharfd starts again' with_driver cgroupfs
}

# systems_own: prints systemd's units with cgroups, and where their processes are in its hierarchies; not wharf's. In those of
# controllers systemd itself moves them about, for each unit that has a setting of that controller.
systems_own() {
    local unit pid
    # udev starts workers when there is a link, so it is known by its first process.
    for unit in $(systemctl list-units --plain --no-legend --state active --type service,scope,slice |
        awk '$1 !~ /^wharf|^kubepods|^run-/ { print $1 }'); do
        echo "$unit $(systemctl show --property ActiveState,SubState,ControlGroup,MainPID -- "$unit" | sort | paste -sd ' ')"
        pid=$(systemctl show --property MainPID --value -- "$unit")
        [[ ${pid:-0} = 0 ]] || grep -E '^[0-9]+:(name=systemd)?:' "/proc/$pid/cgroup"
    done
    grep -E '^[0-9]+:(name=systemd)?:' /proc/1/cgroup
    echo "failed: $(systemctl list-units --plain --no-legend --state failed | paste -sd ' ')"
}

systems_own_are_kept() {
    systems_own >"$work/own.now"
    diff "$work/own" "$work/own.now"
}

# in_every POD NAME PID: checks that each hierarchy has the process below the cgroup of that container.
in_every() {
    local id line
    id=$(of "$1" "$2")
    cat "/proc/$3/cgroup"
    while read -r line; do
        [[ $line = *[/-]"$id"/* || $line = *[/-]"$id".scope/payload* || $line = *[/-]"$id" ]]
    done <"/proc/$3/cgroup"
}

own_everywhere() {
    pod everywhere
    container everywhere main '{}'
    in_every everywhere main "$(status "$(of everywhere main)" .info.pid)"
}

command_everywhere() {
    local pid
    crictl exec "$(of everywhere main)" sleep 123.5 &
    attempt 100 pgrep --full '^sleep 123.5$'
    pid=$(pgrep --full '^sleep 123.5$')
    in_every everywhere main "$pid"
    kill "$pid"
    wait $! || true
}

# It can write to all that it sees; what it could make in its own is made from outside.
privileged_everywhere() {
    local id directory hierarchy
    pod seer '{"linux": {"security_context": {"privileged": true}}}'
    container seer main '{"linux": {"security_context": {"privileged": true}}}'
    id=$(of seer main)
    in_every seer main "$(status "$id" .info.pid)"
    while IFS=: read -r _ _ directory; do
        echo "$directory"
    done <"/proc/$(status "$id" .info.pid)/cgroup" | sort -u >"$work/directories"
    # One path in all hierarchies.
    (($(wc -l <"$work/directories") == 1))
    directory=$(<"$work/directories")
    while read -r hierarchy; do
        [[ -d $hierarchy$directory ]]
        mkdir "$hierarchy$directory/deep" "$hierarchy$directory/deep/deeper"
    done < <(hierarchies)
}

# hierarchies: prints the mounts of all.
hierarchies() {
    awk '/ - cgroup2? / { print $5 }' /proc/self/mountinfo
}

everywhere_after_reload() {
    systemctl daemon-reload
    systemctl daemon-reexec
    systemd-run --quiet --wait true
    in_every everywhere main "$(status "$(of everywhere main)" .info.pid)"
    command_everywhere
    killed
    command_everywhere
}

removed_everywhere() {
    remove_pod seer
    attempt 100 no_cgroup "$(of seer main)"
    attempt 100 no_cgroup "$(pod_id seer)"
    crictl rm --force "$(of everywhere main)"
    attempt 100 no_cgroup "$(of everywhere main)"
    remove_pod everywhere
    attempt 100 no_cgroup "$(pod_id everywhere)"
}

# no_cgroup ID: whether no hierarchy has a cgroup named after it.
no_cgroup() {
    [[ -z $(find /sys/fs/cgroup -type d -name "*$1*") ]]
}

cleaned_everywhere() {
    local start=$SECONDS
    pod everywhere
    container everywhere main '{}'
    systemctl stop wharfd
    wharfd clean --force
    echo "cleaned in $((SECONDS - start)) s"
    # The cgroup of wharfd's own service is systemd's, which leaves it in v1's hierarchies.
    [[ -z $(find /sys/fs/cgroup -type d -name 'wharf*' ! -path '*/system.slice/wharfd.service') ]]
    not pgrep --full '^wharf-'
    [[ -z $(wharf_units) ]]
}

systemd_is_well() {
    [[ $(systemctl is-system-running) = running ]]
    systemd-run --quiet --wait --property MemoryMax=50M --property CPUQuota=50% true
    systemd-run --quiet --scope --slice walk-test.slice true
    systemctl stop walk-test.slice walk.slice
    [[ -z $(find /sys/fs/cgroup -type d -name 'walk*') ]]
}
