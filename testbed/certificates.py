"""The cluster's certificate authority, and the credentials of each program.

Made by the openssl command, which every Debian has, so that the testbed needs no library. One serving certificate is
shared by the API server, the kubelet and the others: they all answer at the node's one address.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from testbed.execution import run
from testbed.site import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, NODE_NAME, Site

_DAYS = "3650"
ADMINISTRATOR = "admin"

# File name to subject: the groups and names are those that Kubernetes binds its built-in roles to.
_CLIENTS = {
    ADMINISTRATOR: "/O=system:masters/CN=testbed-admin",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
}


@dataclass(frozen=True)
class KeyPair:
    """The files of one certificate and its key."""

    certificate: Path
    key: Path


def authority(site: Site) -> KeyPair:
    """The certificate authority."""
    return _pair(site, "ca")


def serving(site: Site) -> KeyPair:
    """What every server of the node shows."""
    return _pair(site, "serving")


def client(site: Site, name: str) -> KeyPair:
    """What one program shows to the API server."""
    return _pair(site, name)


def service_account_key(site: Site) -> Path:
    """Signs service account tokens."""
    return site.certificates / "service-account.key"


def kubeconfig(site: Site, name: str) -> Path:
    """The kubeconfig of one program."""
    return site.folders.kubeconfig if name == ADMINISTRATOR else site.configuration(f"{name}.kubeconfig")


def create(site: Site) -> None:
    """Make whatever is missing."""
    site.certificates.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = authority(site)
    if not pair.certificate.exists():
        _new_key(pair.key)
        run(
            [
                "openssl",
                "req",
                "-x509",
                "-new",
                "-key",
                pair.key,
                "-days",
                _DAYS,
                "-subj",
                "/CN=perseus-testbed",
                "-addext",
                "keyUsage=critical,keyCertSign,digitalSignature,cRLSign",
                "-out",
                pair.certificate,
            ]
        )
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
        NODE_NAME,
        "localhost",
    ]
    addresses = ["127.0.0.1", site.node_address, API_SERVICE_ADDRESS]
    alternatives = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
    _sign(site, serving(site), f"/CN={NODE_NAME}", f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n")
    for name, subject in _CLIENTS.items():
        _sign(site, client(site, name), subject, "extendedKeyUsage=clientAuth\n")
        _write_kubeconfig(site, name)
    if not service_account_key(site).exists():
        run(["openssl", "genrsa", "-out", service_account_key(site), "2048"])


def _pair(site: Site, name: str) -> KeyPair:
    return KeyPair(site.certificates / f"{name}.crt", site.certificates / f"{name}.key")


def _new_key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
    path.chmod(0o600)


def _sign(site: Site, pair: KeyPair, subject: str, extensions: str) -> None:
    if pair.certificate.exists():
        return
    _new_key(pair.key)
    extension_file = pair.certificate.with_suffix(".extensions")
    extension_file.write_text(extensions)
    request = run(["openssl", "req", "-new", "-key", pair.key, "-subj", subject])
    draft = pair.certificate.with_suffix(".draft")
    run(
        [
            "openssl",
            "x509",
            "-req",
            "-CA",
            authority(site).certificate,
            "-CAkey",
            authority(site).key,
            "-CAcreateserial",
            "-days",
            _DAYS,
            "-extfile",
            extension_file,
            "-out",
            draft,
        ],
        text_input=request,
    )
    draft.rename(pair.certificate)


def _write_kubeconfig(site: Site, name: str) -> None:
    pair = client(site, name)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "testbed",
                "cluster": {"server": site.api_url, "certificate-authority": str(authority(site).certificate)},
            }
        ],
        "users": [{"name": name, "user": {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
        "current-context": "testbed",
    }
    path = kubeconfig(site, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.chmod(0o600)
