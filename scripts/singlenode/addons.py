"""What a cluster has beside its components: DNS, a default storage class, the metrics API.

CoreDNS is a pod, as everywhere. The metrics server and the agent (volumes) are processes on
the node: as images they would only be slower to load.
"""

import base64 as base_64
import os
import socket
import struct
import sys

from .api import Refused
from .machine import HOSTS

SYSTEM = "kube-system"
DNS_IMAGE = "localhost/coredns:e2e"
STORAGE_CLASS, PROVISIONER = "standard", "kagent.dev/node-directory"
METRICS_HOST, METRICS_PORT = "metrics-server.kube-system.svc", 4443
METRICS_API = "v1beta1.metrics.k8s.io"
# Names outside of the cluster, in the format of /etc/hosts: a file HOSTS in a folder HOSTS, so
# that one that is replaced is seen.
HOSTS_IN_POD = "/names"

COREFILE = f"""\
cluster.local in-addr.arpa ip6.arpa {{
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa
    loadbalance
}}
. {{
    errors
    hosts {HOSTS_IN_POD}/{HOSTS} {{
        ttl 1
        reload 1s
        fallthrough
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def base64(path):
    return base_64.b64encode(path.read_bytes()).decode()


def install(cluster):
    api = cluster.api
    _install_dns(api, cluster.network, cluster.machine.folder / HOSTS)
    _install_storage_class(api)
    _install_metrics(cluster)
    _start_agent(cluster)


# DNS


def _install_dns(api, network, hosts):
    hosts.mkdir(exist_ok=True)
    (hosts / HOSTS).write_text("# Names outside of the cluster that pods can look up: ADDRESS NAME…\n")
    labels = {"k8s-app": "kube-dns"}

    def named(name, **more):
        return {"metadata": {"name": name, "namespace": SYSTEM, "labels": labels}, **more}

    core, rbac = f"/api/v1/namespaces/{SYSTEM}", "/apis/rbac.authorization.k8s.io/v1"
    api.apply(f"{core}/serviceaccounts", named("coredns", apiVersion="v1", kind="ServiceAccount"))
    api.apply(f"{rbac}/clusterroles", {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]})
    api.apply(f"{rbac}/clusterrolebindings", {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": SYSTEM}]})
    api.apply(f"{core}/configmaps", named("coredns", apiVersion="v1", kind="ConfigMap", data={"Corefile": COREFILE}))
    api.apply(f"{core}/services", named("kube-dns", apiVersion="v1", kind="Service", spec={
        "clusterIP": network.dns,
        "selector": labels,
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
    }))
    container = {
        "name": "coredns",
        "image": DNS_IMAGE,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "170Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/coredns", "readOnly": True},
            {"name": "names", "mountPath": HOSTS_IN_POD, "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "coredns"}},
            {"name": "names", "hostPath": {"path": str(hosts), "type": "Directory"}}],
    }
    api.apply(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", named(
        "coredns", apiVersion="apps/v1", kind="Deployment",
        spec={"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}))


def dns_is_ready(api):
    try:
        deployment = api.get(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/coredns")
    except (Refused, OSError):
        return False
    return deployment.get("status", {}).get("readyReplicas", 0) > 0


def dns_answers(network):
    """Whether the cluster's own name is answered at the address that pods ask: that takes the
    proxy's rules, a pod's network and CoreDNS's view of the cluster."""
    labels = "kubernetes.default.svc.cluster.local".split(".")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    query = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        try:
            client.sendto(query, (network.dns, 53))
            answer = client.recv(512)
        except OSError:
            return False
    return answer.endswith(socket.inet_aton(network.api_service))


# Volumes


def _install_storage_class(api):
    api.apply("/apis/storage.k8s.io/v1/storageclasses", {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    })


def _start_agent(cluster):
    agent = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")
    certificate, key = cluster.pairs["harness"]
    cluster.launch("agent", [
        sys.executable, "-B", agent, cluster.network.node, str(cluster.pki.certificate), str(certificate), str(key)])


# Metrics


def _install_metrics(cluster):
    kubeconfig, (certificate, key) = cluster.kubeconfig("harness"), cluster.pairs["metrics-serving"]
    cluster.start(
        "metrics-server",
        *(f"--{kind}={kubeconfig}" for kind in (
            "kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")),
        f"--bind-address={cluster.network.node}",
        f"--secure-port={METRICS_PORT}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--kubelet-certificate-authority={cluster.pki.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        "--metric-resolution=10s",  # the shortest that it takes
        "--kubelet-request-timeout=9s",  # has to be shorter
    )
    api, core = cluster.api, f"/api/v1/namespaces/{SYSTEM}"
    name = METRICS_HOST.split(".")[0]
    api.apply(f"{core}/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": METRICS_PORT}]}})
    api.apply(f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices", {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": name, "namespace": SYSTEM,
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "e2e"}},
        "endpoints": [{"addresses": [cluster.network.node]}],
        "ports": [{"name": "https", "port": METRICS_PORT}]})
