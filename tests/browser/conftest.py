"""A real Chromium, and worlds for it to look at. Without one these tests are skipped, and say so."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.local.storage import LocalStorage
from support.world import World

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: see the dev group")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine: apt-get install chromium", allow_module_level=True)

PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the console of a world; at the test's end nothing has gone wrong in it, and its policy has stopped nothing."""
    contexts, complaints = [], []

    def open_(world: World, task: str = "", *, width: int = 1280, height: int = 900, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        sync_api.expect.set_options(timeout=PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if _is_fault(message) else None)
        page.goto(f"{world.server_url}/#{task}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _is_fault(message: Any) -> bool:
    # a server that is away, or that refuses, is what some tests are about
    return message.type == "error" and not re.search(r"net::ERR_|status of (401|404|409)", message.text)


@pytest.fixture(scope="module")
def world(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server and an aggregator that a module's tests share, each with a task of its own."""
    world = World.start(tmp_path_factory.mktemp("world"), storage)
    yield world
    world.stop()


@pytest.fixture
def fresh(storage: LocalStorage, tmp_path: Path) -> Iterator[World]:
    """A server that has seen nothing yet, and its aggregator."""
    world = World.start(tmp_path, storage)
    yield world
    world.stop()
