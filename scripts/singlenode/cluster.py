"""The components of the cluster, their options and their order.

Each is a process on the node with a log of its own. None is started again when it ends: a
test that breaks one wants to see that.
"""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import addons, images
from .api import Api, Refused
from .machine import ENV, KUBECONFIG, LOGS, Machine, check_place, check_rights
from .pki import Authority
from .problem import Problem, say, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / ".kube-tools"
PROGRAMS = [
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
    "containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft", "ptp", "host-local", "portmap",
    "pause", "coredns", "metrics-server",
]
NODE = "node"
API_PORT, ETCD_PORT = 6443, 2379
CONTAINERD = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "localhost/pause:e2e"
# Each takes seconds; this is for a machine with much else to do.
PATIENCE = 180


def environment(folder):
    """For what runs on the node, and for tests."""
    return {
        **os.environ,
        "KUBECONFIG": str(folder / KUBECONFIG),
        "CLUSTER_DIR": str(folder),
        "PATH": f"{TOOLS}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        "CONTAINERD_ADDRESS": CONTAINERD,
        "CONTAINERD_NAMESPACE": "k8s.io",
    }


def check_programs():
    missing = [name for name in PROGRAMS if not os.access(TOOLS / name, os.X_OK)]
    if missing:
        raise Problem(f"{TOOLS} lacks {', '.join(missing)}; run scripts/kube node")
    for name in PROGRAMS:
        check_place(TOOLS / name, "the program")


