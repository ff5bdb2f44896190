# Labels of SELinux, in a machine of `hack/vm --selinux`; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $repository, $work, $image: walk.sh; what is in single quotes is for the shells of
# containers

see_selinux() {
    local runtime
    see 'SELinux is on, and permissive' test "$(getenforce)" = Permissive
    see 'wharfd does not start with containers.selinux and a policy without containers' no_policy
    see 'a policy for containers is loaded, and wharf'"'s layers are labelled" load_policy
    see 'without containers.selinux, options have no effect' labels_off
    see 'with it, wharfd starts' with_labels 1024
    see 'a pod that was made without labels stays without' pod_without_labels
    see 'a container and its commands have the label of containers, with their pod'"'s level" labelled
    see 'its files have the label of files' files_labelled
    see 'a pod has one level, and another pod another' levels_of_pods
    see 'so it is whatever the user, the namespaces and no_new_privs' labelled_everywhere
    see 'options are honoured, of the container and of the pod' options_honoured
    see 'options that no label of the policy has are refused' options_refused
    see 'a privileged container is unconfined' unconfined
    see "the host's shared memory and message queues keep their labels" hosts_ipc
    see 'a volume is relabelled, and nothing that is not in it' relabelled
    see 'directories of the machine are not' not_relabelled
    see 'an image that is mounted has the label' image_labelled
    see 'the kernel enforces it: a container reads its own files, and not those of another level' enforced
    see "the specs of Kubernetes' suite pass" suite
    see 'runc and crun are handlers' with_runtimes
    for runtime in runc crun; do
        handler=$runtime
        see "$runtime gives the labels" labelled_by_runtime
        handler=
    done
    see 'a level is one pod'"'s, whichever wharfd made it" levels_kept
    see 'the pods are removed' remove_labelled
}

readonly FILES='^system_u:object_r:container_file_t:s0:c[0-9]+,c[0-9]+$'
readonly PROGRAMS='^system_u:system_r:container_t:s0:c[0-9]+,c[0-9]+$'

# with_labels RANGE: has wharfd label containers.
with_labels() {
    mkdir -p /etc/wharf/config.toml.d
    printf '[containers]\nselinux = true\nselinux_category_range = %s\n' "$1" >/etc/wharf/config.toml.d/selinux.toml
    systemctl reset-failed wharfd
    systemctl restart wharfd
}

no_policy() {
    not with_labels 1024
    journalctl --sync
    journalctl --unit wharfd --output cat >"$work/said-by-wharfd"
    grep 'names system_u:system_r:container_t:s0, which the policy does not have: install a policy' "$work/said-by-wharfd"
    rm /etc/wharf/config.toml.d/selinux.toml
    systemctl reset-failed wharfd
    systemctl restart wharfd
}

load_policy() {
    semodule -i "$repository/tests/vm/container.cil"
    # The kernel looks at the label of a program in a layer when it is mapped.
    chcon --recursive system_u:object_r:container_ro_file_t:s0 /var/lib/wharf
}

# label CONTAINER: prints the label of its first process.
label() {
    tr -d '\0' <"/proc/$(status "$1" .info.pid)/attr/current"
}

# own CONTAINER: prints the label of a command in it.
own() {
    inside "$1" cat /proc/self/attr/current | tr -d '\0'
}

# label_of PATH...: prints the labels of files, links themselves included.
label_of() {
    stat --format %C "$@"
}

# has_label CONTAINER PATTERN: checks its label, from outside and in a command.
has_label() {
    [[ $(label "$1") =~ $2 ]]
    [[ $(own "$1") = "$(label "$1")" ]]
}

level() {
    cut -d : -f 4- <<<"$1"
}

labels_off() {
    pod bare '{"linux": {"security_context": {"selinux_options": {"type": "no_such_t"}}}}'
    container bare main '{"linux": {"security_context": {"selinux_options": {"level": "s0,c4"}}}}'
    has_label "$(of bare main)" "^$(tr -d '\0' </proc/self/attr/current)\$"
}

