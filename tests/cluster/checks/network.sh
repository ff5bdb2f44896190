# Services, names and ports; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh; $plane_address: plane.sh

get() {
    enter curl --silent --show-error --fail --max-time 5 "$@"
}

check_service() {
    local address port
    servers web 2
    k expose deployment/web --port=80 --target-port=8080
    pod client "$idle"
    ready client
    eventually 20 k exec client -- wget -q -T 2 -O- http://web/
    address=$(field service/web .spec.clusterIP)
    # Both are asked, from a pod and from the node.
    # shellcheck disable=SC2016 # for the container's shell
    has '^2$' k exec client -- sh -c 'for i in $(seq 30); do wget -q -T 2 -O- http://web/; done | sort -u | wc -l'
    get "http://$address/"
    # A pod reaches itself by its service.
    k scale deployment/web --replicas=1
    k rollout status deployment/web --timeout=60s
    eventually 20 k exec deployment/web -- wget -q -T 2 -O- http://web/
    k expose deployment/web --name=outside --type=NodePort --port=80 --target-port=8080
    port=$(field service/outside '.spec.ports[0].nodePort')
    eventually 20 get "http://$plane_address:$port/"
    # Without pods, it is refused.
    k scale deployment/web --replicas=0
    eventually 20 fails get "http://$address/"
}

check_service_affinity() {
    servers web 3
    k apply -f - <<JSON
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
 "spec": {"selector": {"app": "web"}, "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": 8080}]}}
JSON
    pod client "$idle"
    ready client
    eventually 20 k exec client -- wget -q -T 2 -O- http://web/
    # shellcheck disable=SC2016 # for the container's shell
    has '^1$' k exec client -- sh -c 'for i in $(seq 20); do wget -q -T 2 -O- http://web/; done | sort -u | wc -l'
}

# look_up NAME: prints what the pod client is answered; nslookup fails if one of its two questions has no answer.
look_up() {
    k exec client -- sh -c "nslookup $1 || true"
}

check_dns() {
    servers web 1
    k create service clusterip web --tcp=80:8080
    k create service externalname far --external-name=far.example.org
    pod client "$idle"
    ready client
    has '^nameserver 10.96.0.10$' k exec client -- cat /etc/resolv.conf
    has "^search $namespace.svc.cluster.local svc.cluster.local cluster.local" k exec client -- cat /etc/resolv.conf
    has '^Address: 10.96.0.1$' look_up kubernetes.default.svc.cluster.local
    eventually 20 has "^Address: $(field service/web .spec.clusterIP)$" look_up "web.$namespace.svc.cluster.local"
    eventually 20 k exec client -- wget -q -T 2 -O- http://web/
    k exec client -- wget -q -T 2 -O- "http://web.$namespace/"
    eventually 20 has 'canonical name = far.example.org' look_up "far.$namespace.svc.cluster.local"
    pod named 'cat /etc/resolv.conf; hostname; hostname -f' '' '"restartPolicy": "Never", "hostname": "me", "subdomain": "us",
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["example.org"], "options": [{"name": "ndots", "value": "2"}]},
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["seven"]}]'
    ended named Succeeded
    has '^nameserver 192.0.2.53$' k logs named
    has '^options ndots:2$' k logs named
    has '^me$' k logs named
    has "^me.us.$namespace.svc.cluster.local$" k logs named
}

check_source_address() {
    local address client
    # shellcheck disable=SC2016 # for the container's shell
    pod server 'mkdir -p /tmp/cgi-bin; printf "#!/bin/sh\necho; echo from \$REMOTE_ADDR\n" >/tmp/cgi-bin/who; chmod +x /tmp/cgi-bin/who
        exec httpd -f -p 8080 -h /tmp' '"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}'
    k expose pod server --port=80 --target-port=8080
    pod client "$idle"
    ready server client
    address=$(field pod/server .status.podIP)
    client=$(field pod/client .status.podIP)
    has "^from (::ffff:|\\[::ffff:)?$client" k exec client -- wget -q -T 2 -O- "http://$address:8080/cgi-bin/who"
    eventually 20 k exec client -- wget -q -T 2 -O- http://server/cgi-bin/who
    # With CNI plugins, kube-proxy has the node ask in the client's place.
    [[ -e $rig/node1/cni/10-bridge.conflist ]] ||
        has "^from (::ffff:|\\[::ffff:)?$client" k exec client -- wget -q -T 2 -O- http://server/cgi-bin/who
}

check_host_port() {
    # shellcheck disable=SC2016 # for the container's shell
    pod web 'hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp' '"ports": [{"containerPort": 8080, "hostPort": 18080}]' \
        '"nodeName": "node1"'
    ready web
    eventually 10 has '^web$' get "http://$plane_address:18080/"
    has '^web$' get http://127.0.0.1:18080/
    k delete pod web
    eventually 10 fails get "http://$plane_address:18080/"
}

check_host_namespaces() {
    pod host "$idle" '' '"hostNetwork": true, "hostPID": true, "hostIPC": true, "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeName": "node1"'
    ready host
    has uplink0 k exec host -- ip link
    has wharfd k exec host -- ps
    has "^$plane_address$" field pod/host .status.podIP
    has '^nameserver 10.96.0.10$' k exec host -- cat /etc/resolv.conf
}

check_pod_to_pod() {
    local address
    servers web 1
    address=$(field pods '.items[0].status.podIP')
    pod client "$idle"
    ready client
    k exec client -- wget -q -T 2 -O- "http://$address:8080/"
    k exec client -- ping -c 1 -W 2 "$address"
    k exec client -- ping -c 1 -W 2 "$plane_address"
    get "http://$address:8080/"
}

check_network_sysctls() {
    pod tuned 'cat /proc/sys/net/ipv4/ip_local_port_range' '' '"restartPolicy": "Never",
        "securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "40000 41000"}]}'
    ended tuned Succeeded
    has '^40000.41000$' k logs tuned
}
