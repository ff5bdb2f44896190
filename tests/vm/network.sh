# The built-in network on a machine with nftables and udev; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $work: walk.sh

see_network() {
    node_address=192.0.2.1 other_address=192.0.2.2
    another_machine
    see 'an image of several layers is pulled' crictl pull docker.io/library/nginx:latest
    see 'a pod with a published port, and another' two_pods
    see 'a pod has addresses of both families, and a route' addresses
    see 'the node reaches a pod' eventually_serves node "http://$(address web)/"
    see 'a pod reaches another by IPv4 and IPv6' pod_to_pod
    see 'a published port on 127.0.0.1' serves node http://127.0.0.1:8080/
    see "a published port on the node's address, from the node" serves node "http://$node_address:8080/"
    see "a published port on the node's address, from another machine" serves other "http://$node_address:8080/"
    see "a published port on the node's address, from another pod" from_pod client "http://$node_address:8080/"
    see "a published port on the node's address, from its own pod" from_pod web "http://$node_address:8080/"
    see "a pod reaches another machine, with the node's address" masqueraded
    see 'a port stays published when wharfd is started again' port_after systemctl restart wharfd
    see 'and when the rules of all others are loaded anew' port_after reload_rules
    see "a pod on the host's network" host_network
    see 'a port is free again when its pod is gone' port_is_free
    see 'the pod client is removed' remove_pod client
    no_other_machine
}

# another_machine: makes a namespace at the other end of a link of the node.
another_machine() {
    ip netns add other
    ip link add lan0 type veth peer name eth0 netns other
    ip address add "$node_address/24" dev lan0
    ip link set lan0 up
    ip -n other address add "$other_address/24" dev eth0
    ip -n other link set eth0 up
    ip -n other link set lo up
}

two_pods() {
    pod web '{"port_mappings": [{"container_port": 80, "host_port": 8080}]}'
    container web nginx '{"image": {"image": "docker.io/library/nginx:latest"}}' nginx -g 'daemon off;'
    pod client
    container client client '{}'
}

# no_other_machine: removes it, with what it and Debian's nftables rules left on the node.
no_other_machine() {
    ip netns delete other
    umount /run/netns
    nft delete table inet filter
}

# address POD [N]: prints a pod's address; the first is IPv4.
address() {
    crictl inspectp "$(pod_id "$1")" | jq --raw-output "[.status.network.ip, .status.network.additionalIps[].ip][${2-0}]"
}

addresses() {
    [[ $(address web) = 10.213.* ]]
    [[ $(address web 1) = fd77:6861:7266:* ]]
    ip route show "$(address web)" | grep 'dev wh'
}

# serves WHERE URL: checks that the node or the other machine gets a page.
serves() {
    local from=()
    [[ $1 = node ]] || from=(ip netns exec "$1")
    "${from[@]}" curl --silent --show-error --max-time 10 --fail "$2" | grep --ignore-case '<html'
}

# eventually_serves: the same with retries, because the server takes a moment to start.
eventually_serves() {
    attempt 100 serves "$@"
    serves "$@"
}

# from_pod POD URL
from_pod() {
    local name=client
    [[ $1 != web ]] || name=nginx
    if [[ $name = client ]]; then
        inside "$(of "$1" $name)" wget -q -O - "$2" | grep --ignore-case '<html'
    else
        # The server's image has no client except its shell.
        inside "$(of "$1" $name)" bash -c "exec 3<>/dev/tcp/$node_address/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3" |
            grep --ignore-case '<html'
    fi
}

pod_to_pod() {
    from_pod client "http://$(address web)/"
    inside "$(of client client)" ping -c 1 -w 10 "$(address web 1)"
}

masqueraded() {
    inside "$(of client client)" cat /bin/busybox >"$work/busybox"
    chmod +x "$work/busybox"
    mkdir -p "$work/pages"
    echo '<html>other</html>' >"$work/pages/index.html"
    ip netns exec other "$work/busybox" httpd -f -v -p 8000 -h "$work/pages" 2>"$work/seen" &
    attempt 100 serves node "http://$other_address:8000/"
    from_pod client "http://$other_address:8000/"
    kill $!
    cat "$work/seen"
    not grep -F 10.213. "$work/seen"
}

port_after() {
    "$@"
    serves node http://127.0.0.1:8080/
    serves other "http://$node_address:8080/"
}

# What an administrator does after a change to /etc/nftables.conf, whose first line empties all tables; wharfd restores its
# own table when it starts.
reload_rules() {
    systemctl restart nftables
    systemctl restart wharfd
}

host_network() {
    local id
    pod host '{"linux": {"security_context": {"namespace_options": {"network": 2}}}}'
    container host host '{"linux": {"security_context": {"namespace_options": {"network": 2}}}}'
    id=$(of host host)
    inside "$id" ip address show dev lan0
    [[ $(inside "$id" hostname) = "$(hostname)" ]]
    remove_pod host
}

port_is_free() {
    remove_pod web
    not serves node http://127.0.0.1:8080/
    not grep 8080 <(nft list ruleset)
}
