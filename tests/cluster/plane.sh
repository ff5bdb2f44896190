# The control plane of a cluster: its keys, etcd, Kubernetes' servers and CoreDNS; sourced by hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $rig: rig.sh; $kubernetes, $images: hack/cluster

# The addresses of the two ends of rig.sh's uplink.
# shellcheck disable=SC2034 # the second is used by node.sh
plane_address=192.0.2.1
second_address=192.0.2.2
pod_range=10.86.0.0/16
service_range=10.96.0.0/16
dns_address=10.96.0.10
server=https://$plane_address:6443

# start_plane: starts what answers at $server, and waits for it. The API server needs etcd, the others need the API server.
start_plane() {
    local dir=$rig/plane
    authority "$dir"
    keep etcd "$kubernetes/etcd" --data-dir "$dir/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:0
    keep kube-apiserver "$kubernetes/kube-apiserver" \
        --advertise-address $plane_address --secure-port 6443 --etcd-servers http://127.0.0.1:2379 \
        --service-cluster-ip-range $service_range --authorization-mode Node,RBAC \
        --enable-admission-plugins NodeRestriction --allow-privileged --feature-gates ContainerStopSignals=true \
        --client-ca-file "$dir/ca.crt" --tls-cert-file "$dir/server.crt" --tls-private-key-file "$dir/server.key" \
        --kubelet-certificate-authority "$dir/ca.crt" --kubelet-preferred-address-types InternalIP \
        --kubelet-client-certificate "$dir/admin.crt" --kubelet-client-key "$dir/admin.key" \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$dir/accounts.key" --service-account-signing-key-file "$dir/accounts.key"
    await 'the API server' 300 kubectl get --raw /readyz
    keep kube-controller-manager "$kubernetes/kube-controller-manager" --kubeconfig "$dir/controllers.conf" \
        --leader-elect=false --use-service-account-credentials --root-ca-file "$dir/ca.crt" \
        --service-account-private-key-file "$dir/accounts.key" --allocate-node-cidrs --cluster-cidr $pod_range
    keep kube-scheduler "$kubernetes/kube-scheduler" --kubeconfig "$dir/scheduler.conf" --leader-elect=false
}

# authority DIR: makes the cluster's certificates, keys and kubeconfig files. The names of users and groups are those that
# the API server's default roles are bound to.
authority() {
    local dir=$1
    mkdir -p "$dir"
    quietly openssl req -x509 "${key[@]}" -days 30 -subj /CN=wharf -keyout "$dir/ca.key" -out "$dir/ca.crt"
    quietly openssl genpkey -algorithm RSA -out "$dir/accounts.key"
    certificate server /CN=kube-apiserver "IP:$plane_address,IP:10.96.0.1,DNS:kubernetes.default.svc,DNS:kubernetes.default"
    user admin /O=system:masters/CN=admin
    user controllers /CN=system:kube-controller-manager
    user scheduler /CN=system:kube-scheduler
    user proxy /CN=system:kube-proxy
}

key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

# certificate NAME SUBJECT ADDRESSES: makes NAME.crt and NAME.key for a server and client.
certificate() {
    local dir=$rig/plane
    quietly openssl req -x509 "${key[@]}" -days 30 -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -subj "$2" \
        -addext basicConstraints=critical,CA:false -addext "subjectAltName=$3" \
        -keyout "$dir/$1.key" -out "$dir/$1.crt"
}

# user NAME SUBJECT [ADDRESSES]: makes a client's certificate, and NAME.conf with it.
user() {
    local dir=$rig/plane
    certificate "$1" "$2" "${3-DNS:$1}"
    cat >"$dir/$1.conf" <<CONFIG
{"apiVersion": "v1", "kind": "Config", "current-context": "wharf",
 "clusters": [{"name": "wharf", "cluster": {"server": "$server", "certificate-authority": "$dir/ca.crt"}}],
 "users": [{"name": "$1", "user": {"client-certificate": "$dir/$1.crt", "client-key": "$dir/$1.key"}}],
 "contexts": [{"name": "wharf", "context": {"cluster": "wharf", "user": "$1"}}]}
CONFIG
}

# serve_cluster_images: starts the registry with only the images that the cluster needs, so that it is ready soon. Its port is
# not 5000, where the registry of a spec listens on the node.
serve_cluster_images() {
    offer "$images" library/busybox library/nginx library/python
    offer "$kubernetes/images" coredns/coredns
    if [[ -n $suite ]]; then
        suite_images "$rig/suite"
        # shellcheck disable=SC2046 # names of repositories
        offer "$rig/suite" $(jq --raw-output 'map(.name) | unique[]' "$rig/suite/images.json")
    fi
    jq --slurp add "$rig/images/offered" >"$rig/images/images.json"
    serve_images "$rig/images" 5001
}

# offer IMAGES REPOSITORY...: adds these to the images that the registry has.
offer() {
    local dir=$rig/images from=$1 name
    shift
    for name; do
        mkdir -p "$(dirname "$dir/$name")"
        ln -s "$from/$name" "$dir/$name"
    done
    jq 'map(select([.name] | inside($ARGS.positional)))' "$from/images.json" --args "$@" >>"$dir/offered"
}

# start_dns: has the cluster run CoreDNS.
start_dns() {
    local image
    image=$(jq --raw-output '.[].references[0]' "$kubernetes/images/images.json")
    sed -e "s|@IMAGE@|$image|; s|@ADDRESS@|$dns_address|" "$repository/tests/cluster/coredns.yaml" | kubectl apply -f -
}
