#!/bin/bash
# Makes a machine of hack/vm the other one: `plane`, at 192.0.2.1, which the first one, `vm` at 192.0.2.2, commands over SSH.
#   other.sh                   on the other machine; a unit of root.sh calls it at each boot, and only the first call counts
#   other.sh connect ADDRESS   gives a machine an address on the cable between the two, also when it is booted again
set -euo pipefail

main() {
    case ${1-} in
        connect) connect "$2" ;;
        *) [[ -e /root/.ssh/authorized_keys ]] || be_other ;;
    esac
}

be_other() {
    install -D -m 600 "$(dirname "$(realpath "$0")")/../../key.pub" /root/.ssh/authorized_keys
    hostnamectl hostname plane
    connect 192.0.2.1
    systemctl enable --now ssh
}

# connect ADDRESS: nobody is at the address of the router, who would be the resolver too.
connect() {
    sed --in-place '/^127\.0\.1\.1/d' /etc/hosts
    printf '192.0.2.1 plane\n192.0.2.2 vm\n' >>/etc/hosts
    echo 'nameserver 192.0.2.3' >/etc/resolv.conf
    printf '[Match]\nMACAddress=52:54:00:00:00:01 52:54:00:00:00:02\n\n[Network]\nAddress=%s/24\nGateway=192.0.2.3\nLinkLocalAddressing=no\n' "$1" \
        >/etc/systemd/network/cable.network
    systemctl enable --now systemd-networkd
}

main "$@"
