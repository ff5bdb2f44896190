#!/bin/bash
# Makes this machine of hack/vm a node of kubeadm, in steps; kubeadm.sh calls it on both.
#   node.sh prepare                        installs what a node has before kubeadm: its programs, units and settings, and wharf
#   node.sh init                           kubeadm init, with time for a machine without KVM
#   node.sh network OWN OTHERS ROUTER      the CNI configuration for its own range of pods, and the route to the other node's
#   node.sh release current|previous       installs wharf of this release, or of that in target/package/previous
set -euo pipefail
. "$(dirname "$(realpath "$0")")/../../hack/lib.sh"

main() {
    (($#)) || usage
    "$@"
}

prepare() {
    mkdir -p /var/log/journal
    install "$repository"/cluster/{kubeadm,kubelet,kubectl} /usr/bin/
    install "$cache/bin/conformance-"*/crictl /usr/bin/
    install -m 644 "$repository/deploy/crictl.yaml" /etc/
    kubelet_unit
    printf 'overlay\nbr_netfilter\n' >/etc/modules-load.d/kubernetes.conf
    printf 'net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n' >/etc/sysctl.d/kubernetes.conf
    modprobe --all overlay br_netfilter
    sysctl --quiet --load /etc/sysctl.d/kubernetes.conf
    release current
    # As deploy/README.md says.
    sed --in-place 's/^#cgroup_driver = .*/cgroup_driver = "systemd"/' /etc/wharf/config.toml
    systemctl restart wharfd
    wharf doctor
}

# kubelet_unit: what the package of the kubelet has, and kubeadm's addition to it.
kubelet_unit() {
    cat >/etc/systemd/system/kubelet.service <<'UNIT'
[Unit]
Description=The kubelet
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
    --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl enable kubelet
}

# release NAME: as the README says.
release() {
    local directory=$repository/target/package
    [[ $1 = current ]] || directory=$directory/$1
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --reinstall --allow-downgrades \
        --option Dpkg::Options::=--force-confold "$directory"/wharf_*_amd64.deb
    [[ $(systemctl is-active wharfd) = active ]]
}

init() {
    cat >/root/init.yaml <<CONFIG
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration: {criSocket: "unix:///run/wharf/wharf.sock"}
localAPIEndpoint: {advertiseAddress: 192.0.2.1}
timeouts: {controlPlaneComponentHealthCheck: 20m, kubeletHealthCheck: 10m, kubernetesAPICall: 10m, etcdAPICall: 10m}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $(kubeadm version --output short)
networking: {podSubnet: 10.244.0.0/16}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
# systemd waits for the kubelet, and that for its pods, before a machine that ends takes anything else away.
shutdownGracePeriod: 60s
shutdownGracePeriodCriticalPods: 30s
CONFIG
    # kubeadm asks for an image of pause, which wharf has no use for. Any will do.
    wharf tag "$(kubeadm config images list --config /root/init.yaml | grep coredns)" \
        "$(kubeadm config images list --config /root/init.yaml | grep pause)"
    kubeadm init --config /root/init.yaml
}

# network OWN OTHERS ROUTER
network() {
    mkdir -p /etc/cni/net.d /etc/systemd/network/cable.network.d
    cat >/etc/cni/net.d/10-bridge.conflist <<CONFIG
{
  "cniVersion": "1.0.0", "name": "cluster",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "$1"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
CONFIG
    printf '[Route]\nDestination=%s\nGateway=%s\n' "$2" "$3" >/etc/systemd/network/cable.network.d/pods.conf
    networkctl reload
}

main "$@"
