# Exec, attach, port-forward and logs, through crictl; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # $work: walk.sh; what is in single quotes is for the shells of containers

# shellcheck source=../conformance/smoke.sh
. "$here/../conformance/smoke.sh"

see_streams() {
    # The variables that smoke.sh needs.
    rig=$work runtime=wharf
    see "the walk through crictl's commands" smoke
    see 'a pod for the streams' streams_pod
    see "a command's exit code" exec_code
    see 'a command with a terminal' exec_terminal
    see 'many bytes through a command and back' exec_bytes
    see 'attach talks to the program of a container' attached
    see 'a port of the node leads into a pod' forwarded
    see 'logs: all, the last, followed' logs
    see 'wharf run, exec, logs and rm' own_commands
    see 'the pod streams is removed' remove_pod streams
}

# smoke.sh has removed the image.
streams_pod() {
    crictl pull "$image"
    pod streams
    container streams main '{}'
}

exec_code() {
    crictl exec "$(of streams main)" true
    refused 'command terminated with exit code 37' crictl exec "$(of streams main)" sh -c 'exit 37'
}

exec_terminal() {
    script --quiet --return --command "$clients/crictl exec -i -t $(of streams main) sh -c 'tty; stty size; echo end'" \
        /dev/null </dev/null | tee "$work/out"
    grep '/dev/pts/0' "$work/out"
    grep end "$work/out"
}

exec_bytes() {
    head -c 4000000 /dev/urandom >"$work/bytes"
    crictl exec --interactive "$(of streams main)" cat <"$work/bytes" >"$work/back"
    cmp "$work/bytes" "$work/back"
}

attached() {
    container streams talker '{"stdin": true, "stdin_once": true}' sh -c 'read line; echo "heard $line"; sleep 1'
    echo hello | crictl attach --stdin "$(of streams talker)" | grep 'heard hello'
    attempt 100 has_exited "$(of streams talker)"
}

forwarded() {
    container streams server '{}' sh -c 'echo "<html>forwarded</html>" >/tmp/index.html; httpd -f -p 80 -h /tmp'
    crictl port-forward "$(pod_id streams)" 9001:80 >"$work/forward" 2>&1 &
    eventually_serves node http://127.0.0.1:9001/
    kill $!
}

logs() {
    local id
    container streams writer '{}' sh -c 'for i in 1 2 3; do echo line $i; done; echo err >&2; sleep 1; echo last'
    id=$(of streams writer)
    attempt 100 has_exited "$id"
    crictl logs "$id" >"$work/out" 2>"$work/err"
    [[ $(<"$work/out") = $'line 1\nline 2\nline 3\nlast' && $(<"$work/err") = err ]]
    [[ $(crictl logs --tail 1 "$id") = last ]]
    grep -E '^[0-9T:.-]+(Z|[+-][0-9:]+) stdout F last$' /var/log/pods/streams/writer.log
}

own_commands() {
    wharf run --detach --name own "$image" sh -c 'echo started; exec sleep 100000'
    wharf exec own echo inside | grep inside
    attempt 50 own_log
    wharf ps | grep own
    wharf rm --force own
}

own_log() {
    wharf logs own | grep started
}
