"""Random PerseusJobs, valid and not, against the real API server with the operator running.

What the schema allows and what it does not is drawn from the CRD itself, so that a new field is tried as soon as it is
there. Whatever the API server accepts must end in conditions; nothing may crash the operator, stop its visits, or be
left behind after the deletion.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.conditions import Condition

from harness.client import Refused
from harness.comparison import plans_of
from harness.controlplane import free_port
from harness.objects import core_path, frontier_data, job_path, perseus_job, profile_config_map
from harness.operator import OperatorProcess

from bare import BareCluster  # isort: skip - the tests' own module, beside them

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
HOME = "fuzz"
EXAMPLES = 60
Schema = dict[str, Any]
_WORDS = ["", "a", "train", "-", "A" * 300, "ünïcode", "0", "../..", "{{ x }}", "nvidia.com/gpu", "Never", "profile"]
_ODD = st.sampled_from([None, True, -1, 0, 2**31, 1.5, "", "x", [], {}, [None], {"a": 1}])


def schema() -> Schema:
    """The CRD's schema of spec."""
    (path,) = (ROOT / "crds").glob("*.yaml")
    crd = yaml.safe_load(path.read_text())
    found: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def values(each: Schema) -> st.SearchStrategy[Any]:
    """Values that a schema describes, mostly; its CEL rules it may break."""
    kind = each.get("type")
    if "enum" in each:
        return st.sampled_from(each["enum"])
    if kind == "object" and "properties" in each:
        required = {name: values(each["properties"][name]) for name in each.get("required", [])}
        optional = {name: values(one) for name, one in each["properties"].items() if name not in required}
        return st.fixed_dictionaries(required, optional=optional)
    if kind == "object":
        return st.dictionaries(st.sampled_from(_WORDS), st.sampled_from(_WORDS), max_size=3)
    if kind == "array":
        least = each.get("minItems", 0)
        return st.lists(values(each["items"]), min_size=least, max_size=least + 2)
    if kind == "integer":
        low, high = each.get("minimum", 0), each.get("maximum", 2**31 - 1)
        # Small numbers are where jobs live: a job of 65,536 pipelines is refused or takes the test's whole time.
        return st.integers(low, min(high, low + 6)) | st.sampled_from([low, high])
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        return st.sampled_from([word for word in _WORDS if len(word) >= each.get("minLength", 0)])
    return st.sampled_from([1, "1"])


def spoiled(spec: Any) -> st.SearchStrategy[Any]:
    """A spec with one value replaced by something odd, somewhere."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            places.append((value, key))
            walk(inner)

    walk(spec)

    def spoil(drawn: tuple[int, Any]) -> Any:
        holder, key = places[drawn[0]]
        holder[key] = drawn[1]
        return spec

    return st.tuples(st.integers(0, len(places) - 1), _ODD).map(spoil) if places else st.just(spec)


def good(*kept: str) -> st.SearchStrategy[Any]:
    """A good job, some of whose fields are drawn from the schema, but for those that are kept."""
    properties = {name: each for name, each in schema()["properties"].items() if name not in kept}
    drawn = st.fixed_dictionaries({}, optional={name: values(each) for name, each in properties.items()})
    return drawn.map(lambda each: {**perseus_job()["spec"], **each})


# From jobs that run, over jobs that are accepted and stand, to what no schema allows.
CALM = st.builds(lambda: perseus_job()["spec"])
RUNNING = good("template", "workloadRef", "parallelism", "profiling", "schedule", "suspend")
STANDING = good("template", "workloadRef")
ANYTHING = values(schema())
# Most of what is drawn is refused, so the kinds that are accepted come more often.
KINDS = [CALM, CALM, RUNNING, RUNNING, STANDING, CALM.flatmap(spoiled), RUNNING.flatmap(spoiled), ANYTHING]
SPECS: st.SearchStrategy[Any] = st.sampled_from(KINDS).flatmap(lambda kind: kind)


@pytest.fixture(scope="module")
def running(bare: BareCluster) -> Iterator[OperatorProcess]:
    """The operator, and a namespace with a profile."""
    client = bare.plane.client
    client.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
    client.post(core_path("configmaps", HOME), profile_config_map())
    with OperatorProcess(bare.plane.operator_kubeconfig, bare.folder / "fuzz.log", free_port()) as process:
        yield process


def test_no_perseusjob_crashes_the_operator_or_leaves_anything_behind(
    bare: BareCluster, running: OperatorProcess
) -> None:
    client = bare.plane.client
    counts = {"accepted": 0, "refused": 0, "planned": 0}
    statuses: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(SPECS, st.booleans())
    def fuzz(spec: Any, optimised: bool) -> None:
        name = f"job-{counts['accepted']}"
        document = {
            "apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec,
        }  # fmt: skip
        try:
            client.post(job_path(HOME), document)
        except Refused as refusal:
            statuses.add(refusal.status)
            counts["refused"] += 1
            return
        counts["accepted"] += 1
        if optimised:
            _optimise(bare, name)
        _wait("its conditions", lambda: len(_conditions(bare, name)) == len(Condition))
        if optimised and not spec.get("suspend"):
            counts["planned"] += _is_planned(bare, name)
        client.delete(job_path(HOME, name))
        _wait("it is let go", lambda: client.get(job_path(HOME, name)) is None)

    fuzz()
    print(counts)
    assert statuses <= {400, 422}, statuses
    assert running.runs, "the operator crashed"
    assert running.starts == 1
    assert running.page("healthz") == (200, "ok\n")
    log = running.log.read_text()
    assert "Traceback" not in log, log[-3000:]
    assert plans_of(client, HOME) == []
    assert min(counts["accepted"], counts["refused"], counts["planned"]) >= 3, f"the draw is one-sided: {counts}"


def _conditions(bare: BareCluster, name: str) -> dict[str, dict[str, str]]:
    job = bare.plane.client.get(job_path(HOME, name)) or {}
    return {each["type"]: each for each in (job.get("status") or {}).get("conditions", [])}


def _optimise(bare: BareCluster, name: str) -> None:
    """Fill the frontier for the shape of the good job, where the operator asks for one; it may not fit this job."""
    path = core_path("configmaps", HOME, names.frontier_config_map_name(name))
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if bare.plane.client.get(path):
            bare.plane.client.merge(path, {"binaryData": frontier_data()})
            return
        time.sleep(0.1)


def _is_planned(bare: BareCluster, name: str) -> bool:
    """Whether the job gets a plan soon: a frontier may not fit what was drawn."""
    deadline = time.monotonic() + 2
    while _conditions(bare, name)["FrontierReady"]["status"] == "True" or time.monotonic() < deadline:
        if plans_of(bare.plane.client, HOME):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return False


def _wait(what: str, condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 30 s"
        time.sleep(0.05)
