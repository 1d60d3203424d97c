"""The page on Django: its modules form a project that runs in its own process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.measured import measured
from tests.support.paths import ROOT

#: The other modules of the project. They include a fake of Celery, which is not installed.
MORE: Final = {
    "shop/__init__.py": "",
    "shop/settings.py": (
        "ALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'shop.urls'\nSECRET_KEY = 'not one'\nUSE_TZ = True\n"
    ),
    "shop/urls.py": (
        "from django.urls import path\n"
        "from shop import synchronous, views\n"
        "urlpatterns = [path('async', views.place_order), path('sync', synchronous.place_order)]\n"
    ),
    "celery/__init__.py": "def shared_task(function):\n    return function\n",
    "celery/signals.py": (
        "class Signal:\n"
        "    def connect(self, function):\n"
        "        self.function = function\n"
        "        return function\n"
        "worker_process_shutdown = Signal()\n"
    ),
}

ASYNCHRONOUS: Final = """
import asyncio

import httpx
import uvicorn

from shop.asgi import application
from shop.kafka import service


async def main():
    config = uvicorn.Config(application, port=0, lifespan="on", log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        response = await client.post("/async", content=b"two tins", timeout=60)
    print(response.status_code, sorted(response.json()), service)
    server.should_exit = True
    await serving
    print(service)


asyncio.run(main())
"""

SYNCHRONOUS: Final = """
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django

django.setup()
from django.test import Client
from shop import blocking, tasks

response = Client().post("/sync", b"two tins", content_type="text/plain")
print(response.status_code, sorted(response.json()))
tasks.announce_order("42")
_, producer = blocking.opened
if {by_signal}:
    from celery.signals import worker_process_shutdown

    worker_process_shutdown.function()
    print(producer.statistics().state, producer.statistics().delivered)
"""


@pytest.fixture
def project(tmp_path: Path, shared_broker: str) -> Path:
    page = (ROOT / "docs/how-to/use-in-django.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python3\n# (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(re.findall("^```python3", page, re.MULTILINE)) > 5
    for name, text in [*MORE.items(), *blocks]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("localhost:9092", shared_broker))
    return tmp_path


def run(project: Path, script: str) -> list[str]:
    (project / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=project,
        env={**os.environ, **measured()},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_asynchronous_views(project: Path) -> None:
    assert run(project, ASYNCHRONOUS) == [
        "201 ['offset', 'partition'] <ProducerService running>",
        "<ProducerService stopped>",
    ]


@pytest.mark.parametrize("by_signal", [True, False], ids=["celery", "atexit"])
def test_synchronous_views_and_tasks(project: Path, by_signal: bool) -> None:
    printed = ["201 ['offset', 'partition']", *(["closed 2"] if by_signal else [])]
    assert run(project, SYNCHRONOUS.format(by_signal=by_signal)) == printed
