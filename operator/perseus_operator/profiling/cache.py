"""Profiles that were measured before: labelled ConfigMaps beside the jobs, found by what they were measured on. Pure.

A cached profile belongs to nobody, so that it outlives its job; people list and remove it with kubectl. Its fingerprint
covers everything that could make it wrong: model, GPU model, driver, parallelism, schedule, image digest. Where one of
these is not known there is no fingerprint, and nothing is found or kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from perseus_api import names
from perseus_api.profile import ProfileHeader

from perseus_operator.profiling.document import Subject

Document = dict[str, Any]
_MAXIMUM_LABEL = 63


def fingerprint(subject: Subject) -> str:
    """Return what identifies equal circumstances; empty if one of them is not known."""
    if not (subject.model and subject.driver and subject.image and all(subject.models)):
        return ""
    facts = {
        "model": subject.model,
        "gpus": subject.models,
        "driver": subject.driver,
        "parallelism": [len(subject.models), subject.pipelines, subject.tensor_parallel, subject.microbatches],
        "schedule": subject.schedule,
        "image": subject.image,
        **({"chunks": subject.chunks} if subject.chunks > 1 else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def subject_of(header: ProfileHeader) -> Subject:
    """Return what a profile says that it was measured on."""
    stages = header.stages or 0
    models = tuple(each.gpu_model for each in header.stage_gpus) or (header.gpu_model,) * stages
    return Subject(
        models, header.driver, header.tensor_parallel, header.pipelines or 0, header.microbatches or 0,
        header.schedule, header.model, header.image, header.chunks,
    )  # fmt: skip


def cached_name(mark: str) -> str:
    """Return the name of a cached profile's ConfigMap."""
    return f"perseus-profile-{mark[:20]}"


def cached_profile(namespace: str, mark: str, subject: Subject, csv_text: str, header_text: str) -> Document:
    """Return the ConfigMap of a profile to be kept."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": cached_name(mark),
            "namespace": namespace,
            "labels": {
                names.LABEL_DOCUMENT: names.DOCUMENT_PROFILE,
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_FINGERPRINT: mark,
                names.LABEL_MODEL: _label(subject.model),
                names.LABEL_GPU_MODEL: _label(subject.models[0]),
                names.LABEL_DRIVER: _label(subject.driver),
            },
        },
        "data": {names.PROFILE_CSV_KEY: csv_text, names.PROFILE_HEADER_KEY: header_text},
    }


def _label(text: str) -> str:
    """Return a text as a label's value may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_MAXIMUM_LABEL].strip("-._")