pod_without_labels() {
    container bare later '{}'
    has_label "$(of bare later)" "^$(tr -d '\0' </proc/self/attr/current)\$"
    refused 'made without SELinux labels: recreate the pod' container bare asks \
        '{"linux": {"security_context": {"selinux_options": {"level": "s0:c1,c2"}}}}'
    remove_pod bare
}

labelled() {
    local id
    pod labels '{"linux": {"security_context": {"privileged": true}}}'
    container labels main '{}'
    id=$(of labels main)
    has_label "$id" "$PROGRAMS"
    [[ $(status "$id" .info.runtimeSpec.process.selinuxLabel) = "$(label "$id")" ]]
    [[ $(status "$id" .info.runtimeSpec.linux.mountLabel) =~ $FILES ]]
    # What it makes is its own.
    inside "$id" sh -c 'sleep 1000 & tr -d "\0" </proc/$!/attr/current' | grep -E "$PROGRAMS"
}

files_labelled() {
    local id root expected found
    id=$(of labels main)
    root=/proc/$(status "$id" .info.pid)/root
    expected=$(status "$id" .info.runtimeSpec.linux.mountLabel)
    [[ $(level "$expected") = "$(level "$(label "$id")")" ]]
    inside "$id" touch /new /dev/shm/new
    found=$(label_of "$root"/{,bin,bin/busybox,new,dev,dev/null,dev/pts,dev/shm,dev/shm/new,dev/mqueue,etc/hosts,etc/resolv.conf,proc/acpi} |
        sort -u)
    [[ $found = "$expected" ]]
    inside "$id" cat /proc/1/mountinfo | grep -E ',context="[^"]*:s0(-s0)?:c[0-9]+(,c[0-9]+)+",'
    [[ $(label_of "$root/proc/version") = *:proc_t:* ]]
}

levels_of_pods() {
    local main
    main=$(label "$(of labels main)")
    container labels second '{}'
    [[ $(label "$(of labels second)") = "$main" ]]
    pod other
    container other main '{}'
    has_label "$(of other main)" "$PROGRAMS"
    [[ $(label "$(of other main)") != "$main" ]]
}

labelled_everywhere() {
    container labels user '{"linux": {"security_context": {"run_as_user": {"value": 1000}, "no_new_privs": true,
        "seccomp": {"profile_type": 0}}}}'
    has_label "$(of labels user)" "$PROGRAMS"
    # Among others: its process is cloned by one that has asked for the label.
    container labels shared '{"linux": {"security_context": {"namespace_options": {"pid": 0}}}}'
    has_label "$(of labels shared)" "$PROGRAMS"
    container labels shared-too '{"linux": {"security_context": {"namespace_options": {"pid": 0}}}}'
    has_label "$(of labels shared-too)" "$PROGRAMS"
    wharf run --rm --userns=100000 --name mapped "$image" sh -c \
        'touch /new /dev/shm/new && cat /proc/self/attr/current && grep context= /proc/self/mountinfo' >"$work/mapped"
    tr -d '\0' <"$work/mapped" | grep container_t:s0:c
    grep container_file_t:s0:c "$work/mapped"
    pod hosts '{"linux": {"security_context": {"namespace_options": {"network": 2, "pid": 2}}}}'
    container hosts main '{"linux": {"security_context": {"namespace_options": {"network": 2, "pid": 2}}}}'
    has_label "$(of hosts main)" "$PROGRAMS"
    remove_pod hosts
}

options_honoured() {
    local root
    container labels level '{"linux": {"security_context": {"selinux_options": {"level": "s0:c7,c8"}}}}'
    has_label "$(of labels level)" '^system_u:system_r:container_t:s0:c7,c8$'
    root=/proc/$(status "$(of labels level)" .info.pid)/root
    [[ $(label_of "$root/bin") = system_u:object_r:container_file_t:s0:c7,c8 ]]
    pod asks '{"linux": {"security_context": {"selinux_options": {"type": "spc_t", "level": "s0:c3,c4"}}}}'
    container asks main '{}'
    has_label "$(of asks main)" '^system_u:system_r:spc_t:s0:c3,c4$'
    container asks own '{"linux": {"security_context": {"selinux_options": {"role": "system_r"}}}}'
    has_label "$(of asks own)" '^system_u:system_r:container_t:s0:c3,c4$'
    remove_pod asks
}

