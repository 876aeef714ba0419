"""The console in a real Chromium, over the real services."""

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from fedlearn.core.errors import Code, Refusal
from support.crowd import start_devices, write_shards
from support.past import give_past
from support.trial import Trial
from support.world import World, small_plan, wait_for

Open = Callable[..., Page]


_numbers = itertools.count(1)


def name() -> str:
    """A task's name that no other test has: they share the storage."""
    return f"mnist-{next(_numbers)}"


@pytest.fixture
def trial(world: World) -> Iterator[Trial]:
    trial = Trial(world, name())
    yield trial
    with contextlib.suppress(Refusal):  # it was never submitted
        trial.cancel()


def spoil_a_round(trial: Trial) -> None:
    """One device's update is not finite, and the other one drops out: the round is abandoned."""
    a, b = trial.devices("a", "b")
    assignments = trial.assign(a, b)
    update = trial.update()
    trial.bring(a, assignments[0], replace(update, delta=np.full_like(update.delta, np.nan)))
    trial.wait_for_standing(a, "refused")
    assert b.drop_out(assignments[1], Code.TRAINING_FAILED).is_success
    trial.reach(1, "abandoned")


def half_a_round(trial: Trial) -> None:
    """A round of three in which one has reported, one trains and one was only selected."""
    trial.submit(rounds=3, goal=3)
    devices = trial.devices("a", "b", "c")
    assignments = trial.assign(*devices)
    for device, assignment in zip(devices[:2], assignments, strict=False):
        assert device.accept(assignment).is_success
    trial.bring(devices[0], assignments[0], trial.update())
    trial.wait_for_standing(devices[0], "reported")


def lane(page: Page, words: str) -> Any:
    return page.locator("#lanes div").filter(has_text=words).locator("dd").first


def sign_in(page: Page, world: World) -> None:
    page.get_by_label("Token", exact=True).fill(world.deployment.operator_token())
    page.locator("#sign-in").get_by_role("button", name="Sign in").click()
    expect(page.locator("#sign-in")).to_be_hidden()


def grave_faults(page: Page) -> dict[str, list[str]]:
    """What axe finds serious or critical, with the places."""
    violations = Axe().run(page).response["violations"]
    grave = [found for found in violations if found["impact"] in ("serious", "critical")]
    return {found["id"]: [node["html"] for node in found["nodes"]] for found in grave}


# --- what happens is seen


def test_a_run_is_watched_from_an_empty_system_to_its_end(fresh: World, open_page: Open) -> None:
    page = open_page(fresh)
    expect(page.get_by_role("heading", level=1)).to_have_text("Nothing is training yet")
    expect(page.locator("#steps")).to_contain_text("fedlearn tasks submit-builtin")
    assert grave_faults(page) == {}
    write_shards(fresh, 5)
    start_devices(fresh, "mnist", count=5)
    expect(page.locator("#welcome-lead")).to_have_text("5 devices are here and wait for a task.")
    task = name()
    fresh.submit(task, small_plan(), rounds=3, goal=4, over_selection=1.25)
    expect(page.get_by_role("heading", level=1)).to_have_text(task)
    expect(page.locator("#task-state")).to_have_text("Completed")
    expect(page.locator("#task-facts")).to_contain_text("3 of 3")
    expect(page.locator("#round-title")).to_have_text("Round 3")
    expect(page.locator("#track li").last).to_contain_text("Committed")
    expect(page.locator("#lineage li")).to_have_count(4)
    expect(page.locator("#lineage li").first).to_contain_text("Round 3, from v2")
    expect(page.locator("#log")).to_contain_text("Round 3 committed")
    expect(page.locator(".tile")).to_have_count(5)
    expect(page.get_by_role("slider", name="Accuracy by round")).to_have_attribute("aria-valuenow", "2")


def test_devices_move_through_the_round(trial: Trial, open_page: Open) -> None:
    page = open_page(trial.world, trial.name)
    half_a_round(trial)
    for standing in ("Selected", "Training", "Reported"):
        expect(lane(page, standing)).to_have_text("1")
    expect(page.locator("#track [aria-current=step]")).to_contain_text("Reporting")
    expect(page.locator(".tile").filter(has_text=f"{trial.name}-a")).to_contain_text("Reported")
    expect(page.locator(".tile").filter(has_text=f"{trial.name}-b")).to_contain_text("Training")


