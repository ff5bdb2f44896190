#!/bin/sh
# What a command in a container sees; sent there by compare, with the paths to look at as arguments. Prints facts, each a
# line: NAME, a tab, TEXT. For the shells of busybox and Debian, without sourced helpers.

say() {
    printf '%s\t%s\n' "$1" "$(printf '%s' "$2" | tr '\n\t' '| ')"
}

# What stat says of a path, and where a link leads.
look() {
    if [ -L "$1" ]; then
        echo "link to $(readlink "$1")"
    elif [ -c "$1" ] || [ -b "$1" ]; then
        stat -c '%F %t:%T %a %u:%g' "$1"
    else
        stat -c '%F %a %u:%g' "$1" 2>/dev/null || echo 'missing or out of reach'
    fi
}

# How much of a path can be read.
reads() {
    if [ -d "$1" ]; then
        echo "directory with $(ls -A "$1" 2>/dev/null | head -n 9 | wc -l) entries"
    elif [ -e "$1" ]; then
        echo "$(head -c 9 "$1" 2>/dev/null | wc -c) bytes"
    else
        echo missing
    fi
}

# Whether a file can be opened for writing, or one be made in a directory.
writes() {
    if [ -d "$1" ]; then
        (: >"$1/written-by-compare") 2>/dev/null && rm "$1/written-by-compare" && echo yes || echo no
    else
        (: >>"$1") 2>/dev/null && echo yes || echo no
    fi
}

env | sort | while IFS= read -r pair; do
    case ${pair%%=*} in PWD | SHLVL | _ | OLDPWD) ;; *) say "environment ${pair%%=*}" "${pair#*=}" ;; esac
done
say id "$(id)"
say 'working directory' "$(pwd)"
say 'open files' "$(ulimit -Sn) $(ulimit -Hn)"
while read -r name text; do
    case $name in Cap* | NoNewPrivs: | Seccomp: | Umask:) say "status ${name%:}" "$text" ;; esac
done </proc/self/status

for file in /etc/hostname /etc/hosts /etc/resolv.conf /etc/mtab; do
    say "file $file" "$(look $file): $(cat $file 2>/dev/null)"
done
find /dev 2>/dev/null | sort | while read -r path; do say "device $path" "$(look "$path")"; done
for path in /proc/acpi /proc/asound /proc/bus /proc/fs /proc/interrupts /proc/irq /proc/kcore /proc/keys \
    /proc/latency_stats /proc/sched_debug /proc/scsi /proc/sys /proc/sysrq-trigger /proc/timer_list \
    /sys/devices/virtual/powercap /sys/firmware; do
    # What reading /proc/kcore or writing to sysrq would do is not tried.
    case $path in /proc/kcore | /proc/sysrq-trigger) say "stat $path" "$(look $path)" ;; *) say "reads $path" "$(reads $path)" ;; esac
done
for path in / /dev /dev/shm /dev/stdout /dev/stderr /etc /etc/hosts /etc/resolv.conf /proc/sys/kernel/domainname /proc/irq /run /sys \
    /sys/fs/cgroup /tmp "$@"; do
    say "writes $path" "$(writes "$path")"
done
for path in "$@"; do
    say "path $path" "$(look "$path"); $(ls -A "$path" 2>&1 | head -n 9)"
done
say 'cgroup directory' "$(ls /sys/fs/cgroup 2>/dev/null | head -n 30)"
for name in kernel/domainname kernel/hostname kernel/shm_rmid_forced kernel/shmmax net/core/somaxconn net/ipv4/ip_forward \
    net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv6/conf/all/disable_ipv6; do
    say "sysctl $name" "$(cat /proc/sys/$name 2>/dev/null)"
done
for interface in /sys/class/net/*; do
    say "interface ${interface##*/}" "MTU $(cat "$interface/mtu" 2>/dev/null)"
done
say 'first process' "$(tr '\0' ' ' </proc/1/cmdline | cut -c 1-60)"