options_refused() {
    local options
    for options in '{"level": "s0,c4,c5"}' '{"level": "s0:c1,c1024"}' '{"type": "no_such_t"}' '{"role": "no_such_r"}' \
        '{"user": "nobody"}'; do
        refused 'InvalidArgument desc = selinux_options: the node'"'"'s policy does not have the label' \
            container labels bad "{\"linux\": {\"security_context\": {\"selinux_options\": $options}}}"
        refused 'InvalidArgument desc = selinux_options: the node'"'"'s policy does not have the label' \
            pod bad "{\"linux\": {\"security_context\": {\"selinux_options\": $options}}}"
    done
    refused 'selinux_options' container labels bad \
        '{"linux": {"security_context": {"privileged": true, "selinux_options": {"level": "s0,c4,c5"}}}}'
    refused 'is not a label of the form' container labels bad \
        '{"linux": {"security_context": {"selinux_options": {"type": "container_t:s0,ro"}}}}'
}

unconfined() {
    container labels free '{"linux": {"security_context": {"privileged": true}}}'
    has_label "$(of labels free)" '^system_u:system_r:spc_t:s0$'
    container labels free-type '{"linux": {"security_context": {"privileged": true, "selinux_options": {"type": "container_t"}}}}'
    has_label "$(of labels free-type)" "$PROGRAMS"
}

hosts_ipc() {
    local before
    before=$(label_of /dev/shm /dev/mqueue)
    pod ipc '{"linux": {"security_context": {"namespace_options": {"ipc": 2}}}}'
    container ipc main '{"linux": {"security_context": {"namespace_options": {"ipc": 2}}}}'
    has_label "$(of ipc main)" "$PROGRAMS"
    [[ $(label_of /dev/shm /dev/mqueue) = "$before" ]]
    remove_pod ipc
}

# volume PATH: prints a container's mount of it at /data, which is to be relabelled.
volume() {
    printf '{"mounts": [{"host_path": "%s", "container_path": "/data", "selinux_relabel": true}]}' "$1"
}

relabelled() {
    local outside inside
    mkdir -p /srv/volume/deep/er /srv/volume/mounted
    touch /srv/volume/file /srv/volume/deep/er/file /srv/outside
    ln -s /srv/outside /srv/volume/link
    mount -t tmpfs none /srv/volume/mounted
    outside=$(label_of /srv/outside /srv/volume/mounted /srv)
    container labels volume "$(volume /srv/volume)"
    inside=$(label_of /srv/volume{,/file,/link,/deep,/deep/er/file} | sort -u)
    [[ $inside = "$(status "$(of labels volume)" .info.runtimeSpec.linux.mountLabel)" ]]
    [[ $(label_of /srv/outside /srv/volume/mounted /srv) = "$outside" ]]
    umount --lazy /srv/volume/mounted
    # A file alone; and what another pod mounts next has its label.
    container other volume "$(volume /srv/volume/deep/er/file)"
    [[ $(level "$(label_of /srv/volume/deep/er/file)") = "$(level "$(label "$(of other volume)")")" ]]
    [[ $(level "$(label_of /srv/volume/file)") = "$(level "$(label "$(of labels volume)")")" ]]
}

not_relabelled() {
    local path before
    ln -s /usr /srv/link-to-usr
    for path in / /usr /etc /home /root /var /proc /sys /dev /srv/link-to-usr; do
        before=$(label_of "$(realpath "$path")")
        refused 'belongs to the whole machine' container labels bad "$(volume "$path")"
        [[ $(label_of "$(realpath "$path")") = "$before" ]]
    done
    # This file system was mounted with a label, and gives no other.
    mkdir /srv/labelled
    mount -t tmpfs -o 'context=system_u:object_r:tmp_t:s0' none /srv/labelled
    container labels labelled "$(volume /srv/labelled)"
    [[ $(label_of /srv/labelled) = system_u:object_r:tmp_t:s0 ]]
    umount --lazy /srv/labelled
}

