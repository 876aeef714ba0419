"""Writes docs/images/console-*.png: the console in its states. Run it as `make pictures`."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from playwright.sync_api import sync_playwright

from fedlearn.core.errors import Code
from fedlearn.local.storage import LocalStorage
from support.crowd import start_devices, write_shards
from support.past import give_past
from support.trial import Trial
from support.world import World, small_plan, wait_for

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH = 1280


class Camera:
    def __init__(self, browser: Any, world: World) -> None:
        self._browser, self._world = browser, world

    def take(self, name: str, ready: str, *, height: int, before: Any = None) -> None:
        """A picture once `ready` is there."""
        context = self._browser.new_context(
            viewport={"width": WIDTH, "height": height}, color_scheme="light", reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(f"{self._world.server_url}/")
        page.locator(ready).first.wait_for(state="attached")
        page.locator("#charts:not([hidden]), #welcome:not([hidden])").first.wait_for()
        if before is not None:
            before(page)
        page.wait_for_timeout(700)
        page.screenshot(path=IMAGES / f"console-{name}.png")
        context.close()


def _problems(page: Any) -> None:
    page.get_by_role("button", name="Problems").click()


@contextmanager
def world_of(storage: LocalStorage, browser: Any, **settings: str) -> Iterator[tuple[World, Camera]]:
    with tempfile.TemporaryDirectory() as directory:
        world = World.start(Path(directory), storage, server_settings=settings)
        try:
            yield world, Camera(browser, world)
        finally:
            world.stop()


def empty_to_abandoned(storage: LocalStorage, browser: Any) -> None:
    with world_of(storage, browser) as (world, camera):
        camera.take("empty", "#welcome", height=640)
        trial = Trial(world, "mnist-2nn")
        trial.submit(rounds=None, goal=6, min_fraction=0.5)
        names = [f"{trial.name}-device-{i}" for i in range(12)]
        give_past(world, trial.name, names[:8], 36)
        devices = [trial.device(name.removeprefix(f"{trial.name}-")) for name in names]
        for device in devices:
            device.check_in(0.05)
        assignments = trial.assign(*devices[:6])
        for device, assignment in zip(devices[:5], assignments, strict=False):
            device.accept(assignment)
        for device, assignment in zip(devices[:2], assignments, strict=False):
            trial.bring(device, assignment, trial.update())
        devices[2].drop_out(assignments[2], Code.DEVICE_STOPPING)
        wait_for(lambda: sum(standing == "reported" for standing, _ in trial.standings(37).values()) == 2, "two reports")
        camera.take("running", "#round:not([hidden])", height=1560)
        spoilt = trial.update()
        trial.bring(devices[3], assignments[3], replace(spoilt, delta=np.full_like(spoilt.delta, np.nan)))
        trial.wait_for_standing(devices[3], "refused", 37)
        for device, assignment in zip(devices[4:6], assignments[4:], strict=True):
            device.drop_out(assignment, Code.TRAINING_FAILED)
        trial.reach(37, "abandoned")
        camera.take("abandoned", "#round:not([hidden])", height=1560, before=_problems)


def thousand(storage: LocalStorage, browser: Any) -> None:
    with world_of(storage, browser, FEDLEARN_SHOW_LABELS="true") as (world, camera):
        write_shards(world, 1000)
        world.submit("thousand", small_plan(dataset="thousand"), rounds=None, goal=900, min_fraction=0.5)
        give_past(world, "thousand", [f"device-0/{i}" for i in range(12)], 400)
        start_devices(world, "thousand", count=1000, FEDLEARN_TELLS_LABELS="true")
        reports = 'fedlearn_round_participants_total{standing="reported"}'
        wait_for(lambda: world.metric(world.server_url, reports), "a round", 120)
        camera.take("1000-devices", ".tile:nth-child(900)", height=1240)


def main() -> None:
    wanted = sys.argv[1:] or ["empty_to_abandoned", "thousand"]
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for scene in (empty_to_abandoned, thousand):
            if scene.__name__ in wanted:
                scene(storage, browser)
        browser.close()


if __name__ == "__main__":
    main()
