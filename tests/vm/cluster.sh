#!/bin/bash
# Prints a directory with what two machines of hack/vm need for a cluster of kubeadm: Kubernetes' programs, and the cluster's
# images in images.tar. Made once for each state of the programs and of the scripts.
set -euo pipefail
. "$(dirname "$(realpath "$0")")/../../hack/lib.sh"
# shellcheck source=../../deploy/kind/images.sh
. "$repository/deploy/kind/images.sh"

main() {
    local made version
    kubernetes=$("$repository/hack/clients" cluster)
    made=$cache/kubeadm-$({ echo "$kubernetes" && cat "$0" "$repository/deploy/kind/images.sh"; } | sha256sum | cut -c1-16)
    if [[ ! -e $made ]]; then
        packages mmdebstrap jq
        say "making the images of a cluster"
        work=$made.new
        trap 'rm -rf "$work"' EXIT
        rm -rf "$work"
        mkdir -p "$work/made"
        version=$("$kubernetes/kubeadm" version --output short)
        "$kubernetes/kubeadm" config images list --kubernetes-version "$version" >"$work/names"
        cluster_images "$work/made/images.tar" >&2
        cp "$kubernetes"/{kubeadm,kubelet,kubectl} "$work/made/"
        mv -T "$work/made" "$made"
    fi
    echo "$made"
}

main
