"""Every version the testbed pins, in one place.

Kubernetes patch versions cannot be chosen freely: it is built from Go modules, and for some patch versions the checksum
database lacks a part of the staging modules. 1.36.1 is complete; try a new one with ``python -m testbed build`` first.
"""

GO_MINIMUM = (1, 26)
PYTHON_MINIMUM = (3, 11)

KUBERNETES = "1.36.1"
# The oldest that the product is shown on, by its control plane alone; no cluster needs it.
KUBERNETES_OLDER = "1.34.3"
ETCD = "3.6.8"
CONTAINERD = "2.2.7"
HELM = "4.2.4"
COREDNS = "1.14.7"
# Only for measurements with many nodes; no cluster needs it.
KWOK = "0.8.0"
# Only for tests of workloads of other projects' kinds. The newest two whose managers compile with the same Kubernetes
# libraries: built together they take a third of the time.
JOBSET = "0.10.1"
TRAINER = "2.1.0"
# The last that runs PyTorchJobs; it needs older Kubernetes libraries than those two.
TRAINING_OPERATOR = "1.9.0"
# Only for the CRDs of PodMonitor and PrometheusRule; nothing of it is built.
PROMETHEUS_OPERATOR = "0.85.0"

# The image of the Pods' own programs: Debian's release name, whose Python fulfils the project's minimum.
DEBIAN_RELEASE = "bookworm"

# Published beside each Kubernetes release as a module of its own at v0.MINOR.PATCH.
KUBERNETES_STAGING_MODULES = (
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "cri-streaming",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
    "streaming",
)
# Of these there are none yet for the older Kubernetes.
KUBERNETES_NEW_STAGING_MODULES = ("cri-streaming", "streaming")
