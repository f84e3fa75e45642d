"""What a machine must bring, and what the testbed installs itself.

A testbed needs root (namespaces, mounts, control groups), Linux and Go. Debian's packages are installed when missing,
because "nothing else prepared" is the promise; anything else is refused with one sentence before any work is done.
"""

import os
import platform
import re
import shutil
from pathlib import Path

from testbed import versions
from testbed.errors import RequirementError, TestbedError
from testbed.execution import run, run_long, say
from testbed.folders import Folders

# Package to a file that it brings.
_PACKAGES = {
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/bin/ip",
    "conntrack": "/usr/sbin/conntrack",
    "prometheus": "/usr/bin/prometheus",
    "buildah": "/usr/bin/buildah",
    "golang-github-containers-common": "/etc/containers/policy.json",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "openssl": "/usr/bin/openssl",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "gcc": "/usr/bin/gcc",
    "make": "/usr/bin/make",
    "libc6-dev": "/usr/include/stdio.h",
}
_GO_PLACES = ("/usr/local/go/bin", "/usr/lib/go/bin")


def check() -> None:
    """Check that this machine can be a testbed.

    Raises:
        RequirementError: what is missing, in one sentence.
    """
    if platform.system() != "Linux":
        raise RequirementError("the testbed needs Linux: namespaces and control groups exist nowhere else")
    if os.geteuid() != 0:
        raise RequirementError("the testbed needs root for namespaces, mounts and control groups: run it with sudo")
    version = _go_version()
    wanted = ".".join(str(part) for part in versions.GO_MINIMUM)
    if version is None:
        raise RequirementError(f"Go is missing: install Go >= {wanted} and put it on the PATH")
    if version < versions.GO_MINIMUM:
        found = ".".join(str(part) for part in version)
        raise RequirementError(f"Go >= {wanted} is needed to build Kubernetes, this is {found}: install a newer Go")
    if not shutil.which("apt-get") and missing_packages():
        raise RequirementError(f"{', '.join(missing_packages())} are missing and there is no apt-get: install them")


def install_packages(folders: Folders) -> None:
    """Install the Debian packages that are missing."""
    packages = missing_packages()
    if not packages:
        return
    log = folders.cache / "logs" / "packages.log"
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    policy = _forbid_services()
    try:
        run_long("updating the package lists", ["apt-get", "update", "-q"], log=log, environment=environment)
        run_long(
            f"installing {', '.join(packages)}",
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages],
            log=log,
            environment=environment,
        )
    finally:
        if policy is not None:
            policy.unlink(missing_ok=True)
    still = missing_packages()
    if still:
        raise TestbedError(f"{', '.join(still)} are not there after their installation; see {log}")


def missing_packages() -> list[str]:
    """Packages whose file is not there."""
    return [package for package, path in _PACKAGES.items() if not Path(path).exists()]


def _forbid_services() -> Path | None:
    """Keep Debian from starting services of packages that only bring a program; None if somebody forbids it already."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        return None
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    return policy


def _go_version() -> tuple[int, int] | None:
    if shutil.which("go") is None:
        place = next((place for place in _GO_PLACES if Path(place, "go").exists()), None)
        if place is None:
            return None
        os.environ["PATH"] = f"{place}:{os.environ.get('PATH', '')}"
    try:
        found = re.search(r"go(\d+)\.(\d+)", run(["go", "version"], environment={"GOTOOLCHAIN": "local"}))
    except TestbedError as error:
        say(str(error))
        return None
    return (int(found[1]), int(found[2])) if found else None
