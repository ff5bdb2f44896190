# A cluster that kubeadm makes of two machines, one of which is restarted; sourced by walk.sh. The first machine, on which this
# runs, joins as `vm`; the other one, `plane`, is the control plane.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $repository, $work: walk.sh; what is in single quotes is for other shells

# The ranges of the nodes' pods.
plane_pods=10.244.0.0/24 vm_pods=10.244.1.0/24

see_kubeadm() {
    export KUBECONFIG=$work/admin.conf
    node=/srv/wharf/tests/vm/node.sh
    see 'the other machine is reached' reach_plane
    see 'what was installed by hand is removed' by_hand_removed
    see "wharf's package and kubeadm's programs are installed on both" both_prepared
    see 'wharf load has the images of the cluster, and busybox' both_have_images
    see 'kubeadm init' plane "$node" init
    see 'a control plane without a network for pods is not ready, and says why' waits_for_cni
    see 'kubeadm join' vm_joins
    see 'both nodes are ready once they have a CNI configuration' network_is_there
    see 'the kubelets have learnt the driver from wharf, and pods are in their slices' systemd_makes_cgroups
    see 'a pod of the service is on each node' web_is_deployed
    see 'and is reached by its name, from pods of both nodes' service_answers
    see 'kubectl logs and exec, on both nodes' logs_and_exec
    see 'a machine that is restarted ends its pods while it has a network' plane_restarts
    see 'its node is ready by itself' plane_is_ready
    see 'and so are its static pods and the others' plane_pods_are_ready
    see 'the service is reached again' service_answers
    see 'an address of each pod that lives, and no other, is taken' addresses_are_given_back
}

# plane COMMAND...: runs a command on the other machine.
plane() {
    ssh -i "$repository/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        -o ConnectTimeout=10 -o ServerAliveInterval=20 -o ServerAliveCountMax=10 root@192.0.2.1 "${@@Q}"
}

kubectl() {
    "$repository/cluster/kubectl" --request-timeout=60s "$@"
}

# within SECONDS COMMAND...: repeats a command each second until it succeeds, as long as there is time, and says why not. As in
# any condition, errexit has no effect there.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >"$work/words" 2>&1; do
        ((SECONDS < end)) || { cat "$work/words" && return 1; }
        sleep 1
    done
}

reach_plane() {
    "$repository/tests/vm/other.sh" connect 192.0.2.2
    chmod 600 "$repository/key"
    within 300 plane true
}

both_prepared() {
    plane "$node" prepare
    "$node" prepare
}

both_have_images() {
    local archive=$repository/cluster/images.tar
    wharf load -i "$archive" &
    plane wharf load -i "$archive"
    wait $!
    wharf pull "$image"
    wharf save "$image" | plane wharf load
}

waits_for_cni() {
    plane cat /etc/kubernetes/admin.conf >"$KUBECONFIG"
    kubectl get node plane -o 'jsonpath={.status.nodeInfo.containerRuntimeVersion}' | grep '^wharf://'
    kubectl get node plane -o 'jsonpath={.status.conditions[?(@.type=="Ready")].message}' | grep 'NetworkReady=false'
    kubectl taint node plane node-role.kubernetes.io/control-plane-
}

# As kubeadm says it at the end of init, with the socket.
vm_joins() {
    local join
    join=$(plane kubeadm token create --print-join-command)
    $join --cri-socket unix:///run/wharf/wharf.sock
}

network_is_there() {
    [[ $(kubectl get node plane -o 'jsonpath={.spec.podCIDR}') = "$plane_pods" ]]
    [[ $(kubectl get node vm -o 'jsonpath={.spec.podCIDR}') = "$vm_pods" ]]
    plane "$node" network "$plane_pods" "$vm_pods" 192.0.2.2
    "$node" network "$vm_pods" "$plane_pods" 192.0.2.1
    kubectl wait --for=condition=Ready node/plane node/vm --timeout=600s
    kubectl -n kube-system rollout status deployment/coredns daemonset/kube-proxy --timeout=900s
}

