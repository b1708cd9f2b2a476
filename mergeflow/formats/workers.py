"""One function in several threads until there is nothing left to do; the first error of any is the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Queue(Generic[T]):
    """Items handed out in order, to whoever asks first; `stop` makes it empty at once."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> T | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)

    def stop(self) -> None:
        self._stopped = True


def drain(queue: Queue[T], work: Callable[[], Callable[[T], None]], workers: int) -> None:
    """Empty the queue with so many threads. `work` is called once in each and gives the function for its items; after
    an error, in whatever thread, the others finish the item in hand and no more."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            do = work()
            while (item := queue.next()) is not None:
                do(item)
        except BaseException as error:
            queue.stop()
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(workers - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        while thread.is_alive():  # a second Ctrl-C must not leave a thread that writes
            try:
                thread.join()
            except KeyboardInterrupt as error:
                queue.stop()
                errors.append(error)
    if errors:
        raise next((e for e in errors if isinstance(e, KeyboardInterrupt)), errors[0])