def test_a_server_that_was_killed_is_waited_for_and_followed_again(trial: Trial, open_page: Open) -> None:
    page = open_page(trial.world, trial.name)
    half_a_round(trial)
    expect(lane(page, "Reported")).to_have_text("1")
    trial.world.kill("server")
    expect(page.locator("#link")).to_have_text("Server not reachable, trying again")
    expect(lane(page, "Reported")).to_have_text("1")  # what was known stays
    trial.world.restart("server")
    expect(page.locator("#link")).to_have_text("Live")
    devices = trial.devices("b", "c")
    for device, assignment in zip(devices, trial.assign(*devices), strict=True):
        trial.bring(device, assignment, trial.update())
    expect(page.locator("#log")).to_contain_text("Round 1 committed")


def test_a_refused_update_and_an_abandoned_round_are_explained(trial: Trial, open_page: Open) -> None:
    page = open_page(trial.world, trial.name)
    trial.submit()
    spoil_a_round(trial)
    page.get_by_role("button", name="Problems").click()
    log = page.locator("#log")
    expect(log).to_contain_text("1 update refused in round 1")
    expect(log).to_contain_text("The update holds NaN or infinity. update_not_finite")
    expect(log).to_contain_text(f"{trial.name}-a")
    expect(log).to_contain_text("1 device dropped out of round 1")
    expect(log).to_contain_text("Too few devices reported before the deadline. too_few_reports")
    expect(log).to_contain_text("0 of 2 devices reported; 2 were needed.")
    expect(page.locator("#dots-readout")).to_contain_text("Round 1 was abandoned.")


def test_labels_are_shown_where_both_operators_have_switched_it_on(fresh: World, open_page: Open) -> None:
    write_shards(fresh, 2)
    start_devices(fresh, "mnist", count=1, FEDLEARN_TELLS_LABELS="true")
    start_devices(fresh, "mnist", first=1, count=1, index=1)
    page = open_page(fresh)
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile svg")).to_have_count(0)
    fresh.kill("server")
    fresh.restart("server", FEDLEARN_SHOW_LABELS="true")
    expect(page.locator(".tile svg")).to_have_count(1)


# --- what an operator does


def test_a_task_is_cancelled_with_the_operators_token_and_the_audit_log_says_by_whom(trial: Trial, open_page: Open) -> None:
    page = open_page(trial.world, trial.name)
    half_a_round(trial)
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the task").click()
    page.get_by_label("Token", exact=True).fill("not the token")
    page.locator("#sign-in").get_by_role("button", name="Sign in").click()
    expect(page.locator("#sign-in-fault")).to_have_text("This is not the operators' token.")
    assert trial.state() == "running"
    sign_in(page, trial.world)
    expect(page.locator("#task-state")).to_have_text("Cancelled")
    expect(page.locator("#round-note")).to_have_text("The task was cancelled.")
    expect(page.locator("#log")).to_contain_text("The task was cancelled by an operator")
    expect(page.locator("#audit-rows tr").first).to_contain_text(re.compile(rf"operator [0-9a-f]{{8}}cancel{trial.name}Done"))
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#audit")).to_be_hidden()
    assert page.evaluate("[sessionStorage.length, Object.keys(localStorage)]") == [0, []]


def test_a_version_is_downloaded_through_the_server(trial: Trial, open_page: Open) -> None:
    page = open_page(trial.world, trial.name)
    trial.submit()
    page.get_by_role("button", name="Download version 0").click()
    with page.expect_download() as download:
        sign_in(page, trial.world)
    assert download.value.suggested_filename == f"{trial.name}-0.safetensors"
    with trial.world.operator() as operator:
        assert download.value.path().read_bytes() == operator.download(trial.name, 0)


# --- how it looks, and to whom


@pytest.mark.parametrize("look", ["light", "dark", "narrow", "signing in"])
def test_axe_finds_nothing_serious(look: str, trial: Trial, open_page: Open) -> None:
    trial.submit(rounds=None)
    give_past(trial.world, trial.name, [f"{trial.name}-a", f"{trial.name}-b"], 12)
    page = open_page(
        trial.world, trial.name, width=360 if look == "narrow" else 1280, color_scheme="dark" if look == "dark" else "light"
    )
    page.locator("#charts").wait_for()
    if look == "signing in":
        page.get_by_role("button", name="Sign in").click()
    assert grave_faults(page) == {}


