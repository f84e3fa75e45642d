"""What a scenario leaves behind, object by object, without what must differ between two runs.

Left out: UIDs, resource versions and times; the name of the namespace; the iteration from which a plan holds (it
depends on how far training was); the hash of an object's own content, which is of the UID too; events (they follow
the status write and may be lost with a kill, but none may be told twice, see `doubled_events`). Everything else is
compared: content, labels, owners, finalizers, field managers and what each of them owns, conditions with their
messages, and plans. How many plans a straggler gets depends on when it is measured, so the generation in force is
compared with the number of plans that there were: `plan_troubles` finds one that was skipped, or written twice.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

from perseus_api import names
from perseus_api.plan import Plan
from perseus_operator.planning import same_clocks

from harness.client import Client, Document
from harness.controlplane import SYSTEM
from harness.objects import batch_path, core_path, job_path

State = dict[str, Any]
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OPTIMISER = re.compile(r"-optimiser-[0-9a-f]{8}")
_ITERATION = re.compile(r"iteration \d+")
_GENERATION = re.compile(r"generation \d+")
_DROPPED = {
    "resourceVersion", "creationTimestamp", "time", "lastTransitionTime", "firstIteration", "startTime", "uid",
    "clusterIP", "clusterIPs", "deletionTimestamp", f"{names.GROUP}/content-hash",
    f"{names.GROUP}/template-hash",
}  # fmt: skip
_RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


def state_of(client: Client, namespace: str) -> State:
    """Return everything of a namespace, and its plans, by kind and name."""
    found: State = {}
    collections = {
        "PerseusJob": job_path(namespace),
        "Job": batch_path(namespace),
        "ConfigMap": core_path("configmaps", namespace),
        "Service": core_path("services", namespace),
        "ServiceAccount": core_path("serviceaccounts", namespace),
        "Role": f"{_RBAC}/{namespace}/roles",
        "RoleBinding": f"{_RBAC}/{namespace}/rolebindings",
    }
    for kind, path in collections.items():
        for document in client.items(path):
            if (document["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) == "Helm":
                continue  # the operator's own rights, where it has them by namespace
            # An optimisation Job's name ends in a hash of what it is made from; a second one is counted.
            name = _OPTIMISER.sub("-optimiser-HASH", f"{kind}/{document['metadata']['name']}")
            while name in found:
                name += "+"
            found[name] = _normal(document, namespace)
    for document in plans_of(client, namespace):
        found[f"plan/{document['metadata']['labels'][names.LABEL_JOB]}"] = _normal_plan(document, namespace)
    return found


def plans_of(client: Client, namespace: str) -> list[Document]:
    """Return the plan ConfigMaps of a namespace's jobs."""
    selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN},{names.LABEL_JOB_NAMESPACE}={namespace}"
    return client.items(core_path("configmaps", SYSTEM), labelSelector=selector)


def differences(wanted: State, found: State) -> list[str]:
    """Return one line for each object that is missing, too many or different."""
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name} is too many" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        lines += [f"{name}: {each}" for each in _walk(wanted[name], found[name], "")][:4]
    return lines


def plan_troubles(plans: list[Plan]) -> list[str]:
    """Return what is wrong with the plans that reached the agents, in order.

    Generations follow each other without a gap, and each plan differs from the one before it: the same clocks again
    would be a plan that was written twice.
    """
    found = []
    for before, plan in pairwise(plans):
        if plan.generation != before.generation + 1:
            found.append(f"generation {plan.generation} follows generation {before.generation}")
        elif same_clocks(before, plan):
            found.append(f"generation {plan.generation} says what generation {before.generation} said")
    return found


def shifted(state: State, by: int) -> State:
    """Return a state as if there had been so many plans fewer."""
    if not by:
        return state
    text = re.sub(r"generation (\d+)", lambda match: f"generation {int(match[1]) - by}", json.dumps(state))
    found: State = json.loads(text)
    for name, each in found.items():
        plan = each.get("plan") if name.startswith("plan/") else (each.get("status") or {}).get("plan")
        if plan:
            plan["generation"] -= by
    return found


def doubled_events(client: Client, namespace: str, allowed: Counter[str]) -> list[str]:
    """Return the events that were told more often than allowed."""
    return [
        f"event told {count} times: {text}"
        for text, count in events_of(client, namespace).items()
        if count > max(1, allowed[text])
    ]


def events_of(client: Client, namespace: str) -> Counter[str]:
    """Count the events of a namespace by reason and message."""
    return Counter(
        f"{each['reason']}: {_ITERATION.sub('iteration N', each['message'])}"
        for each in client.items(core_path("events", namespace))
    )


def _walk(wanted: Any, found: Any, path: str) -> list[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(wanted.keys() | found.keys()):
            if key not in found or key not in wanted:
                lines.append(f"{path}.{key} is {'missing' if key in wanted else 'new'}")
            else:
                lines += _walk(wanted[key], found[key], f"{path}.{key}")
        return lines
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [line for index, (one, other) in pairs for line in _walk(one, other, f"{path}[{index}]")]
    return [] if wanted == found else [f"{path} is {_short(found)}, not {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else f"{text[:160]}..."


def _normal(document: Document, namespace: str) -> Any:
    kept = _without(document)
    managed = kept["metadata"].pop("managedFields", [])
    kept["metadata"]["managedFields"] = sorted(
        ({key: each[key] for key in each if key != "apiVersion"} for each in managed),
        key=lambda each: json.dumps(each, sort_keys=True),
    )
    text = json.dumps(kept, sort_keys=True).replace(namespace, "NAMESPACE")
    text = _OPTIMISER.sub("-optimiser-HASH", text)
    return json.loads(_ITERATION.sub("iteration N", _UID.sub("UID", text)))


def _normal_plan(document: Document, namespace: str) -> Any:
    plan = Plan.decode(base64.b64decode(document["binaryData"][names.PLAN_KEY]))
    content = plan.model_dump(mode="json", by_alias=True, exclude={"first_iteration"})
    # Its name ends in a hash of the namespace's name.
    bare = {"metadata": {**document["metadata"], "name": "plan"}, "plan": content}
    return _normal(bare, namespace)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if key not in _DROPPED}
    if isinstance(value, list):
        return [_without(each) for each in value]
    return value
