# Deployments, jobs and their kind; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh

check_deployment() {
    servers web 2
    k scale deployment/web --replicas=4
    k rollout status deployment/web --timeout=60s
    k set env deployment/web COLOUR=blue
    k rollout status deployment/web --timeout=60s
    has '^COLOUR=blue$' k exec deployment/web -- env
    k rollout undo deployment/web
    k rollout status deployment/web --timeout=60s
    hasnt COLOUR k exec deployment/web -- env
    k rollout restart deployment/web
    k rollout status deployment/web --timeout=60s
    k delete deployment/web --cascade=foreground --timeout=60s
    eventually 30 hasnt . k get pods -o name
}

check_image() {
    k create deployment web --image="$nginx"
    k rollout status deployment/web --timeout=60s
    has 'Welcome to nginx|nginx' k exec deployment/web -- cat /etc/nginx/nginx.conf
    has '@sha256:' field pods '.items[0].status.containerStatuses[0].imageID'
}

check_bad_image() {
    k run absent --image=docker.io/library/absent:1
    eventually 30 has 'ErrImagePull|ImagePullBackOff' field pod/absent '.status.containerStatuses[0].state.waiting.reason'
    eventually 30 has 'Failed to pull image' k events
    # Mended, it starts.
    k set image pod/absent "absent=$nginx"
    ready absent
}

check_statefulset() {
    k create service clusterip web --clusterip=None
    k apply -f - <<JSON
{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
 "spec": {"serviceName": "web", "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
  "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 1,
   "containers": [$(container main "$idle")]}}}}
JSON
    k rollout status statefulset/web --timeout=60s
    eventually 20 has "^Name:.*web-1.web.$namespace.svc" k exec web-0 -- sh -c "nslookup web-1.web.$namespace.svc.cluster.local || true"
    k delete pod web-1
    k rollout status statefulset/web --timeout=60s
}

check_daemonset() {
    k apply -f - <<JSON
{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each"},
 "spec": {"selector": {"matchLabels": {"app": "each"}}, "template": {"metadata": {"labels": {"app": "each"}},
  "spec": {"terminationGracePeriodSeconds": 1, "containers": [$(container main "$idle")]}}}}
JSON
    k rollout status daemonset/each --timeout=60s
}

# job NAME SCRIPT FIELDS
job() {
    k apply -f - <<JSON
{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "$1"}, "spec": {$3,
 "template": {"spec": {"restartPolicy": "Never", "containers": [$(container main "$2")]}}}}
JSON
}

check_job() {
    # shellcheck disable=SC2016 # for the container's shell
    job sum 'echo $((6 * 7)) by $JOB_COMPLETION_INDEX' '"completions": 3, "parallelism": 2, "completionMode": "Indexed"'
    k wait --for=condition=Complete --timeout=60s job/sum
    has '^42 by 2$' k logs --selector job-name=sum
    job lost 'exit 3' '"backoffLimit": 1'
    k wait --for=condition=Failed --timeout=60s job/lost
    has '^3$' k get pods --selector job-name=lost -o 'jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}'
    job late 'sleep 1000' '"activeDeadlineSeconds": 2'
    k wait --for=condition=Failed --timeout=60s job/late
}

check_cronjob() {
    k create cronjob often --image="$busybox" --schedule='0 0 1 1 *' -- echo from a cronjob
    k create job now --from=cronjob/often
    k wait --for=condition=Complete --timeout=60s job/now
    has '^from a cronjob$' k logs job/now
}

check_init_containers() {
    # shellcheck disable=SC2016 # for the containers' shells
    pod main 'cat /shared/order; until [ -e /shared/aside ]; do sleep 0.1; done' \
        '"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]' '"restartPolicy": "Never",
        "volumes": [{"name": "shared", "emptyDir": {}}], "initContainers": [
        '"$(container first 'sleep 1; echo first >>/shared/order' '"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]'),
        $(container aside 'touch /shared/aside; trap "exit 0" TERM; while :; do sleep 0.1; done' '"restartPolicy": "Always",
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]'),
        $(container second 'echo second >>/shared/order' '"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]')]"
    ended main Succeeded
    [[ $(k logs main --container=main) = $'first\nsecond' ]]
    has '^0$' field pod/main '.status.initContainerStatuses[1].state.terminated.exitCode'
}

check_restarts() {
    pod again 'echo once >>/dev/termination-log; exit 4' '' '"restartPolicy": "Always"'
    eventually 40 has '^[2-9]' field pod/again '.status.containerStatuses[0].restartCount'
    has '^4$' field pod/again '.status.containerStatuses[0].lastState.terminated.exitCode'
    has '^once$' field pod/again '.status.containerStatuses[0].lastState.terminated.message'
    pod once 'exit 5' '' '"restartPolicy": "Never"'
    ended once Failed
    has '^5 Error$' field pod/once '.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason'
}

check_out_of_memory() {
    pod greedy 'head -c 100000000 /dev/zero | tail' '"resources": {"limits": {"memory": "20Mi"}}' '"restartPolicy": "Never"'
    ended greedy Failed
    has '^OOMKilled 137$' field pod/greedy '.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode'
}
