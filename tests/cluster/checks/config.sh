# Config maps, secrets, accounts and volumes; sourced by tests/cluster/checks.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $namespace and others: checks.sh

check_config() {
    k create configmap settings --from-literal=colour=blue --from-literal=size=9
    k create secret generic login --from-literal=password=hidden
    pod user "$idle" '"envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}],
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}],
        "resources": {"limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "login", "mountPath": "/login"},
            {"name": "settings", "mountPath": "/one", "subPath": "colour"}, {"name": "about", "mountPath": "/about"}]' \
        '"volumes": [{"name": "settings", "configMap": {"name": "settings"}},
            {"name": "login", "secret": {"secretName": "login", "defaultMode": 256}},
            {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]'
    ready user
    has '^S_colour=blue$' k exec user -- env
    has '^PASSWORD=hidden$' k exec user -- env
    has '^NODE=node1$' k exec user -- env
    has '^LIMIT=67108864$' k exec user -- env
    has '^blue$' k exec user -- cat /settings/colour
    has '^blue$' k exec user -- cat /one
    has '^hidden$' k exec user -- cat /login/password
    has '^400$' k exec user -- stat -L -c %a /login/password
    has '^app="user"$' k exec user -- cat /about/labels
    fails k exec user -- touch /login/other
    k create configmap settings --from-literal=colour=red --dry-run=client -o yaml | k replace -f -
    k label pod user app=other --overwrite
    eventually 90 has '^red$' k exec user -- cat /settings/colour
    eventually 90 has '^app="other"$' k exec user -- cat /about/labels
}

check_missing_config() {
    pod waits "$idle" '"envFrom": [{"configMapRef": {"name": "late"}}]'
    eventually 20 has CreateContainerConfigError field pod/waits '.status.containerStatuses[0].state.waiting.reason'
    k create configmap late --from-literal=colour=blue
    ready waits
}

check_service_account() {
    k create role reader --verb=get,list --resource=pods
    k create rolebinding reader --role=reader --serviceaccount="$namespace:default"
    k apply -f - <<JSON
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"}, "spec": {"restartPolicy": "Never", "containers": [
  {"name": "main", "image": "$python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", $(jq --null-input --arg script '
import json, ssl, urllib.error, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
read = lambda name: open(account + name).read()
def ask(path):
    headers = {"Authorization": "Bearer " + read("token")}
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
    return json.load(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=account + "ca.crt")))
print([pod["metadata"]["name"] for pod in ask("/api/v1/namespaces/" + read("namespace") + "/pods")["items"]])
try:
    ask("/api/v1/nodes")
except urllib.error.HTTPError as refused:
    print("nodes:", refused.code)
' '$script')]}]}}
JSON
    ended asks Succeeded
    has "^\['asks'\]$" k logs asks
    has '^nodes: 403$' k logs asks
}

check_volumes() {
    pod two 'echo kept >>/disk/file; echo light >/memory/file; df /memory; '"$idle" \
        '"volumeMounts": [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}],
         "securityContext": {"runAsUser": 1000}' '"securityContext": {"fsGroup": 2000}, "volumes": [{"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}]'
    ready two
    has 'tmpfs .* /memory$' k logs two
    has '^1000 2000$' k exec two -- stat -c '%u %g' /disk/file
    has ' 16384 ' k exec two -- df -k /memory
    # The files stay while the container restarts.
    k exec two -- kill 1
    eventually 30 has '^[1-9]' field pod/two '.status.containerStatuses[0].restartCount'
    ready two
    has '^2 ' k exec two -- wc -l /disk/file
}

check_persistent_volume() {
    local shared=$rig/shared/$namespace
    k apply -f - <<JSON
{"apiVersion": "v1", "kind": "List", "items": [
 {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "$namespace"}, "spec": {"capacity": {"storage": "1Mi"},
  "accessModes": ["ReadWriteOnce"], "storageClassName": "$namespace", "hostPath": {"path": "$shared", "type": "DirectoryOrCreate"}}},
 {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": {"storageClassName": "$namespace",
  "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]}
JSON
    local name
    for name in writer reader; do
        pod $name 'ls /kept; touch /kept/file' '"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]' \
            '"restartPolicy": "Never", "volumes": [{"name": "kept", "persistentVolumeClaim": {"claimName": "claim"}}]'
        ended $name Succeeded
    done
    has '^file$' k logs reader
    kubectl delete persistentvolume "$namespace" --wait=false
}

check_image_volume() {
    pod reads 'ls /image/usr/sbin/nginx; touch /image/x' '"volumeMounts": [{"name": "image", "mountPath": "/image"}]' \
        '"restartPolicy": "Never", "volumes": [{"name": "image", "image": {"reference": "'"$nginx"'", "pullPolicy": "IfNotPresent"}}]'
    ended reads Failed
    has '^/image/usr/sbin/nginx$' k logs reads
    has 'Read-only file system' k logs reads
}

check_mount_propagation() {
    local shared=$rig/shared/$namespace volume='"volumeMounts": [{"name": "shared", "mountPath": "/shared", "mountPropagation":'
    local spec='"volumes": [{"name": "shared", "hostPath": {"path": "'"$shared"'", "type": "DirectoryOrCreate"}}]'
    pod sends "mkdir -p /shared/m; mount -t tmpfs tmpfs /shared/m; touch /shared/m/file; $idle" \
        "$volume"' "Bidirectional"}], "securityContext": {"privileged": true}' "$spec"
    ready sends
    pod gets "$idle" "$volume"' "HostToContainer"}]' "$spec"
    ready gets
    eventually 10 k exec gets -- cat /shared/m/file
    enter umount "$shared/m"
    eventually 10 fails k exec gets -- cat /shared/m/file
}

check_security() {
    pod bounded 'id; grep -E "^(CapEff|NoNewPrivs|Seccomp):" /proc/self/status; touch /x' '"securityContext": {"runAsUser": 1000, "runAsGroup": 3000,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"}}' '"restartPolicy": "Never", "securityContext": {"supplementalGroups": [4000]}'
    ended bounded Failed
    has 'uid=1000 gid=3000 groups=3000,4000' k logs bounded
    has '^CapEff:.0000000000000000$' k logs bounded
    has '^NoNewPrivs:.1$' k logs bounded
    has '^Seccomp:.2$' k logs bounded
    has 'Read-only file system' k logs bounded
    pod rootless "$idle" '"securityContext": {"runAsNonRoot": true}'
    eventually 20 has CreateContainerConfigError field pod/rootless '.status.containerStatuses[0].state.waiting.reason'
}

check_user_namespace() {
    pod mapped "cat /proc/self/uid_map; id -u; $idle" '"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]' \
        '"hostUsers": false, "volumes": [{"name": "disk", "emptyDir": {}}]'
    ready mapped
    has '^ *0 +[1-9][0-9]+ +65536$' k logs mapped
    has '^0$' k logs mapped
    k exec mapped -- touch /disk/file
    has '^0$' k exec mapped -- stat -c %u /disk/file
}

check_runtime_class() {
    k apply -f - <<JSON
{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "wharf"}, "handler": "wharf"}
JSON
    pod chosen "$idle" '' '"runtimeClassName": "wharf"'
    ready chosen
}
