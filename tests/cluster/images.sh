# The images of Kubernetes' end-to-end suite, under the names that it uses; sourced by hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $images, $suite: hack/cluster
#
# They are the test images under other names, and agnhost, which is the suite's own program beside a few of this machine's. Their
# layers are not compressed: no network is saved by that.

# suite_packages: installs the programs that are in agnhost's image.
suite_packages() {
    packages curl netcat-openbsd iproute2 socat util-linux
}

# suite_images DIR: makes the images in DIR, in the layout of the test images.
suite_images() (
    # shellcheck disable=SC2034 # what oci.sh asks for
    work=$(mktemp -d) out=$1 arch=$(dpkg --print-architecture) SOURCE_DATE_EPOCH=1767225600 plain_layers=yes
    trap 'rm -rf "$work"' EXIT
    . "$repository/tests/images/oci.sh"
    . "$repository/tests/images/images.sh"
    mkdir -p "$work"/{layers,images} "$out/pool"
    touch "$work/start"
    # Specs expect sh to pass on variables with such names as data-1: a newer busybox's does, and so does bash. What they expect of
    # /bin/sh is busybox's message.
    programs / "$work/shell" /bin/bash
    mkdir -p "$work/shell/usr/bin"
    ln -s /bin/bash "$work/shell/usr/bin/sh"
    layer shell "$work/shell" 'bash as the shell that PATH leads to'
    again e2e-test-images/busybox 1.29-2 "$e2e/busybox:1.37.0-2" . shell
    again e2e-test-images/busybox 1.29-2 "$e2e/nonroot:1.5" '.User = "1234"'
    again e2e-test-images/nginx 1.14-2 "$e2e/nginx:1.27.0-2"
    again e2e-test-images/nginx 1.14-2 "$e2e/nginx:1.28.0-2" '.Labels.version = "1.28"'
    again e2e-test-images/nonewprivs 1.3 "$e2e/nonewprivs:1.4"
    again library/debian bookworm "$e2e/glibc-dns-testing:2.1.1"
    again pause 3.10 registry.k8s.io/pause:3.10.2
    programs / "$work/ipc" /bin/{ipcs,ipcmk,ipcrm}
    layer ipc "$work/ipc" "Debian's programs for System V IPC"
    again e2e-test-images/busybox 1.29-2 "$e2e/ipc-utils:1.4" . ipc
    agnhost
    layouts
)

# again REPOSITORY TAG REFERENCE [FILTER [LAYER...]]: publishes a test image under another name, with a configuration that jq
# changes, and more layers.
again() {
    local name=${3##*/} config layers
    config=$(config_of "$1" "$2" | jq ".config | ${4-.}")
    mapfile -t layers < <(layers_of "$1" "$2")
    image "$name" "${layers[@]}" "${@:5}" <<<"$config"
    tag "$name" "$3"
}

# config_of REPOSITORY TAG: prints a test image's configuration.
config_of() {
    cat "$(blob_of "$@" config)"
}

# blob_of REPOSITORY TAG manifest|config: prints the path of a test image's manifest or configuration.
blob_of() {
    jq --raw-output --arg name "$1" --arg tag "$2" --arg blob "$3" --arg images "$images" \
        '.[] | select(.name == $name and .tag == $tag) | "\($images)/\(.name)/blobs/\(.[$blob] | sub(":"; "/"))"' \
        "$images/images.json"
}

# layers_of REPOSITORY TAG: has oci.sh know the layers of a test image, and prints their names.
layers_of() {
    local digest
    jq --null-input --compact-output --slurpfile manifest "$(blob_of "$@" manifest)" --slurpfile config "$(blob_of "$@" config)" '
        [$manifest[0].layers, $config[0].rootfs.diff_ids, $config[0].history] | transpose[]
        | {blob: .[0], diff: .[1], comment: .[2].created_by}' |
        while read -r layer; do
            digest=$(jq --raw-output '.blob.digest | ltrimstr("sha256:")' <<<"$layer")
            echo "$layer" >"$work/layers/$digest.json"
            ln -sf "$(realpath "$images/$1/blobs/sha256/$digest")" "$out/pool/$digest"
            echo "$digest"
        done
}

# agnhost: the images of the suite's own program: two that differ in a label, and one with two files. In its registry is the image
# that a spec of private registries pulls.
agnhost() {
    local root=$work/agnhost base=(k8s-staging-cri-tools/test-image-predefined-group latest) common
    programs / "$root" /bin/{bash,curl,ip,nc.openbsd,nsenter,socat,unshare}
    ln -s nc.openbsd "$root/bin/nc"
    cp "$suite"/agnhost "$suite"/localhost.{crt,key} "$root"
    ln -s agnhost "$root/agnhost-2"
    mkdir "$root/uploads"
    registry_of "$root/var/registry/pause" pause 3.10
    layer agnhost "$root" agnhost
    common='.User = "" | .Entrypoint = ["/agnhost"] | .Cmd = ["pause"]'
    again "${base[@]}" "$e2e/agnhost:2.66.1" "$common" agnhost
    again "${base[@]}" "$e2e/agnhost:2.55" "$common | .Labels.version = \"2.55\"" agnhost
    mkdir -p "$work/kitten/etc"
    echo '{"image": "kitten.jpg"}' >"$work/kitten/data.json"
    echo 'NAME="Alpine Linux"' >"$work/kitten/etc/os-release"
    layer kitten "$work/kitten" 'what a spec looks for'
    again "${base[@]}" "$e2e/kitten:1.8" "$common | .Cmd = [\"test-webserver\"]" agnhost kitten
}

# registry_of DIR REPOSITORY TAG: lays out a test image as agnhost's registry serves it, with the tag "testing".
registry_of() {
    local dir=$1 manifest blob
    shift
    manifest=$(blob_of "$@" manifest)
    mkdir -p "$dir/manifests"
    echo "sha256:${manifest##*/}" >"$dir/manifests/testing"
    served "$manifest" "$dir/manifests"
    jq --raw-output '(.config, .layers[]).digest | sub(":"; "/")' "$manifest" | while read -r blob; do
        served "$images/$1/blobs/$blob" "$dir/blobs"
    done
}

# served BLOB DIR
served() {
    local digest=${1##*/}
    mkdir -p "$2/sha256/${digest::2}/$digest"
    cp "$1" "$2/sha256/${digest::2}/$digest/data"
}

# inside / COMMAND...: what images.sh runs programs of a root directory with; here it is this machine's.
inside() {
    "${@:2}"
}
