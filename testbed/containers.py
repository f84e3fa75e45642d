"""What the testbed asks of containerd: importing images, and ending what a killed cluster left running.

Images enter without a registry, as OCI archives. The pause image is made here from a Go program, because Go is the one
compiler that is there before anything else.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from testbed.binaries import Binaries
from testbed.execution import attempt, run
from testbed.node import PAUSE_IMAGE
from testbed.site import Site

_NAMESPACE = "k8s.io"
_PAUSE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
"""


def _ctr(site: Site, binaries: Binaries) -> list[str]:
    return [str(binaries["ctr"]), f"--address={site.containerd_socket}", f"--namespace={_NAMESPACE}"]


def image_names(site: Site, binaries: Binaries) -> set[str]:
    """The names of all images that pods can use."""
    return set(run([*_ctr(site, binaries), "images", "list", "--quiet"]).split())


def import_image(site: Site, binaries: Binaries, archive: Path) -> None:
    """Import an OCI archive."""
    run([*_ctr(site, binaries), "images", "import", "--local", str(archive)], timeout_seconds=300)


def name_images_anew(site: Site, binaries: Binaries, names: dict[str, str]) -> None:
    """Give images that are there a further name each: what an upgrade to the same content looks like."""
    for name, further in names.items():
        run([*_ctr(site, binaries), "images", "tag", "--force", name, further])


def remove_images(site: Site, binaries: Binaries, names: list[str]) -> None:
    """Forget images that nobody uses any more."""
    if names:
        attempt([*_ctr(site, binaries), "images", "remove", *names])


def end_tasks(site: Site, binaries: Binaries) -> None:
    """Kill every container."""
    command = _ctr(site, binaries)
    if not attempt([*command, "version"], timeout_seconds=10):
        return
    for task in run([*command, "tasks", "list", "--quiet"]).split():
        attempt([*command, "tasks", "kill", "--signal", "SIGKILL", "--all", task], timeout_seconds=10)


def import_pause_image(site: Site, binaries: Binaries) -> None:
    """Import the image of each pod's first process, unless it is there."""
    if PAUSE_IMAGE in image_names(site, binaries):
        return
    archive = site.folders.cache / f"pause-{hashlib.sha256(_PAUSE.encode()).hexdigest()[:12]}.tar"
    if not archive.exists():
        _write_archive(archive, _build_pause(site))
    import_image(site, binaries, archive)


def _build_pause(site: Site) -> bytes:
    folder = site.folders.cache / "pause"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.go").write_text(_PAUSE)
    (folder / "go.mod").write_text("module pause\n\ngo 1.26\n")
    run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", "pause", "."],
        folder=folder,
        environment={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"},
        timeout_seconds=300,
    )
    return (folder / "pause").read_bytes()


def _write_archive(path: Path, program: bytes) -> None:
    """Write an OCI archive (image layout specification 1.0) of one static program."""
    layer = _tar({"pause": program}, mode=0o755)
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    configuration = {
        "architecture": run(["go", "env", "GOARCH"]).strip(),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(configuration).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    entry = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": PAUSE_IMAGE}
    index = {"schemaVersion": 2, "manifests": [entry]}
    files = {**blobs, "index.json": json.dumps(index).encode(), "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    draft = path.with_suffix(".draft")
    draft.write_bytes(_tar(files, mode=0o644))
    draft.rename(path)


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = mode
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
