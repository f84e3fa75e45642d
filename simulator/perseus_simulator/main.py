"""``perseus-simulator``: the simulated node's command, for the DaemonSet, for people and for demonstrations."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.profile import Profile, parse_profile

from perseus_simulator.library import ENV_STATE, SimulatorError
from perseus_simulator.node import SimulatedGpu, SimulatedNode

ENV_PROFILE = "PERSEUS_SIMULATOR_PROFILE"
_PROFILE = Path("profiles") / "gpt3-175b-a100-sxm"
_PROFILE_PLACES = (Path("/opt/perseus/share") / _PROFILE, Path(__file__).resolve().parents[2] / "examples" / _PROFILE)


def main() -> int:
    """Run a command; return the exit status."""
    arguments = _parser().parse_args()
    try:
        return int(arguments.run(arguments))
    except (SimulatorError, DocumentError, OSError) as error:
        print(f"perseus-simulator {arguments.command}: {error}", file=sys.stderr)
        return 1


def read_profile(folder: Path | None = None) -> Profile:
    """Read a profile's folder: the given one, the one that the environment names, or the built-in one.

    Raises:
        DocumentError: the profile is not valid.
        OSError: it cannot be read.
    """
    if folder is None:
        named = os.environ.get(ENV_PROFILE)
        folder = Path(named) if named else next((each for each in _PROFILE_PLACES if each.exists()), _PROFILE_PLACES[0])
    csv_text, header = (folder / name for name in (names.PROFILE_CSV_KEY, names.PROFILE_HEADER_KEY))
    return parse_profile(csv_text.read_text(), header.read_text())


def state_path() -> Path:
    """Return the state file that the environment names.

    Raises:
        SimulatorError: it names none.
    """
    named = os.environ.get(ENV_STATE)
    if not named:
        raise SimulatorError(f"{ENV_STATE} is not set: give it the path of the simulator's state file")
    return Path(named)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perseus-simulator", description="Simulated GPUs under the real NVML binding."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    create = commands.add_parser("create", help=f"make the state file that {ENV_STATE} names")
    create.add_argument("--profile", type=Path, help="folder with profile.csv and header.json")
    create.add_argument("--gpus", type=int, default=1)
    create.add_argument("--time-scale", type=float, default=1.0, help="simulated seconds in a real second")
    create.set_defaults(run=_create)

    status = commands.add_parser("status", help="what each GPU is like now")
    status.set_defaults(run=_status)

    inject = commands.add_parser("inject", help="hurt GPUs, all at once, replacing their faults")
    inject.add_argument("gpus", nargs="+", metavar="gpu", help="its UUID")
    inject.add_argument("--slowdown", type=float, default=1.0, help="heat: instructions take this many times as long")
    inject.add_argument("--power-cap", type=float, default=0.0, metavar="WATTS", help="the clock is held down for it")
    inject.add_argument("--call-latency", type=float, default=0.0, metavar="SECONDS", help="of each NVML call")
    for fault in ("lost", "no-permission", "not-supported", "unknown", "mig"):
        inject.add_argument(f"--{fault}", action="store_true")
    inject.set_defaults(run=_inject)

    clear = commands.add_parser("clear", help="take the faults of GPUs away")
    which = clear.add_mutually_exclusive_group(required=True)
    which.add_argument("gpus", nargs="*", metavar="gpu", default=[], help="its UUID")
    which.add_argument("--all", action="store_true", help="of every GPU")
    clear.set_defaults(run=_clear)

    locks = commands.add_parser("locks", help="which GPUs' clocks are locked")
    locks.add_argument("--json", action="store_true")
    locks.set_defaults(run=_locks)

    # Imported late: they bring gRPC and the trainer library, which the commands above do without.
    plugin = commands.add_parser("device-plugin", help="announce the GPUs to the kubelet, making them first")
    plugin.add_argument("--gpus", type=int, default=8)
    plugin.add_argument("--time-scale", type=float, default=1.0)
    plugin.set_defaults(run=_device_plugin)
    train = commands.add_parser("train", help="the simulated training job: one rank")
    train.add_argument("--iterations", type=int, default=0, help="0 trains until it is told to stop")
    train.set_defaults(run=_train)
    return parser


def _create(arguments: argparse.Namespace) -> int:
    profile = read_profile(arguments.profile)
    with SimulatedNode.create(state_path(), profile, arguments.gpus, time_scale=arguments.time_scale) as node:
        print("\n".join(gpu.uuid for gpu in node.gpus))
    return 0


def _status(_: argparse.Namespace) -> int:
    with SimulatedNode.open(state_path()) as node:
        for gpu in node.gpus:
            status = gpu.status()
            locked = "{}-{} MHz".format(*status.locked_range) if status.locked_range else "-"
            print(
                f"{gpu.uuid}  {status.held_clock_megahertz:5d} MHz  locked {locked:>14}  {status.power_watts:6.1f} W  "
                f"{status.temperature_celsius:4.0f} C  {status.energy_joules:12.1f} J  {status.clients} processes"
            )
    return 0


def _inject(arguments: argparse.Namespace) -> int:
    with SimulatedNode.open(state_path()) as node:
        for gpu in [node.gpu(each) for each in arguments.gpus]:
            gpu.inject(
                slowdown=arguments.slowdown,
                power_cap_watts=arguments.power_cap,
                call_latency_seconds=arguments.call_latency,
                lost=arguments.lost,
                no_permission=arguments.no_permission,
                not_supported=arguments.not_supported,
                unknown=arguments.unknown,
                mig=arguments.mig,
            )
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    with SimulatedNode.open(state_path()) as node:
        chosen: Sequence[SimulatedGpu] = node.gpus if arguments.all else [node.gpu(each) for each in arguments.gpus]
        for gpu in chosen:
            gpu.clear()
    return 0


def _locks(arguments: argparse.Namespace) -> int:
    with SimulatedNode.open(state_path()) as node:
        locked = [gpu.uuid for gpu in node.gpus if gpu.locked_range() is not None]
    print(json.dumps(locked) if arguments.json else "\n".join(locked))
    return 0


def _device_plugin(arguments: argparse.Namespace) -> int:
    from perseus_simulator.device_plugin import serve

    return serve(state_path(), read_profile(), arguments.gpus, arguments.time_scale)


def _train(arguments: argparse.Namespace) -> int:
    from perseus_simulator.workload.main import train

    return train(arguments.iterations)


if __name__ == "__main__":
    sys.exit(main())
