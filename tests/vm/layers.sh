# Layers of containers that nobody knows, on a kernel whose table of mounts has numbers for them; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $work, $image: walk.sh

see_layers() {
    volume=docker.io/library/nginx:latest
    layers=/var/lib/wharf/layers
    see 'the kernel shows numbers for layers, and a mark of each' marked_layers
    see 'layers of a container that nobody knows stay' unknown_layers_stay
    see 'while an overlay says nothing about its layers, all stay' untold_layers_stay
    see 'layers go with their last container' layers_go
}

marked_layers() {
    local pid marked='- overlay layers-([0-9a-f]{4})+ [^ ]*lowerdir=[0-9:]+'
    crictl pull "$volume"
    pod layers
    container layers main '{"mounts": [{"container_path": "/volume", "readonly": true, "image": {"image": "'"$volume"'"}}]}'
    pid=$(status "$(of layers main)" .info.pid)
    grep --extended-regexp "^[^ ]+ [^ ]+ [^ ]+ / / .* $marked,upperdir=[0-9]+," "/proc/$pid/mountinfo"
    grep --extended-regexp " /volume .* $marked" "/proc/$pid/mountinfo"
}

# Its record is one of a release that this one does not understand, and its images are removed.
unknown_layers_stay() {
    local pid seen record orphan
    pid=$(status "$(of layers main)" .info.pid)
    seen=$(layers_of "$pid")
    record=$(record_of_layers)
    systemctl stop wharfd
    cp "$record" "$work/record"
    { echo 'wharf container 99 1 00000000' && cat "$work/record"; } >"$record"
    orphan=$(orphan 0)
    systemctl start wharfd
    attempt 100 test ! -e "$orphan"
    [[ -z $(crictl ps --all --quiet) ]]
    crictl rmi "$image" "$volume"
    [[ $(layers_of "$pid") = "$seen" ]]
}

# As an earlier release mounted it.
untold_layers_stay() {
    local orphan
    mkdir "$work"/{one,other,both}
    (
        exec 5<"$work/one" 6<"$work/other"
        cd /proc/self/fd
        mount -t overlay -o lowerdir=5:6 overlay "$work/both"
    )
    grep " $work/both .* - overlay overlay [^ ]*lowerdir=5:6" /proc/self/mountinfo
    systemctl stop wharfd
    orphan=$(orphan 1)
    systemctl start wharfd
    attempt 100 was_told_of_numbers
    [[ -e $orphan ]]
    umount "$work/both"
    systemctl restart wharfd
    attempt 100 test ! -e "$orphan"
}

layers_go() {
    systemctl stop wharfd
    cp "$work/record" "$(record_of_layers)"
    systemctl start wharfd
    [[ $(inside "$(of layers main)" echo inside) = inside ]]
    remove_pod layers
    attempt 100 no_layers
    crictl pull "$image"
}

record_of_layers() {
    echo "/run/wharf/pods/$(pod_id layers)/containers/$(of layers main)"
}

# layers_of PID: prints what is in the layers of that process's container, which the kernel looks up anew.
layers_of() {
    echo 3 >/proc/sys/vm/drop_caches
    (cd "/proc/$1/root" && ls -lR bin volume/etc | sha256sum)
}

# orphan DIGIT: leaves a layer without an image, and prints its path: it is gone once wharfd has swept.
orphan() {
    local orphan some
    orphan=$layers/$(printf "$1%.0s" {1..64})
    some=$(find "$layers" -mindepth 2 -maxdepth 2 -name info | head -n 1)
    mkdir -p "$orphan/fs"
    cp "$some" "$orphan/"
    echo "$orphan"
}

no_layers() {
    [[ -z $(ls "$layers") ]]
}

was_told_of_numbers() {
    journalctl --sync
    grep --quiet 'has numbers for its layers' <(journalctl --unit wharfd --output json)
}
