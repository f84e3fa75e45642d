"""All leases of the node, and the books that outlive them: it brings them plans, and ends those whose pods are gone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import astuple

from perseus_daemonset.accounting import RankAccount
from perseus_daemonset.baselines import Baselines
from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.controller import ClockController
from perseus_daemonset.debts import Debts
from perseus_daemonset.hardware import Gpus
from perseus_daemonset.journal import Journal
from perseus_daemonset.lease import Lease, RankKey
from perseus_daemonset.plans import JobKey, PlanStore
from perseus_daemonset.pods import Pod
from perseus_daemonset.refusals import Refusals


class AnotherProcess(ValueError):
    """Two processes of one pod say to be the same rank.

    Attributes:
        reason: a short name for metrics.
    """

    reason = "second_process"


# Longer than two scrapes of a Prometheus in its default setting (one minute).
SHOW_CLOSED_SECONDS = 130.0


class Registry:
    """Leases, accounts, and a caretaker for each GPU that was ever leased.

    Attributes:
        refusals: of connections.
    """

    def __init__(
        self,
        gpus: Gpus,
        journal: Journal,
        plans: PlanStore,
        debts: Debts,
        baselines: Baselines,
        changes_per_second: float,
    ) -> None:
        """Begin without leases.

        Args:
            gpus: of this node.
            journal: of locks.
            plans: of all jobs.
            debts: GPUs that an agent before this one left locked.
            baselines: what it measured.
            changes_per_second: bound on clock changes of each GPU.
        """
        self._debts = debts
        self._baselines = baselines
        self.refusals = Refusals()
        self._gpus = gpus
        self._journal = journal
        self._plans = plans
        self._rate = changes_per_second
        self._mutex = threading.Lock()
        self._leases: dict[str, Lease] = {}  # by GPU
        self._accounts: dict[RankKey, RankAccount] = {}
        self._followers: dict[RankKey, Lease] = {}
        self._pods: dict[RankKey, str] = {}
        self._closed: dict[RankKey, tuple[RankAccount, float, str]] = {}  # until when they are shown; the job's UID
        self._processes: dict[str, int] = {}  # by GPU
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

    def serve(self, key: RankKey, pod: Pod, process: int, make: Callable[[Caretaker, RankAccount], Lease]) -> Lease:
        """Make a lease the holder of its GPU; an older one of the same pod is ended (its process restarted).

        Args:
            key: the rank.
            pod: its pod.
            process: id of the training process.
            make: makes the lease.

        Raises:
            AnotherProcess: another living process of the pod holds the GPU.
            ValueError: another pod holds the GPU.
            HardwareError: the GPU does not answer.
        """
        self._debts.check(key.gpu)
        caretaker = self.caretaker(key.gpu)
        with self._mutex:
            holder = self._leases.get(key.gpu)
            if holder is not None and holder.pod.uid != pod.uid:
                raise ValueError(f"{key.gpu} is leased to pod {holder.pod.namespace}/{holder.pod.name}")
            before = self._processes.get(key.gpu, process)
            # Else the two would take the lease from each other again and again.
            if holder is not None and before != process and holder.is_open and _lives(before):
                raise AnotherProcess(f"{key.gpu} is leased to process {before} of the same pod: connect in one process")
            self._forget_closed(key, pod)
            account = self._accounts.get(key)
            if account is None:
                account = self._accounts[key] = RankAccount()
                measured = self._baselines.load(pod.uid, astuple(key))
                if measured is not None:
                    account.resume(measured)
            lease = make(caretaker, account)
            lease.on_measured = lambda: self._keep_baseline(key, pod, account)
            lease.begin()
            self._leases[key.gpu] = lease
            self._processes[key.gpu] = process
            self._followers[key] = lease
            self._pods[key] = pod.uid
        if holder is not None:
            holder.end()
        while True:
            plan = self._plans.find(key.namespace, key.job)
            lease.offer(plan)
            # One that changed meanwhile was offered by its watch before this one: the newest must come last.
            if self._plans.find(key.namespace, key.job) is plan:
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
                self._closed[key] = (self._accounts[key], time.monotonic() + SHOW_CLOSED_SECONDS, pod.job_uid)
                del self._pods[key], self._accounts[key], self._followers[key]
        for lease in leases:
            lease.end()
        self.refusals.forget(pod.uid)
        self._baselines.forget(pod.uid)

    def closed_books(self) -> list[tuple[RankKey, RankAccount]]:
        """Return the books of pods that went away a moment ago: their last iterations must still be scraped once."""
        now = time.monotonic()
        with self._mutex:
            self._closed = {key: each for key, each in self._closed.items() if now < each[1]}
            return [(key, account) for key, (account, *_) in self._closed.items()]

    def _keep_baseline(self, key: RankKey, pod: Pod, account: RankAccount) -> None:
        """Keep what was measured, unless the pod is gone: a lease that ends may measure its last iteration then."""
        with self._mutex:
            if self._pods.get(key) == pod.uid:
                self._baselines.save(pod.uid, astuple(key), account.unlocked)

    def _forget_closed(self, key: RankKey, pod: Pod) -> None:
        """A pod opens new books: those of its own name, and of a job of this name that was there before, are over."""
        self._closed = {
            each: books
            for each, books in self._closed.items()
            if each != key and ((each.namespace, each.job) != (key.namespace, key.job) or books[2] == pod.job_uid)
        }

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


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