class Cluster:
    def __init__(self, machine):
        self.machine = machine
        self.network = machine.network
        self.files = machine.files
        self.logs = machine.folder / LOGS
        self.server = f"https://{self.network.node}:{API_PORT}"
        self.processes = {}
        self.pki = None
        self.api = None

    # Certificates and what clients read.

    def make_certificates(self):
        network = self.network
        self.pki = Authority(self.files / "pki")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        names = [f"DNS:{name}" for name in [*names, "localhost", NODE]]
        addresses = [f"IP:{address}" for address in ("127.0.0.1", network.node, network.api_service)]
        wanted = {
            "serving": lambda: self.pki.server("kube-apiserver", names + addresses),
            "kubelet-serving": lambda: self.pki.server(NODE, [f"DNS:{NODE}", f"IP:{network.node}"]),
            "metrics-serving": lambda: self.pki.server("metrics-server", [f"DNS:{addons.METRICS_HOST}"]),
            "admin": lambda: self.pki.client("admin", "system:masters"),
            "harness": lambda: self.pki.client("harness", "system:masters"),
            "api-server": lambda: self.pki.client("kube-apiserver", "system:masters"),
            "front-proxy": lambda: self.pki.client("front-proxy"),
            "controller-manager": lambda: self.pki.client("system:kube-controller-manager"),
            "scheduler": lambda: self.pki.client("system:kube-scheduler"),
            "proxy": lambda: self.pki.client("system:kube-proxy"),
            "kubelet": lambda: self.pki.client(f"system:node:{NODE}", "system:nodes"),
            "tokens": lambda: self.pki.signing_key("service-account"),
        }
        with concurrent.futures.ThreadPoolExecutor() as pool:
            made = {name: pool.submit(make) for name, make in wanted.items()}
        self.pairs = {name: pair.result() for name, pair in made.items()}
        self.api = Api(network.node, API_PORT, self.pki.certificate, *self.pairs["harness"])

    def kubeconfig(self, name, path=None):
        """A file that holds all it needs, so that it can be copied, as into a Secret."""
        certificate, key = self.pairs[name]
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {
                "server": self.server, "certificate-authority-data": addons.base64(self.pki.certificate)}}],
            "users": [{"name": name, "user": {
                "client-certificate-data": addons.base64(certificate), "client-key-data": addons.base64(key)}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        }
        path = path or self.files / f"{name}.kubeconfig"
        path.write_text(json.dumps(content, indent=1))
        path.chmod(0o600)
        return str(path)

    # Processes.

    def start(self, name, *arguments):
        program = TOOLS / name if name in PROGRAMS else name
        self.launch(name, [str(program), *arguments])

    def launch(self, name, command):
        with open(self.logs / f"{name}.log", "w") as log:
            self.processes[name] = self.machine.spawn(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment(self.machine.folder), cwd=str(self.files))

    def check(self):
        """A component that ended ends the wait for what it should bring about."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise Problem(f"{name} ended with status {process.returncode}:\n{self.tail(name)}")

    def tail(self, name, lines=15):
        text = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in text[-lines:])

    def wait(self, what, ready, blame):
        def look():
            self.check()
            return ready()

        try:
            return wait_for(what, look, PATIENCE)
        except Problem as problem:
            if "took longer" not in str(problem):
                raise
            raise Problem(f"{problem}; the end of {blame}'s log:\n{self.tail(blame)}") from None

    def run(self, *command):
        """Runs a command on the node to its end; its output, or nothing where it fails."""
        process = self.machine.spawn(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(self.machine.folder))
        output, errors = process.communicate()
        return (output, None) if process.returncode == 0 else (None, errors.strip())

    # The control plane.

    def start_etcd(self):
        url = f"http://127.0.0.1:{ETCD_PORT}"
        # The data is thrown away; waiting for the disk would be the slowest part.
        self.start("etcd", "--data-dir=etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                   "--unsafe-no-fsync", "--log-level=warn")

    def start_api_server(self):
        serving, tokens, kubelet, proxy = (
            self.pairs[name] for name in ("serving", "tokens", "api-server", "front-proxy"))
        self.start(
            "kube-apiserver",
            f"--advertise-address={self.network.node}",
            f"--secure-port={API_PORT}",
            f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
            f"--tls-cert-file={serving[0]}",
            f"--tls-private-key-file={serving[1]}",
            f"--client-ca-file={self.pki.certificate}",
            f"--service-account-signing-key-file={tokens[0]}",
            f"--service-account-key-file={tokens[1]}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={self.network.services}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--profiling=false",
            # For logs, exec and port-forward.
            f"--kubelet-certificate-authority={self.pki.certificate}",
            f"--kubelet-client-certificate={kubelet[0]}",
            f"--kubelet-client-key={kubelet[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            # For the metrics API, which another server answers.
            f"--requestheader-client-ca-file={self.pki.certificate}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy[0]}",
            f"--proxy-client-key-file={proxy[1]}",
            "--enable-aggregator-routing",
        )

    def start_controllers(self):
        certificate, key = self.pki.certificate, self.pki.key
        for name, user in (("kube-controller-manager", "controller-manager"), ("kube-scheduler", "scheduler")):
            kubeconfig = self.kubeconfig(user)
            arguments = [f"--{kind}={kubeconfig}" for kind in (
                "kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]
            arguments += ["--bind-address=127.0.0.1", f"--cert-dir={self.files / user}", "--leader-elect=false"]
            if name == "kube-controller-manager":
                arguments += [
                    "--use-service-account-credentials",
                    # Else it takes 5 seconds to get a token for each of its controllers.
                    "--kube-api-qps=1000",
                    "--kube-api-burst=2000",
                    f"--service-account-private-key-file={self.pairs['tokens'][0]}",
                    f"--root-ca-file={certificate}",
                    f"--cluster-signing-cert-file={certificate}",
                    f"--cluster-signing-key-file={key}",
                    # A busy machine renews the node's lease late.
                    "--node-monitor-grace-period=5m",
                    # A test cannot wait for minutes to see a scale.
                    "--horizontal-pod-autoscaler-sync-period=5s",
                    "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
                    "--horizontal-pod-autoscaler-cpu-initialization-period=20s",
                    "--horizontal-pod-autoscaler-downscale-stabilization=20s",
                    "--pvclaimbinder-sync-period=2s",
                ]
            self.start(name, *arguments)

    # The node.

    def start_containerd(self):
        folder = self.files / "containerd"
        folder.mkdir()
        cni = self.files / "cni"
        cni.mkdir()
        (cni / "10-pods.conflist").write_text(json.dumps({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                # Routes, not a bridge: a bridge would need br_netfilter for Services.
                {"type": "ptp", "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": str(self.network.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
                {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"},
            ],
        }))
        config = folder / "config.toml"
        config.write_text(f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# It makes folders in /opt, and plugins of the host's would come in there.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = "{CONTAINERD}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "{self.snapshotter()}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
# Its profile would be loaded into the kernel and stay.
disable_apparmor = true
# Without CAP_SYS_RESOURCE a process can only make its death by memory more likely; pods
# would not start at all ("can't get final child's PID from pipe").
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{TOOLS}"]
conf_dir = "{cni}"
use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{TOOLS / 'containerd-shim-runc-v2'}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{TOOLS / 'runc'}"
SystemdCgroup = false
""")
        self.start("containerd", f"--config={config}")

    def snapshotter(self):
        """overlayfs, except where the folder itself lies on something that it cannot be on
        (such as the root of a container)."""
        probe = self.files / "overlay"
        folders = [probe / name for name in ("lower", "upper", "work", "merged")]
        for folder in folders:
            folder.mkdir(parents=True)
        lower, upper, work, merged = folders
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _, error = self.run("mount", "-t", "overlay", "-o", options, "overlay", str(merged))
        if error is None:
            self.run("umount", str(merged))
        shutil.rmtree(probe)
        return "native" if error else "overlayfs"

    def load(self, archive):
        """Imports an archive of images. Returns their names."""
        # Without --local it prints what a terminal shows, with names cut short.
        output, error = self.run("ctr", "images", "import", "--local", str(archive))
        if error is not None:
            raise Problem(f"{archive} cannot be loaded; it has to be an OCI or docker archive (as `docker save` or "
                          f"`buildah push … oci-archive:` writes): {error.splitlines()[-1]}")
        return re.findall(r"^unpacking (\S+) ", output, re.MULTILINE)

    def start_kubelet(self):
        certificate, key = self.pairs["kubelet-serving"]
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.pki.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.network.dns],
            "cgroupDriver": "cgroupfs",  # there is no systemd on the node
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,  # to lower it takes CAP_SYS_RESOURCE
            "podLogsDir": str(self.logs / "pods"),  # those of pods that are there at the end stay
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            # The disk is that of the machine, which may be fuller than a kubelet likes.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # Images cannot be pulled again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
        }
        file = self.files / "kubelet.yaml"
        file.write_text(json.dumps(config))
        self.start("kubelet", f"--config={file}", f"--kubeconfig={self.kubeconfig('kubelet')}",
                   f"--hostname-override={NODE}", f"--node-ip={self.network.node}", "--v=2")

    def start_proxy(self):
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": self.kubeconfig("proxy")},
            "clusterCIDR": str(self.network.pods),
            "hostnameOverride": NODE,
            "oomScoreAdj": 0,
            # These are of the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "nftables": {"minSyncPeriod": "100ms"},
        }
        file = self.files / "kube-proxy.yaml"
        file.write_text(json.dumps(config))
        self.start("kube-proxy", f"--config={file}")

    # All of it.

    def up(self):
        say(f"machine: node {self.network.node}, pods {self.network.pods}, services {self.network.services}")
        self.start_etcd()
        self.start_containerd()
        self.make_certificates()
        self.start_api_server()
        self.kubeconfig("admin", self.machine.folder / KUBECONFIG)
        archives = self.files / "images"
        archives.mkdir()
        images.write(archives / "pause.tar", PAUSE_IMAGE, TOOLS / "pause")
        images.write(archives / "coredns.tar", addons.DNS_IMAGE, TOOLS / "coredns")
        self.wait("the start of containerd", lambda: self.run("ctr", "version")[1] is None, "containerd")
        for archive in sorted(archives.iterdir()):
            self.load(archive)
        say("containerd: ready, with its own images")
        self.wait("the start of the API server", self.api.works, "kube-apiserver")
        say("API server: ready")
        self.start_controllers()
        self.start_kubelet()
        self.start_proxy()
        addons.install(self)
        self.wait("the node's becoming Ready", self.node_is_ready, "kubelet")
        say("node: Ready; waiting for cluster DNS")
        self.wait("the start of cluster DNS", lambda: addons.dns_is_ready(self.api), "kubelet")
        self.wait("the answer of cluster DNS", lambda: addons.dns_answers(self.network), "kube-proxy")
        # Pods are refused before.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.wait("the default service account", lambda: self.api.works(account), "kube-controller-manager")
        self.write_env()

    def node_is_ready(self):
        try:
            node = self.api.get(f"/api/v1/nodes/{NODE}")
        except (Refused, OSError):
            return False
        return any(found["type"] == "Ready" and found["status"] == "True" for found in node["status"]["conditions"])

    def write_env(self):
        """For tests in any language: NAME=VALUE lines."""
        network = self.network
        values = {
            "KUBECONFIG": self.machine.folder / KUBECONFIG,
            "NODE_NAME": NODE,
            "NODE_IP": network.node,
            "HOST_IP": network.host,
            "POD_CIDR": network.pods,
            "SERVICE_CIDR": network.services,
            "DNS_IP": network.dns,
            "STORAGE_CLASS": addons.STORAGE_CLASS,
            "KUBE_TOOLS": TOOLS,
        }
        (self.machine.folder / ENV).write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def up(folder, lifeline=None):
    """A cluster in this folder, which lives on when this returns."""
    check_rights()
    check_programs()
    # A polite kill unwinds, so that the half of a cluster goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = Machine.start(folder, lifeline)
    try:
        Cluster(machine).up()
        machine.leave()
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if machine.give_up() and isinstance(error, (OSError, Problem)):
            raise Problem(f"the cluster in {folder} was ended while it started") from None
        raise