systemd_makes_cgroups() {
    kubectl get --raw /api/v1/nodes/vm/proxy/configz | jq --exit-status '.kubeletconfig.cgroupDriver == "systemd"'
    [[ $(systemctl is-active kubepods.slice) = active ]]
    systemctl list-units --plain --no-legend 'wharf-*.scope' | grep running
    plane systemctl list-units --plain --no-legend 'wharf-*.scope' | grep running
}

web_is_deployed() {
    kubectl apply -f "$repository/tests/vm/kubeadm.yaml"
    kubectl rollout status deployment/web daemonset/client --timeout=900s
    [[ $(of_web '{.items[*].spec.nodeName}' | wc -l) = 2 ]]
}

# of_web PATH: prints different values of its pods that run.
of_web() {
    kubectl get pods -l app=web --field-selector=status.phase=Running -o "jsonpath=$1" | tr ' ' '\n' | sort --unique
}

service_answers() {
    local where
    for where in plane vm; do
        within 300 answered_by_all "$where"
    done
}

# answered_by_all NODE: whether a client there gets answers of both pods.
answered_by_all() {
    local client pods
    client=$(client_on "$1")
    pods=$(of_web '{.items[*].metadata.name}')
    [[ $(wc -l <<<"$pods") = 2 ]] || return 1
    kubectl exec "$client" -- sh -c 'for i in $(seq 12); do wget -qO- -T 5 http://web.default.svc.cluster.local/; done' |
        sort --unique | diff - <(echo "$pods")
}

client_on() {
    kubectl get pods -l app=client --field-selector="spec.nodeName=$1,status.phase=Running" -o 'jsonpath={.items[0].metadata.name}'
}

logs_and_exec() {
    local where
    for where in plane vm; do
        kubectl logs "$(client_on "$where")" | grep -x "client on $where"
        [[ $(kubectl exec "$(client_on "$where")" -- printenv NODE) = "$where" ]]
    done
}

# plane_restarts: when it is told to end, a client there says goodbye to a listener here.
plane_restarts() {
    local before
    kubectl wait --for=condition=Ready pod/listener --timeout=300s
    before=$(plane cat /proc/sys/kernel/random/boot_id)
    # The connection ends with it.
    plane systemctl reboot || true
    within 600 is_restarted "$before"
    crictl logs "$(crictl ps --quiet --name listener)" | grep -x 'goodbye from plane'
}

# is_restarted BOOT-ID
is_restarted() {
    local now
    now=$(plane cat /proc/sys/kernel/random/boot_id)
    [[ -n $now && $now != "$1" ]]
}

# plane_is_ready: as the kubelet of this boot says it.
plane_is_ready() {
    local boot
    boot=$(plane cat /proc/sys/kernel/random/boot_id)
    within 900 kubectl wait --for="jsonpath={.status.nodeInfo.bootID}=$boot" node/plane --timeout=10s
    kubectl wait --for=condition=Ready node/plane --timeout=600s
}

plane_pods_are_ready() {
    local name
    for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
        kubectl -n kube-system wait --for=condition=Ready "pod/$name-plane" --timeout=600s
    done
    kubectl -n kube-system rollout status daemonset/kube-proxy deployment/coredns --timeout=600s
    kubectl rollout status daemonset/client deployment/web --timeout=600s
}

# addresses_are_given_back: host-local keeps a file for each on the disk, and a machine that is restarted deletes no pod.
addresses_are_given_back() {
    within 300 addresses_are_those_of_pods
}

addresses_are_those_of_pods() {
    plane sh -c 'cd /var/lib/cni/networks/cluster && ls' | grep '^10\.' | sort >"$work/taken"
    plane sh -c 'crictl pods --state ready --quiet | xargs --max-args 1 crictl inspectp' |
        jq --raw-output '.status.network.ip // empty' | sort | grep '^10\.244\.' | diff "$work/taken" -
}
