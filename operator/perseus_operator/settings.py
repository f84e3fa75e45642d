"""What the chart tells the operator through its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from perseus_operator.logs import FORMATS
from perseus_operator.transport import PrometheusAddress

DEFAULT_PORT = 9411
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class SettingsError(ValueError):
    """A variable is missing or makes no sense; the text names it."""


@dataclass(frozen=True)
class Settings:
    """The operator's settings.

    Attributes:
        namespace: the operator's own, where the plans are.
        prometheus: where pipeline times are asked for; with an empty URL stragglers are not seen.
        optimiser_image: image of the optimisation pod.
        image_pull_policy: of the optimisation pod.
        port: of metrics and health.
        deployment: the operator's own Deployment, for the uninstall hook.
        log_format: text or json.
        watch_namespaces: whose jobs are served; empty: all.
        image_pull_secrets: names of Secrets in the job's namespace, for the optimisation pod.
    """

    namespace: str
    prometheus: PrometheusAddress
    optimiser_image: str
    image_pull_policy: str
    port: int
    deployment: str
    log_format: str = "text"
    watch_namespaces: tuple[str, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()

    @property
    def holds_jobs(self) -> bool:
        """Whether jobs carry our finalizer.

        Not where rights are given by namespace: one that is deleted may lose them before its jobs, and then nobody
        could let these go. Plans of jobs that are gone are taken away all the same.
        """
        return not self.watch_namespaces

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
        log_format = given.get("PERSEUS_LOG_FORMAT", "text")
        if log_format not in FORMATS:
            raise SettingsError(f"PERSEUS_LOG_FORMAT must be text or json, not {log_format[:40]!r}")
        return cls(
            namespace=namespace,
            prometheus=_prometheus(given),
            optimiser_image=given.get("PERSEUS_OPTIMISER_IMAGE", ""),
            image_pull_policy=given.get("PERSEUS_IMAGE_PULL_POLICY", "IfNotPresent"),
            port=int(port),
            deployment=given.get("PERSEUS_OPERATOR_DEPLOYMENT", ""),
            log_format=log_format,
            watch_namespaces=_namespaces(given),
            image_pull_secrets=tuple(filter(None, given.get("PERSEUS_IMAGE_PULL_SECRETS", "").split(","))),
        )


def _namespaces(given: Mapping[str, str]) -> tuple[str, ...]:
    found = [each.strip() for each in given.get("PERSEUS_WATCH_NAMESPACES", "").split(",") if each.strip()]
    for each in found:
        if not _NAMESPACE.fullmatch(each):
            words = f"{each[:80]!r} is no name of a namespace; write names with commas between, as watchNamespaces does"
            raise SettingsError(f"PERSEUS_WATCH_NAMESPACES: {words}")
    return tuple(dict.fromkeys(found))


def _prometheus(given: Mapping[str, str]) -> PrometheusAddress:
    url = given.get("PERSEUS_PROMETHEUS_URL", "").rstrip("/")
    if url and not url.startswith(("http://", "https://")):
        raise SettingsError("PERSEUS_PROMETHEUS_URL must begin with http:// or https://")
    if "@" in url.partition("//")[2].partition("/")[0]:
        raise SettingsError("PERSEUS_PROMETHEUS_URL must not carry a password: use prometheus.basicAuth in the chart")
    address = PrometheusAddress(
        url=url,
        ca_file=given.get("PERSEUS_PROMETHEUS_CA_FILE", ""),
        token_file=given.get("PERSEUS_PROMETHEUS_TOKEN_FILE", ""),
        user_file=given.get("PERSEUS_PROMETHEUS_USER_FILE", ""),
        password_file=given.get("PERSEUS_PROMETHEUS_PASSWORD_FILE", ""),
    )
    if address.token_file and address.user_file:
        raise SettingsError("PERSEUS_PROMETHEUS_TOKEN_FILE and PERSEUS_PROMETHEUS_USER_FILE: set one of them")
    if bool(address.user_file) != bool(address.password_file):
        raise SettingsError("PERSEUS_PROMETHEUS_USER_FILE and PERSEUS_PROMETHEUS_PASSWORD_FILE: set both or neither")
    return address
