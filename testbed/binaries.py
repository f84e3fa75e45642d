"""Builds Kubernetes, etcd, containerd, helm and CoreDNS (and what few tests ask for) from their Go modules.

Why from modules: a Go module proxy is often the only door a closed machine has, and it pins every byte by checksum.
Each group of programs is built in a folder of its own and appears in the cache by one rename, so a killed build leaves
nothing that looks finished; Go's build cache makes the next try continue where it stopped.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from testbed import versions
from testbed.execution import exclusive, run_long

_GO_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod -buildvcs=false", "GOWORK": "off"}

_COREDNS_MAIN = """package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
"""

# The project's own main waits for a certificate that a kubelet would mount; its controller is the same here.
_TRAINING_OPERATOR_MAIN = """package main

import (
	"flag"

	kubeflow "github.com/kubeflow/training-operator/pkg/apis/kubeflow.org/v1"
	"github.com/kubeflow/training-operator/pkg/config"
	"github.com/kubeflow/training-operator/pkg/controller.v1/common"
	"github.com/kubeflow/training-operator/pkg/controller.v1/pytorch"
	"k8s.io/apimachinery/pkg/runtime"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	control "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	health := flag.String("health", "", "address of the health pages")
	flag.Parse()
	control.SetLogger(zap.New())
	config.Config.PyTorchInitContainerImage = config.PyTorchInitContainerImageDefault
	config.Config.PyTorchInitContainerTemplateFile = config.PyTorchInitContainerTemplateFileDefault
	config.Config.PyTorchInitContainerMaxTries = config.PyTorchInitContainerMaxTriesDefault
	scheme := runtime.NewScheme()
	must(kubernetes.AddToScheme(scheme))
	must(kubeflow.AddToScheme(scheme))
	manager, err := control.NewManager(control.GetConfigOrDie(), control.Options{
		Scheme: scheme, HealthProbeBindAddress: *health, Metrics: server.Options{BindAddress: "0"},
	})
	must(err)
	must(manager.AddReadyzCheck("readyz", healthz.Ping))
	must(pytorch.NewReconciler(manager, common.GenNonGangSchedulerSetupFunc()).SetupWithManager(manager, 1))
	must(manager.Start(control.SetupSignalHandler()))
}
"""


@dataclass(frozen=True)
class ProgramGroup:
    """Programs that come out of one Go module of our own.

    Attributes:
        name: the group's name in progress lines and in the cache.
        requirements: module path to version.
        packages: package path to the name of the program it becomes.
        files: further Go files of the wrapping module.
        tags: Go build tags.
        link_values: Go variables set while linking.
    """

    name: str
    requirements: dict[str, str]
    packages: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    tags: str = ""
    link_values: dict[str, str] = field(default_factory=dict)

    def key(self) -> str:
        """A name for exactly this content."""
        content = json.dumps([self.requirements, self.packages, self.files, self.tags, self.link_values, 1])
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def module_file(self) -> str:
        """The go.mod of the wrapping module."""
        lines = ["module perseus.energy/testbed", "", "go {}.{}.0".format(*versions.GO_MINIMUM), "", "require ("]
        lines += [f"\t{path} {version}" for path, version in sorted(self.requirements.items())]
        lines += [")", ""]
        lines += [f"tool {package}" for package in sorted(self.packages) if package != "."]
        return "\n".join(lines) + "\n"


def _kubernetes() -> ProgramGroup:
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    packages = {f"k8s.io/kubernetes/cmd/{name}": name for name in names}
    packages["go.etcd.io/etcd/server/v3"] = "etcd"
    further = {"go.etcd.io/etcd/server/v3": f"v{versions.ETCD}"}
    return _of_kubernetes("kubernetes", versions.KUBERNETES, versions.KUBERNETES_STAGING_MODULES, packages, further)


def _older_kubernetes() -> ProgramGroup:
    modules = [
        name for name in versions.KUBERNETES_STAGING_MODULES if name not in versions.KUBERNETES_NEW_STAGING_MODULES
    ]
    names = ("kube-apiserver", "kube-controller-manager")
    packages = {f"k8s.io/kubernetes/cmd/{name}": f"{name}-older" for name in names}
    return _of_kubernetes("kubernetes-older", versions.KUBERNETES_OLDER, modules, packages, {})


def _of_kubernetes(
    name: str, version: str, modules: Collection[str], packages: dict[str, str], further: dict[str, str]
) -> ProgramGroup:
    major, minor, patch = version.split(".")
    requirements = {f"k8s.io/{each}": f"v0.{minor}.{patch}" for each in modules}
    requirements["k8s.io/kubernetes"] = f"v{version}"
    # Helm's capability checks and clients that parse the server's version break without these.
    version_values = {
        "gitVersion": f"v{version}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "testbed",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    link_values = {
        f"{package}.{key}": value
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in version_values.items()
    }
    return ProgramGroup(name, {**requirements, **further}, packages, link_values=link_values)


def _containerd() -> ProgramGroup:
    module = "github.com/containerd/containerd/v2"
    names = ("containerd", "ctr", "containerd-shim-runc-v2")
    return ProgramGroup(
        "containerd",
        {module: f"v{versions.CONTAINERD}"},
        {f"{module}/cmd/{name}": name for name in names},
        tags="no_btrfs",
    )


def _coredns() -> ProgramGroup:
    # A main of our own with the few plugins used compiles in a third of the time of CoreDNS with every cloud's library.
    return ProgramGroup(
        "coredns",
        {"github.com/coredns/coredns": f"v{versions.COREDNS}"},
        {".": "coredns"},
        files={"main.go": _COREDNS_MAIN},
    )


def _helm() -> ProgramGroup:
    return ProgramGroup("helm", {"helm.sh/helm/v4": f"v{versions.HELM}"}, {"helm.sh/helm/v4/cmd/helm": "helm"})


def _kwok() -> ProgramGroup:
    return ProgramGroup("kwok", {"sigs.k8s.io/kwok": f"v{versions.KWOK}"}, {"sigs.k8s.io/kwok/cmd/kwok": "kwok"})


def _workload_controllers() -> ProgramGroup:
    jobset, trainer = "sigs.k8s.io/jobset", "github.com/kubeflow/trainer/v2"
    return ProgramGroup(
        "workload-controllers",
        {jobset: f"v{versions.JOBSET}", trainer: f"v{versions.TRAINER}"},
        {jobset: "jobset", f"{trainer}/cmd/trainer-controller-manager": "trainer-controller-manager"},
    )


def _training_operator() -> ProgramGroup:
    return ProgramGroup(
        "training-operator",
        {"github.com/kubeflow/training-operator": f"v{versions.TRAINING_OPERATOR}"},
        {".": "training-operator"},
        files={"main.go": _TRAINING_OPERATOR_MAIN},
    )


def groups() -> list[ProgramGroup]:
    """Everything a cluster needs, the longest first."""
    return [_kubernetes(), _containerd(), _helm(), _coredns()]


def optional_groups() -> list[ProgramGroup]:
    """What only some tests and measurements need; built when they ask for it by name."""
    return [_kwok(), _workload_controllers(), _training_operator(), _older_kubernetes()]


@dataclass(frozen=True)
class Binaries:
    """The programs of one cache folder, by name."""

    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    @property
    def folders(self) -> list[Path]:
        """The folders that hold them, for a PATH."""
        return sorted({path.parent for path in self.paths.values()})


def locate(cache: Path) -> Binaries:
    """Where every program is, or will be once built."""
    everything = groups() + optional_groups()
    return Binaries(
        {name: cache / "binaries" / group.key() / name for group in everything for name in group.packages.values()}
    )


def is_built(cache: Path) -> bool:
    """Whether no program that a cluster needs is missing."""
    paths = locate(cache).paths
    return all(paths[name].is_file() for group in groups() for name in group.packages.values())


def build(cache: Path, only: Collection[str] = ()) -> Binaries:
    """Build whatever is missing and return every program's place.

    Args:
        cache: where programs are kept.
        only: names of the groups that are needed; empty: all that a cluster needs.
    """
    wanted = [each for each in groups() + optional_groups() if each.name in only] if only else groups()
    for group in wanted:
        if not (cache / "binaries" / group.key()).is_dir():
            with exclusive(cache / "build.lock", "the build"):
                _build_group(cache, group)
    return locate(cache)


def _build_group(cache: Path, group: ProgramGroup) -> None:
    target = cache / "binaries" / group.key()
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    source, output = work / "source", work / "output"
    source.mkdir()
    output.mkdir()
    (source / "go.mod").write_text(group.module_file())
    for name, content in group.files.items():
        (source / name).write_text(content)
    flags = " ".join(["-s", "-w", *(f"-X={name}={value}" for name, value in group.link_values.items())])
    # One invocation for all programs of a group, so that their common packages compile once.
    run_long(
        f"building {group.name} ({', '.join(group.packages.values())})",
        ["go", "build", "-trimpath", f"-tags={group.tags}", f"-ldflags={flags}", "-o", f"{output}/", *group.packages],
        folder=source,
        environment=_GO_ENVIRONMENT,
        log=cache / "logs" / f"build-{group.name}.log",
    )
    for package, name in group.packages.items():
        built = output / _output_name(package)
        if built.name != name:
            built.rename(output / name)
    os.sync()
    output.rename(target)
    shutil.rmtree(work, ignore_errors=True)


def _output_name(package: str) -> str:
    """What ``go build`` calls the program of a package: its last path element, leaving out a major version."""
    if package == ".":
        return "testbed"
    parts = package.split("/")
    return parts[-2] if parts[-1][0] == "v" and parts[-1][1:].isdigit() else parts[-1]
