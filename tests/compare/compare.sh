# The comparison with containerd; sourced by hack/compare and hack/conformance, which define $rig and have started wharf.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig, $repository: lib.sh, rig.sh

# comparer: builds the comparing program, and prints its path.
comparer() {
    say "building the comparison"
    cargo build --quiet --locked --manifest-path "$repository/Cargo.toml" --package wharf-tests --bin compare >&2
    echo "${CARGO_TARGET_DIR:-$repository/target}/debug/compare"
}

# compare_with_containerd COMPARER WHARF PEERS OPTION...: wharf's socket is WHARF, in its state directory. Fails if there is
# a difference without a reason. Afterwards $daemon and $socket are wharf's again.
compare_with_containerd() {
    local compare=$1 wharf=$2 peers=$3 status=0 daemon socket
    shift 3
    odd_images
    say "starting containerd"
    start_containerd "$rig/containerd" "$peers"
    compared_files "$rig/files"
    "$compare" --wharf "$wharf" --containerd "$socket" --files "$rig/files" \
        --known "$repository/tests/compare/differences.toml" "$@" || status=1
    stop_runtime
    return "$status"
}

# compared_files DIR: makes what the requests mount. One has a mount below it, which may or may not be visible.
compared_files() {
    mkdir -p "$1/tree/below"
    mount -t tmpfs -o mode=0755,size=1m below "$1/tree/below"
    echo below >"$1/tree/below/file"
    echo tree >"$1/tree/file"
    echo file >"$1/file"
    ln -s below "$1/tree/link"
}

# Images with unusual configurations: busybox, changed by a jq filter.
odd_images() {
    say "making images"
    local layout=$rig/odd
    skopeo --insecure-policy copy --quiet --src-tls-verify=false --override-arch "$(dpkg --print-architecture)" \
        docker://127.0.0.1:5000/library/busybox:latest "oci:$layout:image"
    odd_image no-environment '.config.Env = null'
    odd_image odd-environment '.config.Env = ["PATH=/bin:/usr/bin", "EMPTY=", "NOTHING", "A=b=c", "A=d", "HOME=/var"]'
    odd_image unknown-user '.config.User = "nobody-knows"'
    odd_image working-directory '.config.WorkingDir = "/made/for/it"'
    odd_image relative-working-directory '.config.WorkingDir = "tmp"'
    odd_image entry-point '.config.Entrypoint = ["echo", "entry"] | .config.Cmd = ["arguments", "of the image"]'
    odd_image no-program '.config.Entrypoint = null | .config.Cmd = null'
    odd_image stop-signal '.config.StopSignal = "SIGINT"'
    odd_image volume '.config.Volumes = {"/var/www": {}, "/new/volume": {}}'
    odd_image dangling-resolv-conf '.' resolv_conf_layer
}

# odd_image NAME FILTER [LAYER]: makes and pushes one. LAYER is a command that fills the directory of one more layer.
odd_image() {
    local name=$1 filter=$2 layer=${3-} copy=$rig/odd.$1 manifest config
    cp -r "$layout" "$copy"
    [[ -z $layer ]] || "$layer" "$rig/odd.layer"
    manifest=$(jq --raw-output '.manifests[0].digest' "$copy/index.json")
    config=$(jq --raw-output '.config.digest' "$(blob "$copy" "$manifest")")
    jq --compact-output "$filter" "$(blob "$copy" "$config")" >"$copy/config"
    jq --compact-output . "$(blob "$copy" "$manifest")" >"$copy/manifest"
    [[ -z $layer ]] || add_layer "$copy" "$rig/odd.layer"
    replace_descriptor "$copy/manifest" .config "$(add_blob "$copy" "$copy/config")"
    replace_descriptor "$copy/index.json" '.manifests[0]' "$(add_blob "$copy" "$copy/manifest")"
    skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$copy:image" "docker://127.0.0.1:5000/odd/$name:latest"
    rm -r "$copy"
}

# blob LAYOUT DIGEST: prints a blob's path.
blob() {
    echo "$1/blobs/${2/://}"
}

# add_blob LAYOUT FILE: adds a blob, and prints its digest and size.
add_blob() {
    local digest
    digest=$(sha256sum "$2" | cut -d ' ' -f 1)
    cp "$2" "$1/blobs/sha256/$digest"
    echo "sha256:$digest $(stat -c %s "$2")"
}

# replace_descriptor FILE PLACE DIGEST-AND-SIZE
replace_descriptor() {
    jq --compact-output --arg digest "${3% *}" --argjson size "${3#* }" "$2.digest = \$digest | $2.size = \$size" "$1" >"$1.new"
    mv "$1.new" "$1"
}

# add_layer LAYOUT DIR: adds a layer to the manifest and configuration that are being made.
add_layer() {
    local added digest
    tar --create --numeric-owner --owner 0 --group 0 --file "$1/layer" --directory "$2" .
    added=$(add_blob "$1" "$1/layer")
    digest=${added% *}
    jq --compact-output --arg digest "$digest" '.rootfs.diff_ids += [$digest]' "$1/config" >"$1/config.new"
    mv "$1/config.new" "$1/config"
    jq --compact-output --arg digest "$digest" --argjson size "${added#* }" \
        '.layers += [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $digest, size: $size}]' "$1/manifest" >"$1/manifest.new"
    mv "$1/manifest.new" "$1/manifest"
}

# systemd's link, whose target does not exist in a container.
resolv_conf_layer() {
    mkdir -p "$1/etc"
    ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
}
