"""Sizes, durations and shares as people write them on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from mergeflow.tensors import parse_bytes

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _FloatType = click.ParamType[float]
else:
    _IntType = _FloatType = click.ParamType

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NUMBER = r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*"


class Size(_IntType):
    """10GB, 800 MB, 1.5GiB, 0: in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        size = parse_bytes(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size: write it as 10GB or 800MB", param, ctx)
        return size


class Duration(_FloatType):
    """30d, 12h, 10min, 90s, 2w: in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(_NUMBER + r"([a-z]*)\s*", str(value).lower())
        if match is None or (match[2] or "0") not in {*_SECONDS, "0"} or (not match[2] and float(match[1])):
            self.fail(f"{value!r} is not a time: write it as 30d, 12h or 10min", param, ctx)
        return float(match[1]) * _SECONDS.get(match[2], 0)


class Share(_FloatType):
    """0.1 or 10%: a part of the whole, more than nothing."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(_NUMBER + r"(%?)\s*", str(value))
        share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r} is not a share: write it as 0.1 or 10%", param, ctx)
        return share
