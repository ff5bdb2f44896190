# wharfd as a systemd unit; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $repository, $work, $image: walk.sh; what is in single quotes is for the shells of
# containers

see_installation() {
    see 'installation as in the README' install_wharf
    see 'enable --now returns when wharfd serves' starts
    see 'an image is pulled' crictl pull "$image"
}

see_unit() {
    see 'doctor finds nothing that fails' doctor
    see 'the journal has fields and priorities' journal
    see 'a pod runs' counting_pod
    see 'supervisors are not in the cgroup of the unit' supervisors_are_apart
    see 'restart leaves containers running' containers_go_on systemctl restart wharfd
    see 'reload of systemd and another restart too' containers_go_on reload_and_restart
    see 'kill -s KILL leaves them running, and wharfd comes back' containers_go_on killed
    see 'and again after six kills one after the other' containers_go_on killed_six_times
    see 'stop leaves them running' containers_go_on stopped_and_started
    see 'doctor --fix starts a wharfd that was stopped, and raises its limits' containers_go_on stopped_and_fixed
    see 'want of memory that kills wharfd leaves them running' containers_go_on killed_by_want_of_memory
    see 'a clock that is set back by an hour changes nothing for them' containers_go_on with_the_clock_set_back
    see 'reload changes the level of the log' reloaded
    see 'the daemon may open many files, a container as many as are usual' open_files
    see 'systemd found no processes that were left over' nothing_left_over
    see 'an exit while wharfd is stopped is known after its start' exit_without_daemon
    see 'the pod unit is removed' remove_pod unit
}

counting_pod() {
    pod unit
    container unit counts '{}' sh -c 'n=0; while sleep 0.1; do n=$((n+1)); echo $n; done'
}

install_wharf() {
    install "$repository"/target/dist/{wharfd,wharf-shim,wharf} /usr/local/bin
    install -m 644 "$repository/deploy/wharfd.service" /etc/systemd/system/
    install -m 644 "$repository/deploy/crictl.yaml" /etc/
    mkdir -p /etc/wharf
    cp -r "$work/registry/certs.d" /etc/wharf/
    wharf man /usr/local/share/man/man1
    systemctl daemon-reload
    systemd-analyze verify wharfd.service
}

starts() {
    systemctl enable --now wharfd
    # With Type=notify there is nothing to wait for from here on.
    [[ $(systemctl is-active wharfd) = active ]]
    wharf ps
    [[ $(systemctl is-enabled wharfd) = enabled ]]
}

doctor() {
    wharf doctor
    wharf doctor --json | jq --exit-status '
        (map(select(.verdict == "fail")) == [])
        and any(.what == "cgroups" and .found == "v2, with cpu, memory and pids")
        and any(.what == "nftables" and .verdict == "ok")
        and any(.what == "overlayfs" and .verdict == "ok")
        and any(.what == "CAP_SYS_RESOURCE" and .found == "yes")
        and any(.what == "AppArmor" and (.found | startswith("enabled")))'
}

journal() {
    journalctl --sync
    journalctl --unit wharfd --output json >"$work/journal"
    jq --slurp --exit-status '
        map(select(._TRANSPORT == "journal"))
        | all(.PRIORITY | test("^[0-7]$"))
        and any(.MESSAGE == "wharfd is ready" and .SYSLOG_IDENTIFIER == "wharfd" and .F_SOCKETS == "[\"/run/wharf/wharf.sock\"]")
    ' "$work/journal"
}

main_pid() {
    systemctl show --property MainPID --value wharfd
}

supervisors_are_apart() {
    local unit
    unit=$(cgroup_of "$(main_pid)")
    [[ $unit = /sys/fs/cgroup/system.slice/wharfd.service ]]
    [[ $(<"$unit/cgroup.procs") = "$(main_pid)" ]]
}

# containers_go_on COMMAND...: checks that the container of the pod `unit` survives the command and still writes.
containers_go_on() {
    local id pid lines
    id=$(of unit counts)
    pid=$(status "$id" .info.pid)
    "$@"
    [[ $(systemctl is-active wharfd) = active ]]
    [[ $(status "$id" .info.pid) = "$pid" ]]
    [[ $(status "$id" .status.state) = CONTAINER_RUNNING ]]
    lines=$(log_lines)
    attempt 50 log_grows "$lines"
    [[ $(inside "$id" echo inside) = inside ]]
}

log_lines() {
    wc -l </var/log/pods/unit/counts.log
}

log_grows() {
    (($(log_lines) > $1))
}

reload_and_restart() {
    systemctl daemon-reexec
    systemctl daemon-reload
    systemctl restart wharfd
}

