"""What the testbed knows of each process of the cluster: how it starts, and how one sees that it works."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed import certificates
from testbed.site import Site

_HEALTH_TIMEOUT_SECONDS = 3.0


def tls_context(site: Site) -> ssl.SSLContext:
    """Trusts the cluster's authority and shows the administrator's certificate."""
    context = ssl.create_default_context(cafile=str(certificates.authority(site).certificate))
    # Ours are made by openssl's defaults, which leave out the key identifiers that strict checking asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    pair = certificates.client(site, certificates.ADMINISTRATOR)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def fetch(site: Site, url: str) -> bytes | None:
    """The body behind a URL of the cluster; None if it does not answer well."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls_context(site))
    )
    try:
        with opener.open(url, timeout=_HEALTH_TIMEOUT_SECONDS) as response:
            body: bytes = response.read()
            return body
    except (OSError, urllib.error.URLError):
        return None


@dataclass(frozen=True)
class Service:
    """One process of the cluster.

    Attributes:
        name: in logs, in ``status`` and of its pid file.
        arguments: the program and its flags.
        health: a URL that answers 200 when it works, or the Unix socket that it listens on.
        environment: set besides the caller's.
    """

    name: str
    arguments: tuple[str, ...]
    health: str | Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def is_healthy(self, site: Site) -> bool:
        """Whether it answers."""
        if isinstance(self.health, str):
            return fetch(site, self.health) is not None
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_HEALTH_TIMEOUT_SECONDS)
            try:
                client.connect(str(self.health))
            except OSError:
                return False
        return True