def test_the_theme_follows_the_system_until_it_is_chosen(world: World, open_page: Open) -> None:
    page = open_page(world, color_scheme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = ground()
    page.emulate_media(color_scheme="light")
    light = ground()
    assert dark != light
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    assert ground() == dark
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert ground() == dark


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_scrolls_in_one_direction_only(width: int, trial: Trial, open_page: Open) -> None:
    half_a_round(trial)
    page = open_page(trial.world, trial.name, width=width)
    expect(lane(page, "Training")).to_have_text("1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_of_it_is_reached_by_the_keyboard(trial: Trial, open_page: Open) -> None:
    trial.submit(rounds=None)
    give_past(trial.world, trial.name, [f"{trial.name}-a", f"{trial.name}-b"], 5)
    page = open_page(trial.world, trial.name)
    page.locator("#charts").wait_for()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()")
        )
        if reached[-1] == "Metrics":
            break
    for wanted in ("Skip to the content", "Pause", "Cancel", "Accuracy by round", "Problems", "Download version 0", "Metrics"):
        assert wanted in reached, reached
    chart = page.get_by_role("slider", name="Accuracy by round")
    chart.focus()
    page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^Round 0: test set \d"))
    page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^Round 1: "))
    page.get_by_role("button", name="Cancel", exact=True).press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(world: World, open_page: Open) -> None:
    page = open_page(world)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.locator("#link")).to_have_text("Live")
    assert [url for url in asked if not url.startswith((world.server_url, "data:"))] == []
    for path in ("/", "/console/main.js", "/console/console.css"):
        headers = httpx.get(f"{world.server_url}{path}", trust_env=False).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    html = httpx.get(f"{world.server_url}/", trust_env=False).text
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", html)


# --- a thousand of each

_MEASURE = """
window.longTasks = []; window.frames = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((e) => e.duration))).observe({ type: "longtask" });
let before = performance.now();
requestAnimationFrame(function frame(now) { frames.push(now - before); before = now; requestAnimationFrame(frame); });
"""


@pytest.mark.slow
def test_a_thousand_devices_and_a_thousand_rounds_do_not_make_it_stutter(
    fresh: World, open_page: Open, record_property: Any
) -> None:
    write_shards(fresh, 1000)
    fresh.submit("thousand", small_plan(), rounds=None, goal=900, min_fraction=0.5)
    give_past(fresh, "thousand", [f"device-0/{i}" for i in range(20)], 1000)
    start_devices(fresh, "mnist", count=1000)
    page = open_page(fresh)
    expect(page.locator(".tile")).to_have_count(1000, timeout=90_000)
    expect(page.locator("#charts")).to_be_visible()
    page.evaluate(_MEASURE)
    number = page.locator("#round-title").inner_text()
    wait_for(lambda: page.locator("#round-title").inner_text() != number, "the next round", 90)
    for _ in range(20):
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(100)
    chart = page.get_by_role("slider", name="Accuracy by round")
    chart.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    frames, long_tasks = (sorted(page.evaluate(f"window.{kept}")) for kept in ("frames", "longTasks"))
    figures = {
        "frames": len(frames),
        "frame, 95th percentile, ms": round(frames[int(len(frames) * 0.95)], 1),
        "longest task, ms": round(max(long_tasks, default=0), 1),
        "long tasks": len(long_tasks),
        "overview, kB": len(httpx.get(f"{fresh.server_url}/v1/overview", trust_env=False, timeout=30).content) // 1000,
        "history, s": _seconds(f"{fresh.server_url}/v1/tasks/thousand/history"),
    }
    print(figures)  # noqa: T201 - for pytest -s
    assert figures["frame, 95th percentile, ms"] < 100
    assert figures["longest task, ms"] < 1000


def _seconds(url: str) -> float:
    began = time.monotonic()
    assert httpx.get(url, trust_env=False, timeout=30).is_success
    return round(time.monotonic() - began, 3)
