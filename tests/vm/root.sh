#!/bin/bash
# Makes the disk of a stock Debian 12 for hack/vm. Usage: root.sh DIR, which then has root.ext4, vmlinuz and initrd.
# The machine mounts a second disk at /srv/wharf, runs tests/vm/inside.sh from there when it has booted, and powers off. With
# wharf.other on the kernel's command line it runs tests/vm/other.sh instead, and stays.
set -euo pipefail

# systemd as PID 1 with what a node has, and what the scripts of the repository use.
packages=(
    systemd systemd-sysv dbus udev kmod procps util-linux e2fsprogs sudo iproute2 nftables ca-certificates apparmor
    linux-image-cloud-amd64 initramfs-tools curl jq skopeo docker-registry runc crun selinux-policy-default policycoreutils
    openssh-server iptables conntrack ethtool containernetworking-plugins
)
disk_size=8G

main() {
    (($# == 1)) || { sed -n '2,4s/^# //p' "$0" >&2 && exit 2; }
    local dir=$1 root=$1/root
    mmdebstrap --quiet --variant=minbase --skip=cleanup/apt/lists \
        --include="$(IFS=, && echo "${packages[*]}")" bookworm "$root"
    # The tests start what they need.
    chroot "$root" systemctl --quiet disable docker-registry.service ssh.service
    echo vm >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 vm\n' >"$root/etc/hosts"
    mkdir "$root/srv/wharf"
    printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /srv/wharf ext4 defaults 0 2\n' >"$root/etc/fstab"
    inside >"$root/etc/systemd/system/inside.service"
    other >"$root/etc/systemd/system/other.service"
    chroot "$root" systemctl --quiet enable inside.service other.service
    cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
    cp "$root"/boot/initrd.img-* "$dir/initrd"
    truncate --size="$disk_size" "$dir/root.ext4"
    mke2fs -q -t ext4 -d "$root" "$dir/root.ext4"
    rm -rf "$root"
}

inside() {
    cat <<'UNIT'
[Unit]
Description=What hack/vm was asked to run
After=multi-user.target
RequiresMountsFor=/srv/wharf
ConditionKernelCommandLine=!wharf.other
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=exec
ExecStart=/srv/wharf/tests/vm/inside.sh
# The second serial line is the standard output of hack/vm.
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1

[Install]
WantedBy=multi-user.target
UNIT
}

other() {
    cat <<'UNIT'
[Unit]
Description=What makes this the other machine
RequiresMountsFor=/srv/wharf
ConditionKernelCommandLine=wharf.other

[Service]
Type=oneshot
ExecStart=/srv/wharf/tests/vm/other.sh

[Install]
WantedBy=multi-user.target
UNIT
}

main "$@"
