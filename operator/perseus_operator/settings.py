"""What the chart tells the operator through its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_PORT = 9411


class SettingsError(ValueError):
    """A variable is missing or makes no sense; the text names it."""


@dataclass(frozen=True)
class Settings:
    """The operator's settings.

    Attributes:
        namespace: the operator's own, where the plans are.
        prometheus_url: where pipeline times are asked for; empty: stragglers are not seen.
        optimiser_image: image of the optimisation pod.
        image_pull_policy: of the optimisation pod.
        port: of metrics and health.
        deployment: the operator's own Deployment, for the uninstall hook.
    """

    namespace: str
    prometheus_url: str
    optimiser_image: str
    image_pull_policy: str
    port: int
    deployment: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables.

        Raises:
            SettingsError: one that is needed is missing.
        """
        given = os.environ if environment is None else environment
        namespace = given.get("PERSEUS_OPERATOR_NAMESPACE", "")
        if not namespace:
            raise SettingsError("PERSEUS_OPERATOR_NAMESPACE is not set: the chart sets it")
        port = given.get("PERSEUS_METRICS_PORT", str(DEFAULT_PORT))
        if not port.isdigit() or int(port) > 65_535:
            raise SettingsError(f"PERSEUS_METRICS_PORT must be a port number, not {port[:40]!r}")
        return cls(
            namespace=namespace,
            prometheus_url=given.get("PERSEUS_PROMETHEUS_URL", "").rstrip("/"),
            optimiser_image=given.get("PERSEUS_OPTIMISER_IMAGE", ""),
            image_pull_policy=given.get("PERSEUS_IMAGE_PULL_POLICY", "IfNotPresent"),
            port=int(port),
            deployment=given.get("PERSEUS_OPERATOR_DEPLOYMENT", ""),
        )
