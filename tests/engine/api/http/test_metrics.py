"""``/metrics``: its formats, and who may read it."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import aiohttp
import pytest

from durably.engine.api.http.server import PortTakenError
from durably.engine.api.metrics import Metric
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind
from durably.protocol.signatures import hash_signing_key

KEY = "signkey-prod-" + "ab" * 32
PRODUCTION = EngineSettings(server_kind=ServerKind.CLOUD, signing_key=KEY)
LOCAL = ("127.0.0.1", 0)


async def test_a_development_engine_shows_its_metrics_without_a_key(tmp_path: Path) -> None:
    async with (
        await serve_database(tmp_path / "engine.db", EngineSettings(), port=0) as server,
        aiohttp.ClientSession(server.origin) as http,
    ):
        async with http.get("/metrics") as response:
            assert response.status == 200
            assert response.content_type == "text/plain"
            assert "durably_up 1.0\n" in await response.text()
        openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
        async with http.get("/metrics", headers=openmetrics) as response:
            assert response.content_type == "application/openmetrics-text"
            assert (await response.text()).endswith("# EOF\n")
        async with http.get("/metrics", headers={"origin": "https://evil.example"}) as response:
            assert response.status == 403
        async with http.get("/v1/metrics") as response:
            names = {metric["name"] for metric in (await response.json())["data"]}
            assert "commits" in names


async def test_in_production_the_api_shows_metrics_to_the_signing_key_and_the_metrics_address_to_all(
    tmp_path: Path,
) -> None:
    async with await serve_database(
        tmp_path / "engine.db", PRODUCTION, port=0, event_keys=["key"], metrics_address=LOCAL
    ) as server:
        async with aiohttp.ClientSession(server.origin) as http:
            async with http.get("/metrics") as response:
                assert response.status == 401
            bearer = {"authorization": f"Bearer {hash_signing_key(KEY)}"}
            async with http.get("/metrics", headers=bearer) as response:
                assert response.status == 200
        assert server.metrics_origin is not None
        async with aiohttp.ClientSession(server.metrics_origin) as http:
            async with http.get("/metrics") as response:
                assert response.status == 200
                assert "durably_build_info{" in await response.text()
            async with http.head("/metrics") as response:
                assert response.status == 200
            for path in ("/", "/v1/runs", "/health", "/e/key"):
                async with http.get(path) as response:
                    assert response.status == 404, path
            async with http.post("/metrics") as response:
                assert response.status == 405


async def test_many_requests_without_a_key_make_few_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await serve_database(tmp_path / "engine.db", EngineSettings(), port=0, metrics_address=LOCAL) as server:
        read, reads = server.engine.read_metrics, 0

        async def counting() -> list[Metric]:
            nonlocal reads
            reads += 1
            return await read()

        monkeypatch.setattr(server.engine, "read_metrics", counting)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with aiohttp.ClientSession(server.metrics_origin) as http:

            async def get() -> str:
                async with http.get("/metrics") as response:
                    assert response.status == 200
                    return await response.text()

            texts = await asyncio.gather(*(get() for _ in range(50)))
        assert all("durably_up 1.0" in text for text in texts)
        assert reads <= 1 + (loop.time() - began)


async def test_a_taken_metrics_address_prevents_the_start_and_frees_the_other(tmp_path: Path) -> None:
    async with await serve_database(tmp_path / "one.db", EngineSettings(), port=0, metrics_address=LOCAL) as first:
        assert first.metrics_origin is not None
        taken = int(first.metrics_origin.rpartition(":")[2])
        with pytest.raises(PortTakenError, match=str(taken)):
            await serve_database(tmp_path / "two.db", EngineSettings(), port=0, metrics_address=("127.0.0.1", taken))
    assert not (tmp_path / "two.db").exists()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
async def test_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    async with (
        await serve_database(tmp_path / "engine.db", EngineSettings(), port=0) as server,
        aiohttp.ClientSession(server.origin) as http,
        http.get("/metrics") as response,
    ):
        text = await response.read()
    command = ["promtool", "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
