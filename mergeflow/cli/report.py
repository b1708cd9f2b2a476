"""What happens during a build, told on stderr: a line for each phase that ended, one that moves while it runs, and
each warning once.

Events come from several threads, thousands a second while bytes flow: those only add to a counter, and the moving line
(on a terminal, for phases that are worth it) looks at the counter a few times a second.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mergeflow.cli.text import echo, paint, seconds
from mergeflow.events import Event, Noted, OutputDone, PhaseEnded, PhaseStarted, Planning, Progressed, Warned
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.cli.live import Line

WORTH_A_LINE = 32_000_000  # bytes: what takes less is over before it could be read
PATIENCE = 1.0  # seconds that planning takes in silence: most plans are made by then
_DONE = {"hashing": "hashed", "fetching": "fetched", "merging": "built"}


class Screen:
    """A Reporter that writes on stderr. `warnings` are those seen so far. A `brief` one leaves out the lines of phases
    that ended, for commands that say the same themselves. To be used in a with statement."""

    def __init__(self, *, brief: bool = False) -> None:
        self._brief = brief
        self.warnings: list[str] = []
        self._lock = threading.Lock()
        self._done = 0
        self._phase: PhaseStarted | None = None
        self._began = self._took = 0.0
        self._line: Line | None = None
        self._patience: threading.Timer | None = None

    def __call__(self, event: Event) -> None:
        if type(event) is Progressed:
            with self._lock:
                self._done += event.nbytes
        elif isinstance(event, PhaseStarted):
            self._start(event)
        elif isinstance(event, PhaseEnded):
            self._end(event)
        elif isinstance(event, Planning):
            self._planning(event)
        elif isinstance(event, OutputDone) and event.built:
            self._finished("built", event.nbytes, self._took, f"{event.path}: {event.reason}")
        elif isinstance(event, Noted):
            self.say(f"  {event.message}")
        elif isinstance(event, Warned):
            self.warn(event.message)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.say(f"{paint('warning:', fg='yellow')} {message}")

    def say(self, text: str) -> None:
        """One line on stderr, above the line that moves."""
        if self._line is not None:
            self._line.say(text)
        else:
            echo(text, err=True)

    def _start(self, event: PhaseStarted) -> None:
        self._stop()
        self._phase, self._done, self._began = event, 0, time.monotonic()
        if event.total >= WORTH_A_LINE and can_move():
            from mergeflow.cli.live import Line

            self._line = Line(f"{event.verb} {event.subject}", event.total, self._so_far)

    def _planning(self, event: Planning) -> None:
        """A line that moves, where there can be one and planning takes long enough."""
        if event.done == event.total:
            self._stop()
        elif self._patience is None and self._line is None and can_move():
            what = "1 output" if event.total == 1 else f"{event.total:,} outputs"
            self._patience = threading.Timer(PATIENCE, self._lose_patience, (f"planning {what}", event.total))
            self._patience.daemon = True
            self._patience.start()
        self._done = event.done

    def _lose_patience(self, text: str, total: int) -> None:
        from mergeflow.cli.live import Line

        with self._lock:
            if self._patience is not None:
                self._line = Line(text, total, self._so_far, pieces=True)

    def _so_far(self) -> int:
        return self._done

    def _end(self, event: PhaseEnded) -> None:
        self._stop()
        self._took = time.monotonic() - self._began
        if event.verb != "merging":  # its OutputDone says more
            total = self._phase.total if self._phase else self._done
            self._finished(_DONE.get(event.verb, event.verb), total, self._took, event.subject)

    def _finished(self, verb: str, nbytes: int, took: float, what: str) -> None:
        if not self._brief:
            self.say(f"  {verb:<6} {human_bytes(nbytes):>8}  {seconds(took):>7}  {what}")

    def _stop(self) -> None:
        with self._lock:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        if self._line is not None:
            self._line.stop()
            self._line = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()


def can_move() -> bool:
    """Whether stderr is a terminal on which a line can be drawn over itself."""
    import os

    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "")
