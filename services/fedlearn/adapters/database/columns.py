"""Column types that give back exactly what was put in, in SQLite and in PostgreSQL alike."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Dialect, Text
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[float]):
    """Seconds since the epoch, kept as ISO 8601 text in UTC: `2025-11-24T04:58:57.123+00:00`.

    A database's own timestamps end at microseconds, which would change a float, and a changed float is a changed round. So the
    text carries as many decimals as the float has. Its bytes sort by time; a database's collation need not.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: float | None, _dialect: Dialect) -> str | None:
        return None if value is None else iso_time(value)

    def process_result_value(self, value: str | None, _dialect: Dialect) -> float | None:
        return None if value is None else epoch_seconds(value)


def iso_time(seconds: float) -> str:
    """Write seconds since the epoch as ISO 8601 in UTC, without loss.

    Raises:
        ValueError: for a time before 1970, after 9999, or none at all (infinite, NaN).
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{seconds} is no time since the epoch")
    whole, _, decimals = f"{Decimal(repr(float(seconds))):f}".partition(".")
    text = datetime.fromtimestamp(int(whole), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    decimals = decimals.rstrip("0")
    return f"{text}.{decimals}+00:00" if decimals else f"{text}+00:00"


def epoch_seconds(text: str) -> float:
    """Read what `iso_time` has written."""
    moment, _, decimals = text.removesuffix("+00:00").partition(".")
    whole = int(datetime.fromisoformat(f"{moment}+00:00").timestamp())
    return float(f"{whole}.{decimals or '0'}")


class Document(TypeDecorator[Any]):
    """A JSON value as text.

    Not the database's own JSON: PostgreSQL refuses NaN there, which is a diverged model's honest loss.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, _dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)
