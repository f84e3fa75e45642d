"""Whatever a plan, a journal or the kubelet's answer holds: a reason, no crash, and nothing good is lost."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_process import PLAN_NAME, make_plan
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from perseus_api.encoding import encode
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.follower import Follower, RankPlan
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.journal import Journal
from perseus_daemonset.kubelet import podresources_pb2 as messages
from perseus_daemonset.ownership import NotOwned, Ownership
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pod_resources import KubeletUnavailable, PodResources, claims_of
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.release import release_journalled
from perseus_daemonset.slices import Slices

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
JOB = ("research", "gpt")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 3), st.integers(), st.floats(), st.text(max_size=8), st.just("FB" * 9)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def signed(text: str) -> bytes:
    """Any JSON object as a document with a right checksum, as far as it has one."""
    document = json.loads(text)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return gzip.compress(
        json.dumps({**document, "checksum": "sha256:" + hashlib.sha256(canonical).hexdigest()}).encode()
    )


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document."""
    yield path
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        yield from places(value, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


GOOD = make_plan(generation=5)
NEWER = json.loads(gzip.decompress(make_plan(generation=6).encode()))
DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000


@pytest.fixture
def store() -> PlanStore:
    """A store that holds a good plan."""
    holding = PlanStore()
    holding.put(PLAN_NAME, JOB, GOOD.encode())
    return holding


def holds_good_or_newer(store: PlanStore) -> None:
    """The good plan stays unless a newer one of the same job, whole and valid, took its place; that can be followed."""
    plan = store.find(*JOB)
    assert plan is not None
    assert plan == GOOD or plan.generation > GOOD.generation or plan.job.uid != GOOD.job.uid
    part = RankPlan.of(plan, 0, 0)
    follower = Follower()
    follower.offer(part)
    for kind, instruction in (
        (BoundaryKind.ITERATION_BEGIN, None),
        (BoundaryKind.INSTRUCTION_BEGIN, Instruction.FORWARD),
        (BoundaryKind.INSTRUCTION_END, Instruction.FORWARD),
        (BoundaryKind.ITERATION_END, None),
    ):
        wish = follower.follow(Boundary(kind, plan.first_iteration, 0, instruction))
        assert wish is None or wish in part.clocks


@SETTINGS
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(gzip.compress)))
@example(data=gzip.compress(DEEP))
@example(data=gzip.compress(b'{"a":NaN}'))
@example(data=gzip.compress(b'{"a":Infinity,"checksum":1}'))
@example(data=gzip.compress(b'{"a":"\\ud800"}'))
@example(data=gzip.compress(b'{"a":' + b"9" * 10_000 + b"}"))
@example(data=gzip.compress(b"\0" * 70_000_000))
def test_any_bytes_for_a_plan(store: PlanStore, data: bytes) -> None:
    store.put(PLAN_NAME, JOB, data)
    assert store.find(*JOB) == GOOD
    assert store.rejected