# Kills all processes of the unit: KillMode has no effect on this.
killed() {
    local before
    before=$(main_pid)
    systemctl kill --signal KILL wharfd
    attempt 100 serves_anew "$before"
    (($(systemctl show --property NRestarts --value wharfd) > 0))
}

# More than systemd's default limit for a unit.
killed_six_times() {
    local _
    for _ in {1..6}; do killed; done
}

reloaded() {
    mkdir -p /etc/wharf/config.toml.d
    printf '[log]\nlevel = "debug"\n' >/etc/wharf/config.toml.d/level.toml
    systemctl reload wharfd
    attempt 50 journal_has 'reloaded the log level'
    rm /etc/wharf/config.toml.d/level.toml
    systemctl reload wharfd
}

journal_has() {
    journalctl --sync
    grep --quiet "$1" <(journalctl --unit wharfd --output cat)
}

open_files() {
    [[ $(awk '/^Max open files/ { print $4 }' "/proc/$(main_pid)/limits") = 1048576 ]]
    [[ $(inside "$(of unit counts)" sh -c 'ulimit -Sn') = 1024 ]]
}

serves_anew() {
    [[ $(main_pid) != "$1" ]] && wharf ps
}

stopped_and_started() {
    local lines
    systemctl stop wharfd
    [[ $(systemctl is-active wharfd) = inactive ]]
    lines=$(log_lines)
    attempt 50 log_grows "$lines"
    systemctl start wharfd
}

stopped_and_fixed() {
    systemctl stop wharfd
    not wharf doctor
    wharf doctor --fix
    [[ $(systemctl is-active wharfd) = active ]]
    systemctl set-property --runtime wharfd.service TasksMax=$(($(systemctl show --property TasksCurrent --value wharfd) + 20))
    prlimit --nofile=5000:5000 --pid "$(main_pid)"
    wharf doctor --json --fix | jq --exit-status '[.fixes[] | select(.outcome == "done").what] == ["open files", "tasks"]'
    wharf doctor --json | jq --exit-status '[.[] | select(.what == ("open files", "tasks")).verdict] == ["ok", "ok"]'
}

# The limit applies only to the process that it kills.
killed_by_want_of_memory() {
    local before kills
    before=$(main_pid)
    kills=$(oom_kills)
    systemctl set-property --runtime wharfd MemoryMax=2M MemorySwapMax=0
    attempt 100 more_oom_kills "$kills"
    systemctl set-property --runtime wharfd MemoryMax=infinity MemorySwapMax=infinity
    systemctl reset-failed wharfd
    systemctl start wharfd
    attempt 100 serves_anew "$before"
}

oom_kills() {
    awk '$1 == "oom_kill" { print $2 }' /proc/vmstat
}

# more_oom_kills COUNT: makes calls, so that daemons use memory.
more_oom_kills() {
    timeout 5 wharf ps || true
    (($(oom_kills) > $1))
}

# Waits use a clock that nobody can set, and reported times never precede the container's start.
with_the_clock_set_back() {
    local old short
    old=$(of unit counts)
    date --set '-1 hour'
    [[ $(inside --timeout 20 "$old" echo inside) = inside ]]
    container unit short '{}' sh -c 'exit 5'
    short=$(of unit short)
    attempt 50 has_ended "$short"
    [[ $(status "$short" .status.exitCode) = 5 ]]
    [[ ! $(status "$short" .status.finishedAt) < $(status "$short" .status.startedAt) ]]
    container unit stubborn '{}' sh -c 'trap "" TERM; while :; do sleep 0.1; done'
    crictl stop --timeout 1 "$(of unit stubborn)"
    [[ $(status "$(of unit stubborn)" .status.exitCode) = 137 ]]
    killed
    date --set '+1 hour'
}

has_ended() {
    [[ $(status "$1" .status.state) = CONTAINER_EXITED ]]
}

nothing_left_over() {
    journalctl --sync
    not grep -i left-over <(journalctl --unit wharfd _PID=1)
}

exit_without_daemon() {
    local id pid
    container unit ends '{}' sh -c 'trap "exit 37" TERM; while :; do sleep 0.1; done'
    id=$(of unit ends)
    pid=$(status "$id" .info.pid)
    systemctl stop wharfd
    kill "$pid"
    attempt 100 gone "$pid"
    systemctl start wharfd
    [[ $(status "$id" .status.state) = CONTAINER_EXITED ]]
    [[ $(status "$id" .status.exitCode) = 37 ]]
}

gone() {
    [[ ! -e /proc/$1 ]]
}
