# Two nodes; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh; $plane_address, $second_address: plane.sh

# server_on NAME NODE: makes a pod that says who asks.
server_on() {
    # shellcheck disable=SC2016 # for the container's shell
    pod "$1" 'mkdir -p /tmp/cgi-bin; printf "#!/bin/sh\necho; echo $HOSTNAME asked by \$REMOTE_ADDR\n" >/tmp/cgi-bin/who
        chmod +x /tmp/cgi-bin/who; exec httpd -f -p 8080 -h /tmp' \
        '"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}' '"nodeName": "'"$2"'"'
}

two_pods() {
    local from to
    server_on one node1
    server_on two node2
    ready one two
    for from in one two; do
        for to in one two; do
            has "^$to asked by" k exec $from -- wget -q -T 2 -O- "http://$(field pod/$to .status.podIP):8080/cgi-bin/who"
        done
    done
    # No node speaks in a pod's place.
    has "asked by .*$(field pod/one .status.podIP)" k exec one -- wget -q -T 2 -O- "http://$(field pod/two .status.podIP):8080/cgi-bin/who"
    k logs two
}

two_service() {
    local from port
    server_on two node2
    pod one "$idle" '' '"nodeName": "node1"'
    ready one two
    k expose pod two --port=80 --target-port=8080 --type=NodePort
    for from in one two; do
        eventually 20 has '^two asked by' k exec $from -- wget -q -T 2 -O- http://two/cgi-bin/who
    done
    port=$(field service/two '.spec.ports[0].nodePort')
    eventually 20 has '^two asked by' get "http://$plane_address:$port/cgi-bin/who"
    has '^two asked by' get "http://$second_address:$port/cgi-bin/who"
}
