"""Progress that is visible everywhere: a bar in a notebook or a terminal, sparse lines elsewhere.

A batch run stores a bar frozen at 0 %, so where bars are off (``TQDM_DISABLE=1``, which the runner
sets) a line is printed every few seconds instead.
"""

import os
import time
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """``with Progress(steps, "fit") as progress: ... progress.update(psnr_db=25.1)``."""

    def __init__(self, total: int, label: str, *, done: int = 0) -> None:
        self.total, self.label, self.done = total, label, done
        self._lines = os.environ.get("TQDM_DISABLE") == "1"
        # Inside a notebook tqdm.auto does not read TQDM_DISABLE itself.
        self._bar = tqdm(total=total, desc=label, initial=done, leave=False, disable=self._lines)
        self._started = self._last_line = time.monotonic()

    def update(self, count: int = 1, **numbers: float) -> None:
        """Advance by ``count``; ``numbers`` are shown beside the bar."""
        self.done += count
        if numbers:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()}, refresh=False)
        self._bar.update(count)
        if self._lines and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print(numbers)

    def _print(self, numbers: dict[str, float]) -> None:
        self._last_line = time.monotonic()
        shown = "".join(f"  {name} {value:.4g}" for name, value in numbers.items())
        seconds = self._last_line - self._started
        print(f"{self.label}: {self.done}/{self.total}{shown}  ({seconds:.0f} s)", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
