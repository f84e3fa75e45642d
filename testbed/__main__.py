"""``python -m testbed COMMAND``: the testbed's commands for people and for make."""

import argparse
import sys

from testbed import binaries, cluster, images, prometheus, requirements
from testbed.errors import RequirementError, TestbedError
from testbed.execution import say
from testbed.folders import Folders
from testbed.site import Site


def main() -> int:
    """Run a command; return the exit status (2: this machine lacks something)."""
    parser = argparse.ArgumentParser(prog="python -m testbed", description="A real Kubernetes on one Linux machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="say in one sentence what this machine lacks")
    commands.add_parser("build", help="install packages and build the programs into the cache")
    commands.add_parser("up", help="start the cluster")
    commands.add_parser("down", help="stop the cluster and leave no trace")
    commands.add_parser("images", help="build the project's images and import them; print their tag")
    commands.add_parser("status", help="say which processes run")
    scraping = commands.add_parser("prometheus", help="start or stop Prometheus")
    scraping.add_argument("action", choices=["start", "stop"])
    scraping.add_argument("--scrape-interval", type=float, default=5.0, metavar="SECONDS")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except RequirementError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    folders = Folders.from_environment()
    command = arguments.command
    if command == "check":
        requirements.check()
    elif command == "build":
        requirements.check()
        requirements.install_packages(folders)
        binaries.build(folders.cache)
    elif command == "up":
        print(f"export KUBECONFIG={cluster.bring_up(say, folders).kubeconfig}")
    elif command == "down":
        requirements.check()
        cluster.take_down(folders)
    elif command == "images":
        print(images.build_images(say, folders))
    elif command == "prometheus":
        if arguments.action == "start":
            print(prometheus.start_prometheus(arguments.scrape_interval, folders))
        else:
            prometheus.stop_prometheus(folders)
    else:
        site = Site(folders)
        found = cluster.Cluster(site, binaries.locate(folders.cache))
        print("\n".join(cluster.describe(found)))
        return 0 if cluster.is_healthy(found) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
