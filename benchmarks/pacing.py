"""Pace steering in virtual time: 50 and 100,000 devices around one server, with and without; draws docs/images/pacing.svg.

All devices call at once when the clock starts, as after the server's restart. A round wants 1.3 times its goal and keeps its
devices for a minute. Without pace steering a device that got no work comes back within a second, as a plain retry would.

The small fleet is of devices that can't be held (`wait_seconds` 2): they have to meet. The large one is held for 30 s a call.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedlearn.core.selection import Census, Pace

ROUND_SECONDS = 60.0
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "pacing.svg"


@dataclass
class Fleet:
    """One fleet, one task and one server; everything that happens is an event in a heap."""

    devices: int
    goal: int
    hold_seconds: float
    steered: bool
    until_seconds: float
    usual_seconds: float = 60.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    checkins: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    waiting_seconds: float = 0.0

    def run(self) -> "Fleet":
        pace, wanted = Pace(), int(np.ceil(1.3 * self.goal))
        first = self.rng.uniform(0.0, 1.0 if self.devices > 1000 else self.usual_seconds, self.devices)
        events = [(float(at), index, "come") for index, at in enumerate(first)]
        heapq.heapify(events)
        waiting: dict[int, float] = {}
        busy_until = 0.0
        while events and (event := heapq.heappop(events))[0] < self.until_seconds:
            now, device, what = event
            if what == "come":
                self.checkins.append(now)
                waiting[device] = now
                heapq.heappush(events, (now + self.hold_seconds, device, "give up"))
            elif device in waiting and abs(waiting[device] + self.hold_seconds - now) < 1e-6:
                self.waiting_seconds += now - waiting.pop(device)
                heapq.heappush(events, (now + self._away(pace, wanted, now), device, "come"))
            if now >= busy_until and len(waiting) >= wanted and what == "come":
                self.rounds.append(now)
                busy_until = now + ROUND_SECONDS
                for chosen in self.rng.choice(np.fromiter(waiting, int), wanted, replace=False):
                    self.waiting_seconds += now - waiting.pop(int(chosen))
                    heapq.heappush(events, (busy_until, int(chosen), "come"))
        return self

    def _away(self, pace: Pace, wanted: int, now: float) -> float:
        if self.steered:
            return pace.come_back(Census(self.devices, wanted), self.hold_seconds, now, self.rng)
        return float(self.rng.uniform(0.0, 1.0 if self.devices > 1000 else self.usual_seconds))

    def per_second(self) -> np.ndarray:
        """Check-ins in each second."""
        return np.histogram(self.checkins, bins=int(self.until_seconds), range=(0.0, self.until_seconds))[0]


def say(name: str, fleet: Fleet) -> None:
    settled = fleet.per_second()[300:]
    how, hourly = ("steered" if fleet.steered else "not steered"), 3600 * len(fleet.rounds) / fleet.until_seconds
    print(f"{name:20} {how:12} {hourly:3.0f} rounds an hour; {fleet.waiting_seconds / fleet.until_seconds:8.1f} devices wait;")
    print(f"{'':33} check-ins a second: mean {settled.mean():7.1f}, worst {settled.max():6d}")


class Scale(NamedTuple):
    """What stands beside the axis, and where a value is on it: 0 at the foot, 1 at the top."""

    ticks: tuple[float, ...]
    height: Callable[[float], float]


def linear(most: float) -> Scale:
    top = 1.1 * most
    return Scale((0.0, top), lambda value: value / top)


def logarithmic(most: float) -> Scale:
    """From one to the power of ten above the most; what is less stands at the foot."""
    powers = max(1, math.ceil(math.log10(max(most, 1.0))))
    return Scale(tuple(10.0**power for power in range(powers + 1)), lambda value: math.log10(max(value, 1.0)) / powers)


def polyline(values: np.ndarray, scale: Scale, left: float, base: float, colour: str) -> str:
    """A curve 400 wide and 120 high."""
    step = 400 / (len(values) - 1)
    points = " ".join(f"{left + i * step:.1f},{base - 120 * scale.height(float(v)):.1f}" for i, v in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>'


class Curve(NamedTuple):
    name: str
    colour: str
    values: np.ndarray


def panel(
    titles: tuple[str, str], curves: list[Curve], left: float, minutes: float, scaled: Callable[[float], Scale]
) -> list[str]:
    """`titles` are the panel's own, and what its axis shows."""
    title, y_label = titles
    scale = scaled(max(float(curve.values.max()) for curve in curves))
    base, parts = (
        175.0,
        [f'<text x="{left}" y="22" font-weight="600">{title}</text>', f'<text x="{left}" y="42">{y_label}</text>'],
    )
    for tick in scale.ticks:
        at = base - 120 * scale.height(tick)
        parts.append(f'<path d="M{left},{at:.1f} H{left + 400}" fill="none" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:,.0f}</text>')
    parts.append(f'<path d="M{left},{base - 120} V{base} H{left + 400}" fill="none" stroke="#888"/>')
    parts += [f'<text x="{left + 400}" y="{base + 18}" text-anchor="end">{minutes:.0f} min</text>']
    for index, (name, colour, values) in enumerate(curves):
        parts.append(polyline(values, scale, left, base, colour))
        parts.append(f'<text x="{left + 20 + 150 * index}" y="{base + 18}" fill="{colour}">{name}</text>')
    return parts


def main() -> None:
    colours = {True: "#0b7285", False: "#e8590c"}
    names = {True: "with pace steering", False: "without"}
    small = {steered: Fleet(50, 20, 2.0, steered, 3600.0).run() for steered in (False, True)}
    large = {steered: Fleet(100_000, 100, 30.0, steered, 1200.0).run() for steered in (False, True)}
    for name, fleets in (("50 devices, goal 20", small), ("100,000, goal 100", large)):
        for fleet in fleets.values():
            say(name, fleet)
    rounds = [
        Curve(names[s], colours[s], np.searchsorted(fleet.rounds, np.linspace(0, 3600, 361), side="right"))
        for s, fleet in small.items()
    ]
    rates = [Curve(names[s], colours[s], fleet.per_second()[:1200].reshape(-1, 4).mean(axis=1)) for s, fleet in large.items()]
    drawing = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 210" font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="1000" height="210" fill="#fff"/>',
        *panel(("50 devices that can't be held: they meet", "rounds begun, goal 20"), rounds, 60, 60, linear),
        *panel(
            ("100,000 devices: they spread", "check-ins a second (logarithmic; less than 1 is at the foot)"),
            rates,
            560,
            20,
            logarithmic,
        ),
        "</svg>",
    ]
    FIGURE.write_text("\n".join(drawing) + "\n")


if __name__ == "__main__":
    main()
