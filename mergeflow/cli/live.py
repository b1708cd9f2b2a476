"""The line that moves while bytes flow: what is done, how much of it, how fast, how long it will take. The only module
that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text
from rich.theme import Theme

CALM = Theme(
    {
        "bar.complete": "cyan",
        "bar.finished": "cyan",
        "progress.download": "none",
        "progress.data.speed": "none",
        "progress.remaining": "none",
    }
)


class Line:
    """Drawn eight times a second by a thread of its own, until `stop` removes it."""

    def __init__(self, text: str, total: int, done: Callable[[], int], *, pieces: bool = False) -> None:
        """`total` counts bytes, or `pieces`, of which a single one is done or not."""
        self._console = Console(file=sys.stderr, highlight=False, theme=CALM)
        counted: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if pieces:
            counted = (MofNCompleteColumn(),) if total > 1 else ()
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=24),
            *counted,
            TimeRemainingColumn(compact=True),
        )
        self._progress = _Pulled(
            *columns,
            console=self._console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = self._progress.add_task(text, total=None if pieces and total == 1 else total)
        self._progress.pull = lambda: self._progress.update(task, completed=min(done(), total))
        self._progress.start()

    def say(self, text: str) -> None:
        self._console.print(Text.from_ansi(text), soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()


class _Pulled(Progress):
    """Asks how far things are each time it is drawn, instead of being told at every step."""

    pull: Callable[[], None] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.pull is not None:
            self.pull()
        return super().get_renderables()
