# Commands of kubectl that reach into containers; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh

check_exec() {
    pod main "$idle"
    ready main
    has '^inside$' k exec main -- echo inside
    has '^3$' k exec -i main -- wc -l < <(printf '1\n2\n3\n')
    local status=0
    k exec main -- sh -c 'echo problem >&2; exit 7' 2>"$scratch" || status=$?
    ((status == 7))
    grep '^problem$' "$scratch"
    # On a terminal, of a size. The end of script's input is a character that the terminal shows as ^@.
    has '/dev/pts/' script --quiet --return --command "stty rows 33 cols 99; $(declare_k) exec -it main -- tty" /dev/null
    has '33 99' script --quiet --return --command "stty rows 33 cols 99; $(declare_k) exec -it main -- sh -c 'sleep 0.5; stty size'" /dev/null
    fails k exec main -- /absent
    # Much in both directions.
    head -c 20000000 /dev/urandom >"$scratch"
    [[ $(k exec -i main -- cat <"$scratch" | sha256sum) = "$(sha256sum <"$scratch")" ]]
}

# declare_k: prints kubectl as a command for a program that runs it.
declare_k() {
    printf '%q ' "$0" kubectl --namespace "$namespace"
}

check_attach() {
    # shellcheck disable=SC2016 # for the container's shell
    pod asks 'while read word; do echo "got $word"; [ "$word" != end ] || exit 0; done' '"stdin": true, "stdinOnce": true' '"restartPolicy": "Never"'
    ready asks
    has '^got end$' k attach -i asks < <(sleep 1; printf 'one\nend\n')
    ended asks Succeeded
    has '^got one$' k logs asks
    has '^3$' k run counts --rm -i --image="$busybox" --restart=Never -- wc -l < <(printf '1\n2\n3\n')
}

check_cp() {
    local dir=$scratch.dir
    pod main "$idle"
    ready main
    mkdir -p "$dir/from/below"
    head -c 3000000 /dev/urandom >"$dir/from/below/file"
    ln -s below/file "$dir/from/link"
    k cp "$dir/from" "$namespace/main:/tmp/there"
    k cp "$namespace/main:/tmp/there" "$dir/back"
    cmp "$dir/from/below/file" "$dir/back/below/file"
    rm -r "$dir"
}

check_port_forward() {
    local port client
    servers web 1
    k expose deployment/web --port=80 --target-port=8080
    k port-forward service/web :80 >"$scratch" &
    client=$!
    eventually 20 grep -q '127.0.0.1:' "$scratch"
    port=$(sed -nE 's/.*127.0.0.1:([0-9]+) .*/\1/p' "$scratch" | head -n 1)
    local _
    for _ in {1..10}; do has '^web-' enter curl --silent --fail --max-time 5 "http://127.0.0.1:$port/"; done
    kill "$client"
}

check_proxy() {
    servers web 1
    k expose deployment/web --port=80 --target-port=8080
    eventually 20 has '^web-' kubectl get --raw "/api/v1/namespaces/$namespace/services/web/proxy/"
}

check_debug() {
    pod main "touch /tmp/here; $idle"
    ready main
    k debug main --image="$busybox" --container=look --profile=general --target=main -- sh -c 'ls /proc/1/root/tmp; sleep 1000'
    k wait --for=jsonpath='{.status.ephemeralContainerStatuses[0].state.running}' --timeout=30s pod/main
    eventually 10 has '^here$' k logs main --container=look
    k debug main --image="$busybox" --copy-to=copy --container=main --profile=general -- sleep 1000
    ready copy
    k debug node/node1 --image="$busybox" --profile=sysadmin -- chroot /host cat /etc/debian_version
    eventually 30 has '^Succeeded$' k get pods --no-headers -o custom-columns=phase:.status.phase
}

check_logs() {
    pod talks 'echo first; sleep 1; echo second >&2; sleep 1; echo last' '' '"restartPolicy": "Never"'
    ended talks Succeeded
    has '^second$' k logs talks
    has '^last$' k logs talks --tail=1
    hasnt first k logs talks --tail=1
    has '^20..-.*Z first$' k logs talks --timestamps
    hasnt first k logs talks --since-time="$(k logs talks --timestamps | sed -n '2s/ .*//p')"
    # shellcheck disable=SC2016 # for the container's shell
    pod counts 'i=0; while [ $i -lt 20 ]; do i=$((i + 1)); echo line $i; sleep 0.1; done'
    ready counts
    has '^line 20$' k logs counts --follow
    eventually 30 has '^[1-9]' field pod/counts '.status.containerStatuses[0].restartCount'
    has '^line 20$' k logs counts --previous
    has 'talks.*first' k logs --selector app=talks --prefix
}

check_log_rotation() {
    local dir
    # shellcheck disable=SC2016 # for the container's shell
    pod floods 'i=0; while :; do i=$((i + 1)); echo "line $i of many that fill the log"; [ $((i % 50)) != 0 ] || sleep 0.05; done' \
        '' '"nodeName": "node1"'
    ready floods
    dir=$rig/node1/pods/${namespace}_floods_$(field pod/floods .metadata.uid)/main
    eventually 40 has '^[3-9]' sh -c "ls $dir | wc -l"
    # Those that were followed meanwhile went on, and no file grows without end.
    has '.' k logs floods --tail=5
    k logs floods --follow --tail=1 >"$scratch" &
    eventually 20 has '^[0-9]{4}' sh -c "wc -l <$scratch"
    kill $!
    # Nothing is missing between two lines.
    awk '$2 != last + 1 && last { exit 1 } { last = $2 }' "$scratch"
    (($(du -sk "$dir" | cut -f1) < 3000))
}

check_describe() {
    pod main "$idle"
    ready main
    has '^ *Container ID: *wharf://' k describe pod main
    has 'Started container|Container started' k describe pod main
    has 'wharf://' kubectl get nodes -o wide
    kubectl describe node node1
}

check_wait_and_watch() {
    k get pods --watch --output=name >"$scratch" &
    pod main "$idle"
    ready main
    eventually 10 grep '^pod/main$' "$scratch"
    kill $!
    k annotate pod main note=yes
    k delete pod main --wait=false
    k wait --for=delete pod/main --timeout=30s
}
