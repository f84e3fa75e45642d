"""The agent's socket: who connects is identified by the kernel, checked against the API and the kubelet, then served.

Everything about a connection is bounded: how many there are in all and of one pod, how many are taken a second, how
long a hello may take, how large a message is. A refused peer gets a reason and nothing else; the others notice nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Hello, MessageError, Verdict, Welcome

from perseus_daemonset.bounds import ACCEPTS_PER_SECOND, Places, Rate
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.identity import Peer, UnknownPeer
from perseus_daemonset.lease import Lease, RankKey
from perseus_daemonset.ownership import NotOwned, OwnedGpu, Ownership
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.registry import Registry

HELLO_TIMEOUT_SECONDS = 2.0
POD_TIMEOUT_SECONDS = 3.0
OWNERSHIP_TIMEOUT_SECONDS = 5.0
OWNERSHIP_RETRY_SECONDS = 0.5
REFUSALS_LOGGED_PER_SECOND = 2.0
_PASSING = ("no_gpu", "kubelet_unavailable", "slices_unavailable")
logger = logging.getLogger("perseus.agent")


class Refused(Exception):
    """A peer is not served.

    Attributes:
        reason: a short name for metrics.
    """

    def __init__(self, reason: str, text: str) -> None:
        """Name the refusal by a short reason and a sentence."""
        super().__init__(text)
        self.reason = reason


class Server:
    """Accepts connections and turns them into leases."""

    def __init__(
        self,
        path: Path,
        registry: Registry,
        pods: PodTable,
        ownership: Ownership,
        identify_peer: Callable[[socket.socket], Peer],
    ) -> None:
        """Serve on a Unix socket.

        Args:
            path: of the socket; one that a dead agent left is replaced.
            registry: of leases.
            pods: of this node.
            ownership: says who owns which GPU.
            identify_peer: who is at the other end, by the kernel.
        """
        self._registry = registry
        self._pods = pods
        self._ownership = ownership
        self._identify = identify_peer
        self._path = path
        self._places = Places()
        self._pace = Rate(ACCEPTS_PER_SECOND, 1 / ACCEPTS_PER_SECOND)
        self._logged_seconds = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(str(draft))
        # Training processes run as any user; who is served is decided by what the kernel says of them.
        os.chmod(draft, 0o666)  # noqa: S103
        self._listener.listen(128)
        os.replace(draft, path)

    def start(self) -> None:
        """Begin to accept."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        """Accept nothing more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # What cannot be removed is replaced at the next start; the clocks are given back after this.
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._places.enter():
                threading.Thread(target=self._receive, args=(connection,), name="lease", daemon=True).start()
            else:
                self._registry.refusals.count("too_many")
                connection.close()
            self._pace.spend()

    def _receive(self, connection: socket.socket) -> None:
        try:
            # Before the first message: whoever sends it, the connection is this process's.
            peer = self._identify(connection)
            if not self._places.enter_of(peer.pod_uid):
                raise Refused("too_many_of_pod", f"pod {peer.pod_uid} has too many connections")
        except (UnknownPeer, Refused) as error:
            self._refuse(connection, error, None)
            self._places.leave()
            return
        try:
            self._serve(connection, peer)
        finally:
            self._places.leave_of(peer.pod_uid)
            self._places.leave()

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            lease = self._admit(connection, peer)
        except (Refused, NotOwned, MessageError, HardwareError, ValueError, OSError) as error:
            self._refuse(connection, error, self._pods.find(peer.pod_uid, 0.0))
            return
        with contextlib.suppress(OSError):
            connection.send(Welcome(Verdict.SERVED).pack(), socket.MSG_DONTWAIT)
        key = lease.key
        logger.info("%s serves pipeline %d stage %d of %s/%s", key.gpu, key.pipeline, key.stage, key.namespace, key.job)
        try:
            why = lease.run()
        finally:
            self._registry.finished(lease)
        logger.info("%s: the lease of pod %s ended (%s)", key.gpu, key.pod, why)

    def _admit(self, connection: socket.socket, peer: Peer) -> Lease:
        """Return the lease of a peer that may have one; whatever speaks against it is raised."""
        connection.settimeout(HELLO_TIMEOUT_SECONDS)
        hello = Hello.unpack(connection.recv(MAXIMUM_MESSAGE_BYTES + 1))
        pod = self._pod(peer, hello)
        owned = self._gpu(pod, hello)
        _check_rank(pod, hello, owned.gpus)
        shared = self._registry.caretaker(owned.uuid).controller.gpu.sharing()
        if shared:
            raise Refused(shared, f"{owned.uuid} {_SHARED[shared]}: only whole GPUs are served")
        key = RankKey(hello.namespace, hello.job, hello.pipeline, hello.stage, hello.tensor_rank, pod.name, owned.uuid)
        lease = self._registry.serve(
            key, pod, peer.pid, lambda caretaker, account: Lease(key, pod, connection, caretaker, account)
        )
        known = self._pods.find(pod.uid)
        if known is None or known.is_finished:
            # It went while it was looked at: whoever told so found no lease to end.
            lease.end()
        return lease

    def _pod(self, peer: Peer, hello: Hello) -> Pod:
        pod = self._pods.find(peer.pod_uid, POD_TIMEOUT_SECONDS)
        if pod is None:
            raise Refused("unknown_pod", f"pod {peer.pod_uid} is not known on this node")
        if not pod.job:
            raise Refused("no_label", f"pod {pod.namespace}/{pod.name} belongs to no PerseusJob")
        if (pod.namespace, pod.job) != (hello.namespace, hello.job):
            raise Refused("other_job", f"pod {pod.namespace}/{pod.name} belongs to job {pod.job}")
        if pod.is_finished:
            raise Refused("finished", f"pod {pod.namespace}/{pod.name} is finished")
        return pod

    def _gpu(self, pod: Pod, hello: Hello) -> OwnedGpu:
        """Ask the kubelet, whose list may lag a little behind a container's start."""
        deadline = time.monotonic() + OWNERSHIP_TIMEOUT_SECONDS
        while True:
            try:
                return self._ownership.owned_gpu(pod, hello.gpu_uuid)
            except NotOwned as error:
                if error.reason not in _PASSING or time.monotonic() > deadline:
                    raise
            time.sleep(OWNERSHIP_RETRY_SECONDS)

    def _refuse(self, connection: socket.socket, error: Exception, pod: Pod | None) -> None:
        reason = getattr(error, "reason", None) or getattr(error, "code", None) or _REASONS.get(type(error), "peer")
        self._registry.refusals.count(reason, pod)
        # What a peer wrote may stand in the text: no line of the log may look like another's.
        text = "".join(character if character.isprintable() else "?" for character in str(error))
        now = time.monotonic()
        if now - self._logged_seconds > 1 / REFUSALS_LOGGED_PER_SECOND:
            self._logged_seconds = now
            logger.info("refused a connection (%s): %s", reason, text)
        with contextlib.suppress(OSError):
            # With a timeout Python waits for the other side, whatever MSG_DONTWAIT says.
            connection.setblocking(False)
            # What lies unread would turn the close into a reset, and the reason would be lost with it.
            connection.recv(MAXIMUM_MESSAGE_BYTES + 1)
        with contextlib.suppress(OSError):
            connection.send(Welcome(Verdict.REFUSED, text).pack())
        connection.close()


def _check_rank(pod: Pod, hello: Hello, gpus: int) -> None:
    """A pod's ranks are those of its index: one for each of its GPUs, in the order that its variables name."""
    if pod.index is None or pod.shape is None:
        return
    first = pod.index * gpus
    whose = f"rank {first}" if gpus == 1 else f"ranks {first} to {first + gpus - 1}"
    try:
        claimed = pod.shape.rank(hello.pipeline, hello.stage, hello.tensor_rank)
    except ValueError as error:
        raise Refused("other_rank", f"pod {pod.namespace}/{pod.name} is {whose}: {error}") from None
    if claimed // gpus != pod.index:
        raise Refused("other_rank", f"pod {pod.namespace}/{pod.name} is {whose}, not {claimed}")


_SHARED = {
    "mig": "is in MIG mode",
    "vgpu": "is divided among virtual machines (vGPU)",
    "mps": "is shared by several processes (MPS)",
}
_REASONS: dict[type[Exception], str] = {MessageError: "bad_hello", ValueError: "leased", UnknownPeer: "unknown_peer"}