@SETTINGS
@given(cut=st.integers(0, 400), place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_plan_damaged_on_its_way(store: PlanStore, cut: int, place: int, value: int) -> None:
    data = bytearray(make_plan(generation=6).encode())
    data[place % len(data)] ^= value
    store.put(PLAN_NAME, JOB, bytes(data[: len(data) - cut % len(data)]))
    holds_good_or_newer(store)


@SETTINGS
@given(path=st.sampled_from(sorted(places(NEWER), key=str)), value=values)
@example(path=("variants", 0, "iterationSeconds"), value=float("nan"))
@example(path=("firstIteration",), value=2**63)
@example(path=("order",), value=["F" * 4000] * 2)
def test_a_plan_with_any_value_at_any_place(store: PlanStore, path: tuple[Any, ...], value: Any) -> None:
    changed = replaced(NEWER, path, value)
    if isinstance(changed, dict):
        changed.pop("checksum", None)
        with contextlib.suppress(UnicodeEncodeError):
            store.put(PLAN_NAME, JOB, signed(json.dumps(changed)))
    holds_good_or_newer(store)


def test_what_was_signed_here_would_be_taken_if_it_were_good(store: PlanStore) -> None:
    """Without this the tests above might only ever meet a wrong checksum."""
    newer = {key: value for key, value in NEWER.items() if key != "checksum"}
    assert gzip.decompress(signed(json.dumps(newer))) != b""
    store.put(PLAN_NAME, JOB, encode(newer))
    found = store.find(*JOB)
    assert found is not None
    assert found.generation == 6
    store.put(PLAN_NAME, JOB, signed(json.dumps({**newer, "generation": 7})))
    found = store.find(*JOB)
    assert found is not None
    assert found.generation == 7


class RecordingGpus:
    """GPUs that remember which of them were reset."""

    def __init__(self) -> None:
        self.reset: list[str] = []

    def uuids(self) -> list[str]:
        return [f"GPU-{number:08d}-0000" for number in range(4)]

    def gpu(self, uuid: str) -> Any:
        if uuid not in self.uuids():
            raise HardwareError("not_found", f"{uuid} is not there")
        gpus = self

        class Gpu:
            def reset(self) -> None:
                gpus.reset.append(uuid)

        return Gpu()


file_names = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.sampled_from(
        ["GPU-00000000-0000.lock.draft", "x.lock.json", "GPU-.lock.json", "holder", "GPU-ffffffff-0000.lock.json"]
    ),
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@SETTINGS
@given(
    locked=st.sets(st.integers(0, 3)),
    contents=st.lists(st.binary(max_size=60), min_size=4, max_size=4),
    others=st.dictionaries(file_names, st.one_of(st.none(), st.binary(max_size=60), st.just(DEEP[:9000])), max_size=3),
)
def test_any_content_of_the_journals_folder(
    tmp_path_factory: pytest.TempPathFactory, locked: set[int], contents: list[bytes], others: dict[str, bytes | None]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal, gpus = Journal(folder), RecordingGpus()
    for number in locked:
        journal.write(gpus.uuids()[number])
        (folder / f"{gpus.uuids()[number]}.lock.json").write_bytes(contents[number])  # torn by a power loss
    for name, content in others.items():
        if not (folder / name).exists() and not (content is None and name.endswith(".lock.json")):
            (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
    failed = release_journalled(journal, gpus)  # type: ignore[arg-type]
    assert {gpus.uuids()[number] for number in locked} <= set(gpus.reset)
    assert not set(failed) & {gpus.uuids()[number] for number in locked}
    # Whatever was there: what is written down from now on is read again (or not written, and then nothing is locked).
    before = len(gpus.reset)
    try:
        journal.write(gpus.uuids()[0])
    except OSError:
        return
    release_journalled(journal, gpus)  # type: ignore[arg-type]
    assert gpus.uuids()[0] in gpus.reset[before:]


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """A kubelet that answers with whatever bytes it is told."""
    told = [b""]
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: told[0])
    generic = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(f"unix:{tmp_path / 'kubelet.sock'}")
    server.start()
    yield lambda data: told.__setitem__(0, data)
    server.stop(None).wait()


@settings(SETTINGS, max_examples=60)
@given(data=st.one_of(st.binary(max_size=100), st.just(b"\x0a\xff\xff\xff\xff\x0f"), st.just(b"\x0a" * 10_000)))
@example(data=b"\0" * (17 * 1024 * 1024))
def test_any_bytes_for_the_kubelets_answer(answer: Callable[[bytes], None], tmp_path: Path, data: bytes) -> None:
    answer(data)
    with contextlib.suppress(KubeletUnavailable):
        assert PodResources(tmp_path).claims() is not None


def pod(name: str, phase: str) -> Pod:
    """A pod of the API."""
    return Pod.of(
        {
            "metadata": {
                "uid": f"uid-{name}",
                "namespace": "research",
                "name": name,
                "labels": {"perseus.energy/job": "gpt"},
            },
            "status": {"phase": phase},
        }
    )


class Table:
    """Two GPUs, by index and device node."""

    def uuid_of_index(self, index: int) -> str:
        if index > 1:
            raise HardwareError("invalid_argument", f"no GPU {index}")
        return f"GPU-{index:08d}-0000"

    def uuid_of_minor(self, minor: int) -> str:
        return self.uuid_of_index(minor)


ONE, TWO = "GPU-00000000-0000", "GPU-00000001-0000"
devices = st.one_of(
    st.sampled_from(
        [ONE, TWO, "0", "1", "2", "nvidia0", "nvidia1", "nvidia99", f"{ONE}::0", "0::1", "1:0", "nvidia0/gi1"]
    ),
    st.sampled_from(
        ["nvidia0/vgpu1", "MIG-x", f"MIG-{ONE}/1/0", "", "::", "GPU-", "\N{ARABIC-INDIC DIGIT ONE}", "0\n"]
    ),
    st.text(max_size=12),
)
resources = st.one_of(
    st.just("nvidia.com/gpu"),
    st.sampled_from(["nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb", "cpu", "nvidia.com/"]),
)
claimed = st.lists(st.tuples(st.sampled_from(["mine", "other", "ghost", "done"]), resources, devices), max_size=5)
ALIASES = {ONE: (ONE, "0", "nvidia0"), TWO: (TWO, "1", "nvidia1")}


@settings(SETTINGS, max_examples=400)
@given(claimed=claimed, wanted=st.one_of(st.sampled_from(["", ONE, TWO]), st.text(max_size=8)))
@example(claimed=[("mine", "nvidia.com/gpu", ONE)], wanted="")
@example(claimed=[("mine", "nvidia.com/gpu", "nvidia0"), ("other", "nvidia.com/gpu", "0")], wanted=ONE)
def test_no_answer_of_the_kubelet_gives_a_pod_a_gpu_that_it_does_not_hold_alone(
    claimed: list[tuple[str, str, str]], wanted: str
) -> None:
    response = messages.ListPodResourcesResponse(
        pod_resources=[
            messages.PodResources(
                namespace="research",
                name=name,
                containers=[
                    messages.ContainerResources(
                        devices=[messages.ContainerDevices(resource_name=resource, device_ids=[device])]
                    )
                ],
            )
            for name, resource, device in claimed
        ]
    )
    pods = PodTable()
    mine = pod("mine", "Running")
    pods.replace([mine, pod("other", "Running"), pod("done", "Succeeded")])
    claims = claims_of(messages.ListPodResourcesResponse.FromString(response.SerializeToString()))
    ownership = Ownership(lambda: claims, Table(), Slices(list), pods)
    try:
        owned = ownership.owned_gpu(mine, wanted)
    except NotOwned:
        assert claimed != [("mine", "nvidia.com/gpu", ONE)] or wanted not in ("", ONE)
        return
    assert wanted in ("", owned.uuid)
    whole = [("mine", "nvidia.com/gpu", alias) for alias in ALIASES[owned.uuid]]
    assert any(claim in whole for claim in claimed), "served without a whole GPU of its own"
    for name, resource, device in claimed:
        if name in ("other", "ghost") and resource.startswith("nvidia.com/gpu"):
            named = device.split("::")[0].split("/")[0].split(":")[0]
            assert named not in ALIASES[owned.uuid], "served although somebody else claims the GPU"
