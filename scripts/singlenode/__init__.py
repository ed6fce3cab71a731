"""A real Kubernetes node on one machine, for the e2e tests; `scripts/cluster` is its command.

    scripts/cluster up ──► keeper ──► init (pid 1 of the namespaces)
                    │                   ▲ its end is the end of every process in them
                    └──► cluster: etcd, kube-apiserver, … kubelet, CoreDNS, agent

machine    the namespaces: started, entered, ended
keeper     a process outside of them that holds them, and cleans up when they are gone
init       pid 1: mounts and addresses, then it only waits
cgroups, network, pki, api, images    what their names say
cluster    the components, their order and their options
addons     cluster DNS, the storage class, the metrics API
agent      a process on the node: volumes for claims (volumes), the metrics API's registration
"""
