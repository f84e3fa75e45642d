"""All leases of the node, and the books that outlive them: it brings them plans, and ends those whose pods are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from perseus_daemonset.accounting import RankAccount
from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.controller import ClockController
from perseus_daemonset.hardware import Gpus
from perseus_daemonset.journal import Journal
from perseus_daemonset.lease import Lease, RankKey
from perseus_daemonset.plans import JobKey, PlanStore
from perseus_daemonset.pods import Pod


class Registry:
    """Leases, accounts, and a caretaker for each GPU that was ever leased.

    Attributes:
        refusals: refused connections by reason.
    """

    def __init__(self, gpus: Gpus, journal: Journal, plans: PlanStore, changes_per_second: float) -> None:
        """Begin without leases."""
        self.refusals: dict[str, int] = {}
        self._gpus = gpus
        self._journal = journal
        self._plans = plans
        self._rate = changes_per_second
        self._mutex = threading.Lock()
        self._leases: dict[str, Lease] = {}  # by GPU
        self._accounts: dict[RankKey, RankAccount] = {}
        self._followers: dict[RankKey, Lease] = {}
        self._pods: dict[RankKey, str] = {}
        self._caretakers: dict[str, Caretaker] = {}
        plans.on_change = self._plan_changed

    def caretaker(self, uuid: str) -> Caretaker:
        """Return the one caretaker of a GPU.

        Raises:
            HardwareError: there is no such GPU, or it is lost.
        """
        with self._mutex:
            if uuid not in self._caretakers:
                controller = ClockController(self._gpus.gpu(uuid), self._journal, self._rate)
                self._caretakers[uuid] = Caretaker(controller)
                self._caretakers[uuid].start()
            return self._caretakers[uuid]

    def serve(self, key: RankKey, pod: Pod, make: Callable[[Caretaker, RankAccount], Lease]) -> Lease:
        """Make a lease the holder of its GPU; an older one of the same pod is ended (its process restarted).

        Raises:
            ValueError: another pod holds the GPU.
            HardwareError: the GPU does not answer.
        """
        caretaker = self.caretaker(key.gpu)
        with self._mutex:
            holder = self._leases.get(key.gpu)
            if holder is not None and holder.pod.uid != pod.uid:
                raise ValueError(f"{key.gpu} is leased to pod {holder.pod.namespace}/{holder.pod.name}")
            account = self._accounts.setdefault(key, RankAccount())
            lease = make(caretaker, account)
            lease.begin()
            self._leases[key.gpu] = lease
            self._followers[key] = lease
            self._pods[key] = pod.uid
        if holder is not None:
            holder.end()
        lease.offer(self._plans.find(key.namespace, key.job))
        return lease

    def finished(self, lease: Lease) -> None:
        """Forget an ended lease; the rank's books stay until its pod is gone."""
        with self._mutex:
            if self._leases.get(lease.key.gpu) is lease:
                del self._leases[lease.key.gpu]

    def pod_gone(self, pod: Pod) -> None:
        """End a deleted or finished pod's lease, and close its books."""
        with self._mutex:
            leases = [lease for lease in self._leases.values() if lease.pod.uid == pod.uid]
            for key in [key for key, uid in self._pods.items() if uid == pod.uid]:
                del self._pods[key], self._accounts[key], self._followers[key]
        for lease in leases:
            lease.end()

    def end_all(self, timeout_seconds: float) -> None:
        """End every lease and give every clock back, waiting for devices that are slow to answer, up to a time."""
        for lease in self.leases():
            lease.end()
        caretakers = self.caretakers()
        for caretaker in caretakers:
            # Not by this thread: a device that hangs must not keep the others locked.
            caretaker.controller.close()
            caretaker.nudge()
        deadline = time.monotonic() + timeout_seconds
        while any(each.controller.is_locked for each in caretakers) and time.monotonic() < deadline:
            time.sleep(0.005)
        for caretaker in caretakers:
            caretaker.stop()

    def refuse(self, reason: str) -> None:
        """Count a refused connection."""
        with self._mutex:
            self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def leases(self) -> list[Lease]:
        """Return the open leases."""
        with self._mutex:
            return list(self._leases.values())

    def ranks(self) -> list[tuple[RankKey, Lease]]:
        """Return every rank whose pod is there, with its newest lease."""
        with self._mutex:
            return list(self._followers.items())

    def caretakers(self) -> list[Caretaker]:
        """Return the caretakers of all GPUs that were ever leased."""
        with self._mutex:
            return list(self._caretakers.values())

    def _plan_changed(self, job: JobKey) -> None:
        plan = self._plans.find(*job)
        for lease in self.leases():
            if (lease.key.namespace, lease.key.job) == job:
                lease.offer(plan)
