"""A fresh machine for the testbed itself: its life and its traces are watched where no other cluster can be disturbed.

Two clusters on one machine would fight: a kubelet kills every pod in the machine's ``kubepods`` control group that it
does not know, and empties ``/var/lib/kubelet/device-plugins``. So these tests run the testbed with its default
folders inside namespaces of their own (mounts, network, processes, control groups), which show it an empty machine; the
cache of built programs is the only thing it shares with the real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTROL_GROUPS = Path("/sys/fs/cgroup")
PREFIX = "perseus-machine-"
# Prints one line for each thing that a cluster may leave. Left out: the lock, which outlives the cluster by design;
# empty folders in /run, which ip and containerd make for everybody; and this script's own processes.
_TRACES = r"""
find /run -not -name 'perseus-testbed-*.lock' -not '(' -type d -empty ')' -mindepth 1 | sed 's/^/file /'
find /var/lib | sed 's/^/file /'
ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/link \1/'
ip netns list | sed 's/^/network namespace /'
ip -o addr | awk '{print "address", $2, $4}'
ip route | sed 's/^/route /'
iptables-save | grep -v '^#' | sed 's/^/rule /'
find /sys/fs/cgroup -mindepth 2 -type d | sed 's/^/control group /'
awk '$5 ~ "^/(run|var/lib|sys)" {print "mount", $5}' /proc/self/mountinfo
for setting in vm/overcommit_memory kernel/panic kernel/panic_on_oops net/ipv4/ip_forward; do
    echo "setting $setting $(cat /proc/sys/$setting)"
done
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    parent=$(awk '/^PPid/ {print $2}' $process/status 2>/dev/null)
    command=$(tr '\0' ' ' 2>/dev/null <$process/cmdline)
    # The first process, its sleep, and this script are the machine's own.
    case "$id $parent $command" in "1 "* | "$$ "* | *" $$ "* | *" 1 sleep 3600 ") continue ;; esac
    [ -z "$command" ] || echo "process $command" | cut -c1-160
done
"""
_SETUP = r"""
set -e
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
hierarchies=$(awk '$0 ~ / - cgroup/ {print $5, $(NF-2), $NF}' /proc/self/mountinfo)
mount -t sysfs sysfs /sys
case "$hierarchies" in
"/sys/fs/cgroup cgroup2 "*)
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    ;;
*)
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    echo "$hierarchies" | while read -r place kind options; do
        mkdir -p "$place"
        mount -t "$kind" -o "${options#rw,}" "$kind" "$place"
    done
    ;;
esac
echo ready
# The shell is the first process: it also takes the orphans' exit codes.
while :; do sleep 3600 & wait; done
"""


class Machine:
    """Namespaces in which the testbed finds nothing of the machine but its programs and the cache."""

    def __init__(self) -> None:
        self._name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        self._groups = _make_groups(self._name)
        self._first = subprocess.Popen(
            self._within("unshare", "--mount", "--cgroup", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
                         "bash", "-c", _SETUP),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # unshare complains when its child is killed.
            text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "ready\n"
        (self._init,) = children(self._first.pid)

    @property
    def root(self) -> Path:
        """This machine's files as the real one sees them."""
        return Path(f"/proc/{self._init}/root")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command on this machine, in the checkout's folder."""
        namespaces = [f"--target={self._init}", "--mount", "--cgroup", "--net", "--pid", f"--wd={ROOT}"]
        return subprocess.Popen(
            self._within("nsenter", *namespaces, "--", *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, *command: str) -> str:
        """Run a command on this machine and return what it printed."""
        process = self.start(*command)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"{' '.join(command)}: {errors}"
        return output

    def testbed(self, *arguments: str) -> str:
        """Run one of the testbed's commands on this machine."""
        return self.run(sys.executable, "-m", "testbed", *arguments)

    def traces(self) -> set[str]:
        """Every file, link, rule, control group, mount, setting and process of this machine, one line each."""
        return set(self.run("bash", "-c", _TRACES).splitlines())

    def end(self) -> None:
        """End every process of this machine; its mounts and links go with them."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._first.wait(timeout=30)
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def _within(self, *command: str) -> list[str]:
        # A namespace only hides control groups; belonging to one is the process's own step.
        script = 'for group in $GROUPS_TO_JOIN; do echo $$ >"$group/cgroup.procs"; done; exec "$@"'
        joined = " ".join(str(group) for group in self._groups)
        return ["env", f"GROUPS_TO_JOIN={joined}", "bash", "-c", script, "bash", *command]


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _make_groups(name: str) -> list[Path]:
    tops = [CONTROL_GROUPS] if (CONTROL_GROUPS / "cgroup.procs").exists() else sorted(CONTROL_GROUPS.iterdir())
    groups = []
    for top in tops:
        for leftover in top.glob(f"{PREFIX}*"):  # Of a killed test; those in use refuse to go.
            for folder, _, _ in os.walk(leftover, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if not (top / "cgroup.procs").exists():
            continue
        group = top / name
        group.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (top / setting).exists() and not (top / "cgroup.controllers").exists():
                (group / setting).write_text((top / setting).read_text())
        groups.append(group)
    return groups