image_labelled() {
    local root
    container labels image "{\"mounts\": [{\"container_path\": \"/image\", \"readonly\": true, \"image\": {\"image\": \"$image\"}}]}"
    root=/proc/$(status "$(of labels image)" .info.pid)/root
    [[ $(label_of "$root/image/bin/busybox") = "$(status "$(of labels image)" .info.runtimeSpec.linux.mountLabel)" ]]
}

enforced() {
    local id
    mkdir /srv/{ours,theirs}
    echo ours >/srv/ours/file
    echo theirs >/srv/theirs/file
    container other theirs "$(volume /srv/theirs)"
    container labels ours '{"mounts": [{"host_path": "/srv/ours", "container_path": "/ours", "selinux_relabel": true},
        {"host_path": "/srv/theirs", "container_path": "/theirs"}]}'
    id=$(of labels ours)
    [[ $(inside "$id" cat /theirs/file) = theirs ]]
    setenforce 1
    inside "$id" cat /ours/file /etc/hosts >"$work/enforced" 2>&1 || true
    inside "$id" touch /root-file /ours/new >>"$work/enforced" 2>&1 || true
    inside "$id" cat /theirs/file >"$work/forbidden" 2>&1 || true
    container labels enforced '{}' sh -c 'cat /proc/self/attr/current; exec sleep 1000000' >>"$work/enforced" 2>&1 || true
    setenforce 0
    dmesg | grep 'permissive=0' | tail -n 8
    cat "$work/enforced" "$work/forbidden"
    grep -x ours "$work/enforced"
    not grep -i denied "$work/enforced"
    grep 'ermission denied' "$work/forbidden"
    [[ -e /srv/ours/new ]]
    has_label "$(of labels enforced)" "$PROGRAMS"
}

suite() {
    printf 'defaultTestContainerImage: %s\n' "$image" >"$work/images.yaml"
    "$clients/critest" -runtime-endpoint unix:///run/wharf/wharf.sock -image-endpoint unix:///run/wharf/wharf.sock \
        -runtime-service-timeout 120s -test-images-file "$work/images.yaml" -ginkgo.focus SELinux -ginkgo.no-color \
        >"$work/suite" 2>&1 || true
    grep -E '\[(FAIL|It)\]|Ran |Passed' "$work/suite" | tail -n 12
    grep --fixed-strings '17 Passed | 0 Failed' "$work/suite"
}

labelled_by_runtime() {
    local id root
    pod "$handler"
    container "$handler" main '{}'
    id=$(of "$handler" main)
    has_label "$id" "$PROGRAMS"
    root=/proc/$(status "$id" .info.pid)/root
    [[ $(label_of "$root"/{bin,dev,dev/shm,etc/hosts,dev/mqueue} | sort -u) = "$(status "$id" .info.runtimeSpec.linux.mountLabel)" ]]
    remove_pod "$handler"
}

levels_kept() {
    local first
    first=$(label "$(of labels main)")
    with_labels 2
    container labels after-restart '{}'
    [[ $(label "$(of labels after-restart)") = "$first" ]]
    # There is one pair.
    pod one
    container one main '{}'
    has_label "$(of one main)" '^system_u:system_r:container_t:s0:c0,c1$'
    refused 'all pairs of the 2 categories are in use' pod two
    systemctl kill --signal KILL wharfd
    attempt 100 wharf ps
    refused 'all pairs of the 2 categories are in use' pod two
    has_label "$(of one main)" '^system_u:system_r:container_t:s0:c0,c1$'
    remove_pod one
    pod two
    container two main '{}'
    has_label "$(of two main)" '^system_u:system_r:container_t:s0:c0,c1$'
    remove_pod two
}

remove_labelled() {
    remove_pod labels
    remove_pod other
    rm -f /etc/wharf/config.toml.d/{selinux,handlers}.toml
    systemctl restart wharfd
}
