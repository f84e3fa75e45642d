"""Builds the project's images from its Dockerfile, without a registry, and gives them to containerd.

The tag is a hash of everything that enters the images: an unchanged checkout builds nothing, and a changed one can
never be mistaken for another. The base is a minimal Debian made by mmdebstrap; users with a registry take the
Dockerfile's own default.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed import binaries as programs
from testbed import containers, leftovers, requirements, versions
from testbed.errors import TestbedError
from testbed.execution import attempt, exclusive, run, run_long
from testbed.folders import Folders
from testbed.site import Site

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("operator", "optimiser", "agent", "simulator")
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
# What the Dockerfile copies; everything else in the checkout leaves the images as they are.
_SOURCES = (
    "Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "api", "planner", "trainer", "daemonset",
    "operator", "simulator", "examples/profiles", "scripts/requirements",
)  # fmt: skip
_IGNORED = {"__pycache__", "build", ".mypy_cache", ".ruff_cache"}
_RUN_FOLDER = "/run/perseus-testbed-buildah"
_CERTIFICATES = "/etc/ssl/certs"
# Where pip finds packages is the machine's business: its settings are passed through, and stay out of the image.
_PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_DEFAULT_TIMEOUT",
                 "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")  # fmt: skip


def build_images(progress: Callable[[str], None], folders: Folders | None = None) -> str:
    """Build and import whatever is not there yet; return the images' tag.

    Raises:
        TestbedError: a build failed; the message holds the end of its log.
    """
    site = Site(folders or Folders.from_environment())
    binaries = programs.locate(site.folders.cache)
    tag = content_tag()
    wanted = {target: f"localhost/perseus-{target}:{tag}" for target in TARGETS}
    with exclusive(site.folders.cache / "images.lock", "the images"):
        present = containers.image_names(site, binaries)
        missing = [target for target, name in wanted.items() if name not in present]
        if missing:
            requirements.install_packages(site.folders)
            progress(f"building the images {', '.join(missing)} from the Dockerfile")
            builder = _Builder(site.folders)
            try:
                base = builder.base()
                for target in missing:
                    archive = builder.build(target, wanted[target], base, tag)
                    containers.import_image(site, binaries, archive)
            finally:
                # buildah keeps its store mounted.
                leftovers.unmount_below(sorted(site.folders.cache.glob("buildah-*")))
            old = [name for name in present if name.startswith("localhost/perseus-") and not name.endswith(f":{tag}")]
            containers.remove_images(site, binaries, old)
        site.folders.image_tag.write_text(tag)
    return tag


def content_tag() -> str:
    """The tag of exactly this checkout's content."""
    digest = hashlib.sha256()
    for path in sorted(_files()):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode & 0o111:o}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _files() -> Iterator[Path]:
    for source in _SOURCES:
        top = ROOT / source
        if top.is_file():
            yield top
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if name not in _IGNORED]
            yield from (
                Path(folder, name) for name in files if not name.endswith(".pyc") and not name.startswith("_ahead")
            )


class _Builder:
    """buildah with a storage of its own in the cache."""

    def __init__(self, folders: Folders) -> None:
        self._cache = folders.cache
        self._environment = {"BUILDAH_ISOLATION": "chroot"}
        # vfs, which works on every file system, copies the whole base for each layer.
        driver = next(each for each in ("overlay", "vfs") if each == "vfs" or self._stores(each))
        self._buildah = self._command(driver)

    def _command(self, driver: str) -> list[str]:
        store = self._cache / f"buildah-{driver}"
        return ["buildah", "--storage-driver", driver, "--root", str(store), "--runroot", f"{_RUN_FOLDER}-{driver}"]

    def _stores(self, driver: str) -> bool:
        """Whether the cache's file system can hold images by a storage driver."""
        return attempt([*self._command(driver), "images"])

    def base(self) -> str:
        """Make the base image once, and return its name."""
        key = hashlib.sha256(f"{versions.DEBIAN_RELEASE} {_BASE_PACKAGES}".encode()).hexdigest()[:12]
        name = f"localhost/perseus-testbed-base:{key}"
        if attempt([*self._buildah, "inspect", "--type", "image", name]):
            return name
        archive = self._cache / f"base-{key}.tar"
        if not archive.exists():
            draft = archive.with_suffix(".draft.tar")
            draft.unlink(missing_ok=True)
            run_long(
                f"making the base image (Debian {versions.DEBIAN_RELEASE})",
                ["mmdebstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", versions.DEBIAN_RELEASE, draft],
                log=self._log("base"),
            )
            draft.rename(archive)
        container = run([*self._buildah, "from", "scratch"], environment=self._environment).strip()
        try:
            for command in (["add", container, str(archive), "/"], ["commit", container, name]):
                run([*self._buildah, *command], environment=self._environment, timeout_seconds=300)
        finally:
            attempt([*self._buildah, "rm", container])
        return name

    def build(self, target: str, name: str, base: str, tag: str) -> Path:
        """Build one target of the Dockerfile and return its archive."""
        arguments = [f"--build-arg={key}={os.environ[key]}" for key in _PIP_SETTINGS if key in os.environ]
        run_long(
            f"building the image {target}",
            [
                *self._buildah, "build", "--layers", f"--target={target}", f"--tag={name}",
                f"--build-arg=BASE={base}", f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro", *arguments,
                "--pull=never", f"--file={ROOT / 'Dockerfile'}", str(ROOT),
            ],
            log=self._log(target),
            environment=self._environment,
        )  # fmt: skip
        archive = self._cache / f"image-{target}.tar"
        archive.unlink(missing_ok=True)
        run(
            [*self._buildah, "push", "--disable-compression", name, f"oci-archive:{archive}:{name}"],
            environment=self._environment,
            timeout_seconds=300,
        )
        if not archive.exists():
            raise TestbedError(f"buildah wrote no archive for {target} {tag}; see {self._log(target)}")
        return archive

    def _log(self, name: str) -> Path:
        return self._cache / "logs" / f"image-{name}.log"
