"""Batches prepared ahead: a thread draws and packs the next steps' batches while one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Prepared = TypeVar("Prepared")


class Prefetch(Generic[Prepared]):
    """Calls `prepare(step)` up to `ahead` steps early; a context, as it ends its thread.

    A batch is a function of its step alone (decision D7), so what was prepared needs no place in a checkpoint.
    """

    def __init__(self, prepare: Callable[[int], Prepared], last: int, ahead: int = 2):
        self.prepare, self.last, self.ahead = prepare, last, ahead
        self.pool = ThreadPoolExecutor(1)
        self.waiting: dict[int, Future[Prepared]] = {}

    def __enter__(self) -> "Prefetch[Prepared]":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Prepared:
        """Return the batch of a step, and set the next ones going."""
        for coming in range(step, min(step + self.ahead, self.last - 1) + 1):
            if coming not in self.waiting:
                self.waiting[coming] = self.pool.submit(self.prepare, coming)
        return self.waiting.pop(step).result()
