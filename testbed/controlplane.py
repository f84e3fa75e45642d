"""etcd, the API server, the controller manager and the scheduler, as plain processes.

No static pods and no kubeadm: the control plane must come up without any image. Requests are audited at the metadata
level, so that a test can say who wrote what.
"""

import json

from testbed import certificates
from testbed.binaries import Binaries
from testbed.service import Service
from testbed.site import CLUSTER_DOMAIN, SERVICE_NETWORK, Site

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*"]},
        {
            "level": "None",
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
            "userGroups": ["system:nodes"],
        },
        {"level": "Metadata"},
    ],
}
# One client of everything on a two-core machine: the limits of a large cluster's controllers only slow tests down.
_CLIENT_RATE = ("--kube-api-qps=300", "--kube-api-burst=600")


def services(site: Site, binaries: Binaries) -> list[Service]:
    """The control plane's processes in the order of their start."""
    return [
        _etcd(site, binaries),
        _api_server(site, binaries),
        _controller_manager(site, binaries),
        _scheduler(site, binaries),
    ]


def write_configuration(site: Site) -> None:
    """Write the files that the processes read."""
    path = site.configuration("audit-policy.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_AUDIT_POLICY))


def _etcd(site: Site, binaries: Binaries) -> Service:
    health = f"http://{site.node_address}:2381"
    return Service(
        "etcd",
        (
            str(binaries["etcd"]),
            f"--data-dir={site.data('etcd')}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            f"--listen-metrics-urls={health}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
        f"{health}/readyz",
    )


def _api_server(site: Site, binaries: Binaries) -> Service:
    serving = certificates.serving(site)
    administrator = certificates.client(site, certificates.ADMINISTRATOR)
    account_key = certificates.service_account_key(site)
    return Service(
        "kube-apiserver",
        (
            str(binaries["kube-apiserver"]),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={site.node_address}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            f"--client-ca-file={certificates.authority(site).certificate}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={account_key}",
            f"--service-account-signing-key-file={account_key}",
            f"--kubelet-client-certificate={administrator.certificate}",
            f"--kubelet-client-key={administrator.key}",
            f"--kubelet-certificate-authority={certificates.authority(site).certificate}",
            # Otherwise "kubectl logs" looks the node's name up in DNS.
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--audit-policy-file={site.configuration('audit-policy.json')}",
            f"--audit-log-path={site.folders.audit_log}",
            "--audit-log-maxsize=200",
            "--audit-log-maxbackup=2",
        ),
        f"{site.api_url}/readyz",
    )


def _controller_manager(site: Site, binaries: Binaries) -> Service:
    serving = certificates.serving(site)
    authority = certificates.authority(site)
    return Service(
        "kube-controller-manager",
        (
            str(binaries["kube-controller-manager"]),
            f"--kubeconfig={certificates.kubeconfig(site, 'kube-controller-manager')}",
            f"--bind-address={site.node_address}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--root-ca-file={authority.certificate}",
            f"--service-account-private-key-file={certificates.service_account_key(site)}",
            "--use-service-account-credentials",
            f"--cluster-signing-cert-file={authority.certificate}",
            f"--cluster-signing-key-file={authority.key}",
            "--leader-elect=false",
            *_CLIENT_RATE,
        ),
        f"https://{site.node_address}:10257/healthz",
    )


def _scheduler(site: Site, binaries: Binaries) -> Service:
    serving = certificates.serving(site)
    return Service(
        "kube-scheduler",
        (
            str(binaries["kube-scheduler"]),
            f"--kubeconfig={certificates.kubeconfig(site, 'kube-scheduler')}",
            f"--bind-address={site.node_address}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            "--leader-elect=false",
            *_CLIENT_RATE,
        ),
        f"https://{site.node_address}:10259/readyz",
    )
