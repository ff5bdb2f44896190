# The cluster's own images, made of the programs that hack/clients builds; sourced by build, and by tests/vm/cluster.sh.
# shellcheck shell=bash
# shellcheck disable=SC2031,SC2154 # $out: cluster_images; $work and others: who sources it

# cluster_images FILE: packs them into one archive, by the names under which kubeadm asks for them.
cluster_images() (
    # shellcheck disable=SC2030,SC2034 # what oci.sh asks for; out and arch are of this subshell
    out=$work/oci arch=$(dpkg --print-architecture) SOURCE_DATE_EPOCH=1767225600 plain_layers=yes
    # shellcheck source=/dev/null # it has names of its own
    . "$repository/tests/images/oci.sh"
    mkdir -p "$work"/{layers,images} "$out/pool"
    touch "$work/start"
    coredns_image
    proxy_root "$work/programs/kube-proxy"
    for program in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do
        program_image "$program"
    done
    jq -sc '{schemaVersion: 2, manifests: .}' "$work/index.jsonl" >"$out/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
    mkdir "$out/blobs"
    mv "$out/pool" "$out/blobs/sha256"
    tar --create --file="$1" --directory="$out" oci-layout index.json blobs
)

# program_image PROGRAM: an image of a program, and of what is already in its root file system.
program_image() {
    local root=$work/programs/$1
    mkdir -p "$root/usr/local/bin" "$root/tmp"
    ln "$kubernetes/$1" "$root/usr/local/bin/" 2>/dev/null || cp "$kubernetes/$1" "$root/usr/local/bin/"
    layer "$1" "$root" "$1"
    echo '{"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"}' | image "$1" "$1"
    publish "$1"
}

# coredns_image: hack/clients has made one, in a layout of its own.
coredns_image() {
    local layout=$kubernetes/images/coredns/coredns
    cp "$layout"/blobs/sha256/* "$out/pool/"
    jq '{descriptor: .manifests[0]}' "$layout/index.json" >"$work/images/coredns.json"
    publish coredns
}

# proxy_root DIR: kube-proxy executes the programs of netfilter. Docker's own rules are in a table of either kind, which the
# kernel keeps apart; those of a service are in this one.
proxy_root() {
    local name
    debian "$1" extract iptables nftables kmod
    for name in {ip,ip6}tables{,-save,-restore}; do
        ln -sf xtables-nft-multi "$1/usr/sbin/$name"
    done
}

# publish IMAGE: gives it the name by which kubeadm knows it.
publish() {
    local name
    name=$(grep -E "/$1:" "$work/names") || die "kubeadm has no image of $1"
    jq -c --arg name "$name" '.descriptor + {annotations: {"io.containerd.image.name": $name}}' "$work/images/$1.json" \
        >>"$work/index.jsonl"
}

# debian DIR VARIANT PACKAGE...: unpacks a Debian of these packages, which is made once for each list.
debian() {
    local kept
    kept=$cache/kind-$(echo "${*:2}" | sha256sum | cut -c1-16).tar
    if [[ ! -e $kept ]]; then
        say "installing Debian's packages: ${*:3}"
        mkdir -p "$cache"
        quietly mmdebstrap --quiet --variant="$2" --include="$(IFS=, && echo "${*:3}")" bookworm "$kept.$$.tar"
        mv "$kept.$$.tar" "$kept"
    fi
    mkdir -p "$1"
    tar --extract --file="$kept" --directory="$1" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
}
