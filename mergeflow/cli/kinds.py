"""What `inspect` and `check` say of a file that is no whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeflow.arch import Kind


def told_kind(kind: Kind | None) -> dict[str, Any] | None:
    """As data; None of a whole model."""
    if kind is None:
        return None
    return {"name": kind.name, "title": kind.title, "reason": kind.why, "facts": dict(kind.facts), "use": kind.use}


def kind_rows(kind: dict[str, Any] | None) -> list[tuple[str, str]]:
    """As lines of a table; none of a whole model."""
    if kind is None:
        return []
    rows = [("kind", f"{kind['title']}, not a whole model: {kind['reason']}")]
    rows += [("", value if key == "for" else f"{key}: {value}") for key, value in kind["facts"].items()]
    return [*rows, ("", kind["use"])]
