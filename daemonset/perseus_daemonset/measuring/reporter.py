"""The page on which an agent tells what it measured of a job's ranks on its node. It reads a GPU's model once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perseus_api.measurements import MAXIMUM_NAME, MAXIMUM_ORDER_ENTRIES, NodeReport, RankReport

from perseus_daemonset.hardware import Gpus, HardwareError

if TYPE_CHECKING:
    from perseus_daemonset.lease import Lease
    from perseus_daemonset.registry import Registry


class Reporter:
    """Makes reports from the leases and what they have measured."""

    def __init__(self, registry: Registry, gpus: Gpus) -> None:
        """Report the ranks of a registry."""
        self._registry = registry
        self._gpus = gpus
        self._devices: dict[str, tuple[str, str, tuple[int, ...]]] = {}  # by UUID: model, driver, clocks

    def page(self, namespace: str, job: str, orders: bool = False) -> bytes:
        """Return the report of one job's ranks as JSON, with the orders that they run if these are asked for."""
        found = []
        left = MAXIMUM_ORDER_ENTRIES if orders else 0
        for key, lease in self._registry.ranks():
            if (key.namespace, key.job) != (namespace, job) or (report := self._rank(lease)) is None:
                continue
            order = lease.account.order.order(left) if left else None
            if order is not None:
                left -= len(order.letters)
                report = report.model_copy(update={"order": order})
            found.append(report)
        return NodeReport(ranks=tuple(found)).encode()

    def _rank(self, lease: Lease) -> RankReport | None:
        key, account, measurer = lease.key, lease.account, lease.measurer
        try:
            model, driver, clocks = self._device(lease)
        except HardwareError:
            return None  # A GPU that does not answer measures nothing.
        rows, blocking = measurer.rows() if measurer is not None else ((), ())
        return RankReport(
            namespace=key.namespace,
            job=key.job,
            job_uid=lease.pod.job_uid or "",
            pipeline=key.pipeline,
            stage=key.stage,
            tensor_rank=key.tensor_rank,
            gpu=key.gpu,
            gpu_model=model,
            driver=driver,
            supported_clocks=clocks,
            iteration=account.iteration,
            iteration_begin_seconds=account.begin_wall_seconds,
            iteration_seconds=account.iteration_seconds,
            unlocked_iteration_seconds=account.unlocked_iteration_seconds,
            connected=lease.is_open,
            measurement=measurer.measurement if measurer is not None else "",
            steady=measurer is not None and measurer.is_steady,
            sweep_iterations=measurer.iterations if measurer is not None else 0,
            sweep_seconds=measurer.seconds if measurer is not None else 0.0,
            longest_seconds=measurer.longest_seconds if measurer is not None else 0.0,
            rows=rows,
            blocking=blocking,
            not_held=measurer.not_held if measurer is not None else {},
            mismatch=lease.follower.mismatch[:MAXIMUM_NAME],
        )

    def _device(self, lease: Lease) -> tuple[str, str, tuple[int, ...]]:
        uuid = lease.key.gpu
        if uuid not in self._devices:
            gpu = lease.controller.gpu
            self._devices[uuid] = (gpu.model(), self._gpus.driver_version(), gpu.supported_clocks())
        return self._devices[uuid]
