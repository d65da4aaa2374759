"""Quantities as people write them: "30m", "12GiB", "0.5%", "$5", "200k"; and back.

Each parser takes a string or a plain number and returns seconds, bytes, a fraction or a count. What cannot be
read raises `UsageError` with the accepted forms.
"""

from __future__ import annotations

import math
import re

from foretune.errors import UsageError

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def _refuse(kind: str, text: object, forms: str) -> UsageError:
    return UsageError(f"{text!r} is not a {kind}.", remedy=f"Write it like {forms}.")


def parse_duration(value: str | float) -> float:
    """Seconds from ``"90"``, ``"30m"``, ``"1h30m"``, ``"2d"`` or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip().lower().replace(" ", "")
    parts = re.findall(rf"{_NUMBER}(d|h|min|m|s|)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise _refuse("duration", value, "90s, 30m, 1h30m or 2d")
    return sum(float(number) * _DURATION_S[unit] for number, unit in parts)


def parse_bytes(value: str | float) -> int:
    """Bytes from ``"12GiB"``, ``"500MB"`` or a number of bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)
    match = re.fullmatch(rf"{_NUMBER}([kmgt]?i?b|)", str(value).strip().lower().replace(" ", ""))
    if match is None or match.group(2) not in _BYTES:
        raise _refuse("size", value, "12GiB, 500MB or 1000000")
    return int(float(match.group(1)) * _BYTES[match.group(2)])


def parse_share(value: str | float) -> float:
    """A fraction in [0, 1] from ``"0.5%"`` or ``0.005``."""
    text = str(value).strip().replace(" ", "")
    match = re.fullmatch(rf"{_NUMBER}(%?)", text)
    if match is None:
        raise _refuse("share", value, "0.5% or 0.005")
    share = float(match.group(1)) / (100.0 if match.group(2) else 1.0)
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"{value!r} is outside 0% to 100%.", remedy="Write a share like 0.5% or 0.005.")
    return share


def parse_money(value: str | float) -> float:
    """An amount from ``"$5"``, ``"5 EUR"`` or ``5``; the currency is the user's and is not converted."""
    match = re.fullmatch(rf"[$€£]?{_NUMBER}(?:usd|eur|gbp|[$€£])?", str(value).strip().lower().replace(" ", ""))
    if match is None:
        raise _refuse("price", value, "$5 or 5")
    return float(match.group(1))


def parse_count(value: str | int) -> int:
    """A whole number from ``"200k"``, ``"1.5M"`` or ``200000``."""
    match = re.fullmatch(rf"{_NUMBER}([kmb]?)", str(value).strip().lower().replace(",", "").replace("_", ""))
    if match is None:
        raise _refuse("count", value, "500, 200k or 1.5M")
    return round(float(match.group(1)) * _COUNTS[match.group(2)])


def format_duration(seconds: float) -> str:
    """``"45 s"``, ``"12 min 30 s"``, ``"3 h 05 min"``."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def format_bytes(count: float) -> str:
    """``"512 B"``, ``"3.2 MiB"``, ``"1.1 GiB"``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_share(share: float) -> str:
    """``"0.52 %"``: two significant digits, never zero for a positive share."""
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.1f} %"


def format_count(count: int) -> str:
    """``"4,884,480"``."""
    return f"{count:,}"
