"""``perseus-optimiser``: reads the mounted profile, computes the frontier, fills the one ConfigMap that it may write.

What goes wrong is its last line of output, which the kubelet keeps as the container's termination message and the
operator shows in the job's condition.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
import time
from pathlib import Path

from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier, PipelineShape
from perseus_api.orders import PipelineOrders
from perseus_api.profile import parse_profile
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline

from perseus_operator.children import (
    ENV_CHECKSUM,
    ENV_CORRECTIONS,
    ENV_FRONTIER,
    ENV_SHAPE,
    ORDERS_FOLDER,
    PROFILE_FOLDER,
)
from perseus_operator.client import CONFIG_MAP, Api, ApiRefusal
from perseus_operator.drift import Corrections
from perseus_operator.profiles import profile_checksum, stamped
from perseus_operator.shapes import as_seen

logger = logging.getLogger("perseus.optimiser")


def main() -> int:
    """Run; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        begin = time.monotonic()
        found = compute(Path(PROFILE_FOLDER), Path(ORDERS_FOLDER))
        logger.info(
            "%d plans from %.4f s to %.4f s in %.2f s",
            len(found.plans), found.plans[0].iteration_seconds, found.plans[-1].iteration_seconds,
            time.monotonic() - begin,
        )  # fmt: skip
        asyncio.run(_write(found))
    except (DocumentError, ValueError, KeyError, OSError, ApiRefusal) as error:
        print(f"optimisation failed: {error}", file=sys.stderr)
        return 1
    return 0


def compute(folder: Path, orders_folder: Path | None = None) -> Frontier:
    """Compute the frontier of the profile in a folder, for the shape that the environment names.

    Args:
        folder: of the profile.
        orders_folder: of the orders that the ranks were seen to run, where the shape's schedule is Custom.

    Raises:
        DocumentError: the profile is not valid.
        ValueError: it does not fit the shape (PlanningError), or the shape is none.
        KeyError: the environment names no shape.
        OSError: a file cannot be read.
    """
    from perseus_planner import frontier

    shape = PipelineShape.model_validate_json(os.environ[ENV_SHAPE])
    # Bytes: reading as text would change line ends, and with them the checksum.
    csv_text = (folder / names.PROFILE_CSV_KEY).read_bytes().decode()
    header_path = folder / names.PROFILE_HEADER_KEY
    header = header_path.read_bytes().decode() if header_path.exists() else None
    checksum = profile_checksum(csv_text, header or "")
    given = os.environ.get(ENV_CORRECTIONS, "")
    corrections = Corrections.decode(given) if given else Corrections(checksum)
    pipeline, digest = _pipeline(shape, orders_folder)
    stamp = stamped(corrections.checksum, digest)
    expected = os.environ.get(ENV_CHECKSUM, stamp)
    if checksum != corrections.profile or stamp != expected:
        raise DocumentError("the profile was changed while it was optimised; it is optimised again")
    profile = corrections.apply(parse_profile(csv_text, header), pipeline)
    if digest:
        profile = as_seen(profile, pipeline)
    return frontier(profile, pipeline, profile_checksum=expected)


def _pipeline(shape: PipelineShape, orders_folder: Path | None) -> tuple[Pipeline, str]:
    """Return the pipeline of a shape, and what identifies the orders that were recorded for it, if any were."""
    from perseus_planner import load_orders

    if shape.schedule is not Schedule.CUSTOM or orders_folder is None:
        made = Pipeline(shape.stages, shape.microbatches, shape.schedule, shape.tensor_parallel, shape.chunks)
        return made, ""
    orders = PipelineOrders.decode((orders_folder / names.ORDERS_KEY).read_bytes())
    given = load_orders(orders.text, orders.v_shape)
    return Pipeline.of_orders(given, shape.tensor_parallel, orders.v_shape), orders.digest


async def _write(found: Frontier) -> None:
    api = await Api.connect(names.FIELD_MANAGER_OPTIMISER)
    try:
        patch = {"binaryData": {names.FRONTIER_KEY: base64.b64encode(found.encode()).decode()}}
        name, namespace = os.environ[ENV_FRONTIER], os.environ[names.ENV_NAMESPACE]
        if await api.merge(CONFIG_MAP, namespace, name, patch) is None:
            raise DocumentError(f"ConfigMap {name} is gone: the job was deleted")
        logger.info("wrote ConfigMap %s: %s", name, json.dumps({"plans": len(found.plans)}))
    finally:
        await api.close()


if __name__ == "__main__":
    sys.exit(main())
