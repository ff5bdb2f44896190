# Probes, hooks and the end of pods; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh

check_readiness() {
    pod web "$idle" '"readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}'
    k wait --for=jsonpath='{.status.phase}'=Running --timeout=60s pod/web
    has '^False$' field pod/web '.status.conditions[?(@.type=="Ready")].status'
    k exec web -- touch /tmp/ready
    ready web
    k exec web -- rm /tmp/ready
    k wait --for=condition=Ready=false --timeout=20s pod/web
    has '^0$' field pod/web '.status.containerStatuses[0].restartCount'
}

check_readiness_gates() {
    pod web "$idle" '' '"readinessGates": [{"conditionType": "example.org/checked"}]'
    k wait --for=condition=ContainersReady --timeout=60s pod/web
    k patch pod web --subresource=status --patch '{"status": {"conditions": [{"type": "example.org/checked", "status": "True"}]}}'
    ready web
}

# restarted POD: whether its container has been restarted by a failed probe.
restarted() {
    eventually 40 has '^[1-9]' field "pod/$1" '.status.containerStatuses[0].restartCount'
}

check_liveness() {
    local probe='"periodSeconds": 1, "failureThreshold": 2'
    pod command "touch /tmp/alive; $idle" '"livenessProbe": {"exec": {"command": ["cat", "/tmp/alive"]}, '"$probe}"
    pod http "echo yes >/tmp/alive; httpd -p 8080 -h /tmp; $idle" '"livenessProbe": {"httpGet": {"port": 8080, "path": "/alive"}, '"$probe}"
    pod tcp "httpd -p 8080; $idle" '"livenessProbe": {"tcpSocket": {"port": 8080}, '"$probe}"
    pod slow "$idle" '"livenessProbe": {"exec": {"command": ["sleep", "100"]}, "timeoutSeconds": 1, '"$probe}"
    ready command http tcp
    k exec command -- rm /tmp/alive
    k exec http -- rm /tmp/alive
    k exec tcp -- killall httpd
    restarted command
    restarted http
    restarted tcp
    restarted slow
    has 'Liveness probe failed' k events
}

check_startup() {
    pod slow "sleep 3; touch /tmp/started; $idle" '"startupProbe": {"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1,
        "failureThreshold": 30}, "livenessProbe": {"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1}'
    ready slow
    has '^0$' field pod/slow '.status.containerStatuses[0].restartCount'
}

check_hooks() {
    local shared=$rig/shared/$namespace
    pod hooked "echo main >>/shared/order; trap 'echo term >>/shared/order; exit' TERM; while :; do sleep 0.1; done" \
        '"volumeMounts": [{"name": "shared", "mountPath": "/shared"}], "lifecycle": {
            "postStart": {"exec": {"command": ["sh", "-c", "sleep 1; echo after the start >>/shared/order"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "echo before the stop >>/shared/order; sleep 1"]}}}' \
        '"volumes": [{"name": "shared", "hostPath": {"path": "'"$shared"'", "type": "DirectoryOrCreate"}}]'
    ready hooked
    k delete pod hooked --timeout=30s
    has '^main after the start before the stop term $' tr '\n' ' ' <"$shared/order"
    pod sleepy "$idle" '"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}'
    ready sleepy
    k delete pod sleepy --timeout=30s
    pod bad "$idle" '"lifecycle": {"postStart": {"exec": {"command": ["false"]}}}'
    eventually 30 has FailedPostStartHook k events
}

check_grace() {
    local began
    pod stubborn 'trap "" TERM; while :; do sleep 0.1; done' '' '"terminationGracePeriodSeconds": 3'
    ready stubborn
    began=$SECONDS
    k delete pod stubborn --timeout=30s
    ((SECONDS - began >= 3 && SECONDS - began < 15))
    pod stubborn 'trap "" TERM; while :; do sleep 0.1; done' '' '"terminationGracePeriodSeconds": 600'
    ready stubborn
    began=$SECONDS
    k delete pod stubborn --grace-period=1 --timeout=30s
    ((SECONDS - began < 15))
    pod stubborn 'trap "" TERM; while :; do sleep 0.1; done'
    ready stubborn
    k delete pod stubborn --force --timeout=30s
}

check_stop_signal() {
    k apply -f - <<JSON
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "signalled"}, "spec": {"restartPolicy": "Never", "os": {"name": "linux"},
 "containers": [$(container main 'trap "echo hup >/dev/termination-log; exit 3" HUP; trap "" TERM; while :; do sleep 0.1; done' \
    '"lifecycle": {"stopSignal": "SIGHUP"}')], "activeDeadlineSeconds": 3}}
JSON
    ended signalled Failed
    has '^DeadlineExceeded$' field pod/signalled .status.reason
    eventually 10 has '^hup$' field pod/signalled '.status.containerStatuses[0].state.terminated.message'
}

check_shared_processes() {
    pod both "$idle" '' '"shareProcessNamespace": true'
    ready both
    has 'sleep 100000' k exec both -- ps
    hasnt '^ *1 .*sleep 100000' k exec both -- ps
}
