"""Prometheus that is slow, huge, locked, or something else: over real HTTP, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from perseus_operator.prometheus import read_history, read_pipelines
from perseus_operator.settings import Settings, SettingsError
from perseus_operator.transport import Connection, NoAnswer, PrometheusAddress, parsed, samples

from harness.controlplane import free_port
from harness.prometheus_server import PrometheusServer

_BCRYPT = "import crypt, sys; print(crypt.crypt(sys.argv[1], crypt.mksalt(crypt.METHOD_BLOWFISH)))"
EMPTY = b'{"status": "success", "data": {"resultType": "vector", "result": []}}'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ask(handler: Handler, question: str = "up", **how: Any) -> Any:
    """Ask a server of the test's own, by the real client."""

    async def run() -> Any:
        application = web.Application()
        application.router.add_post("/api/v1/query", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        files = {name: how.pop(name) for name in ("token_file", "user_file", "password_file") if name in how}
        try:
            async with aiohttp.ClientSession() as session:
                return await Connection(PrometheusAddress(url, **files), session).ask(question, **how)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def empty(_: web.Request) -> web.Response:
    return web.Response(body=EMPTY)


def test_a_question_is_sent_as_it_is_with_a_time_limit() -> None:
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(await request.post())
        return web.Response(body=EMPTY)

    evil = 'x"} or vector(1)&query=up\n'
    ask(handler, evil, timeout_seconds=2.0)
    assert seen == {"query": evil, "timeout": "2s"}


def test_an_answer_that_takes_too_long_is_none() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response(body=EMPTY)

    with pytest.raises(NoAnswer, match=r"nothing within 0\.2 s"):
        ask(handler, timeout_seconds=0.2)


def test_an_answer_without_end_is_cut_off() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    with pytest.raises(NoAnswer, match="more than 1000000 bytes"):
        ask(handler, maximum_bytes=1_000_000, timeout_seconds=20)


def test_a_redirect_is_not_followed() -> None:
    """It would carry the credentials somewhere else."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    with pytest.raises(NoAnswer, match="answered 302"):
        ask(handler)


def test_nobody_there_is_a_sentence() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            await Connection(PrometheusAddress("http://127.0.0.1:1"), session).ask("up")

    with pytest.raises(NoAnswer, match="Prometheus does not answer"):
        asyncio.run(run())


def test_a_token_is_read_anew_for_each_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = tmp_path / "token"
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(status=401, text="no")

    for secret in ("first-secret", "second-secret\n"):
        token.write_text(secret)
        with pytest.raises(NoAnswer, match="401") as refusal:
            ask(handler, token_file=str(token))
        assert secret.strip() not in str(refusal.value)
    assert seen == ["Bearer first-secret", "Bearer second-secret"]
    assert "-secret" not in caplog.text


def test_basic_authentication_and_a_file_that_is_missing(tmp_path: Path) -> None:
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("reader")
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(body=EMPTY)

    with pytest.raises(NoAnswer, match=r"cannot read .*password"):
        ask(handler, user_file=str(user), password_file=str(password))
    password.write_text("p:ss")
    ask(handler, user_file=str(user), password_file=str(password))
    assert seen == ["Basic " + base64.b64encode(b"reader:p:ss").decode()]


def test_a_secret_that_is_no_header_is_not_quoted(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("top\nsecret: x")
    with pytest.raises(NoAnswer) as refusal:
        ask(empty, token_file=str(token))
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"PERSEUS_PROMETHEUS_URL": "prometheus:9090"}, "must begin with http"),
        ({"PERSEUS_PROMETHEUS_URL": "https://a:b@prometheus"}, "must not carry a password"),
        ({"PERSEUS_PROMETHEUS_TOKEN_FILE": "/a", "PERSEUS_PROMETHEUS_USER_FILE": "/b"}, "set one of them"),
        ({"PERSEUS_PROMETHEUS_USER_FILE": "/b"}, "set both or neither"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings.from_environment({"PERSEUS_OPERATOR_NAMESPACE": "a", **given})


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values)
def test_data_that_is_no_vector_is_refused_not_believed(data: object) -> None:
    for reader in (samples, read_history):
        with pytest.raises(NoAnswer):
            reader(data)
    body = json.dumps({"status": "success", "data": data}).encode()
    with pytest.raises(NoAnswer):
        read_pipelines(body, body)


@given(st.binary(max_size=60))
def test_a_body_that_is_no_answer_is_refused_not_believed(body: bytes) -> None:
    with pytest.raises(NoAnswer):
        parsed(body)
    with pytest.raises(NoAnswer):
        read_pipelines(body, body)


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from(["1.5", "NaN", "+Inf", "-Inf"]))))
def test_only_finite_numbers_come_out_of_an_answer(found: list[tuple[str, str]]) -> None:
    result = [{"metric": {"job": job}, "value": [0, value]} for job, value in found]
    read = samples({"resultType": "vector", "result": result})
    assert [value for _, value in read] == [1.5 for _, value in found if value == "1.5"]


def test_a_real_prometheus_behind_tls_and_basic_authentication(tmp_path: Path) -> None:
    """Debian's Prometheus with its own web configuration: the right CA and password are let in, nobody else."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subject = ["-subj", "/CN=prometheus", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key)]
    subprocess.run([*request, "-out", str(certificate), *subject], check=True, capture_output=True)
    password, user, wrong = tmp_path / "password", tmp_path / "user", tmp_path / "wrong"
    password.write_text("let-me-in")
    wrong.write_text("guess")
    user.write_text("operator")
    hashed = subprocess.run(
        ["python3", "-W", "ignore", "-c", _BCRYPT, "let-me-in"], check=True, capture_output=True, text=True
    )
    web = {
        "tls_server_config": {"cert_file": str(certificate), "key_file": str(key)},
        "basic_auth_users": {"operator": hashed.stdout.strip()},
    }
    server = PrometheusServer(tmp_path / "prometheus", free_port(), free_port())
    server.web_configuration = tmp_path / "web.yml"
    server.web_configuration.write_text(yaml.safe_dump(web))
    server.start()

    async def up(**files: Path) -> Any:
        address = PrometheusAddress(server.url, **{name: str(path) for name, path in files.items()})
        async with aiohttp.ClientSession() as session:
            return await Connection(address, session).ask("vector(1)")

    try:
        data = asyncio.run(up(ca_file=certificate, user_file=user, password_file=password))
        assert samples(data) == [({}, 1.0)]
        with pytest.raises(NoAnswer, match="answered 401"):
            asyncio.run(up(ca_file=certificate, user_file=user, password_file=wrong))
        with pytest.raises(NoAnswer, match="certificate verify failed"):
            asyncio.run(up(user_file=user, password_file=password))
    finally:
        server.stop()
