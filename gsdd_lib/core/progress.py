"""Progress as plain text, readable without a kernel: a line that renews itself.

Where that cannot be, or ``TQDM_DISABLE=1`` asks for no bars, a line is printed now and then.
"""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_UPDATES = 10.0, 0.2
WIDTH = 24  # characters of the bar


class Progress:
    """``with Progress(steps, "fit") as progress: ... progress.update(psnr_db=25.1)``.

    ``done``: steps done before. What is shown ends in the time that the rest will take.
    """

    def __init__(self, total: int, label: str, *, done: int = 0) -> None:
        self.total, self.label, self.done = total, label, done
        self._first, self._numbers = done, ""
        self._write = _line()
        self._pause = SECONDS_BETWEEN_UPDATES if self._write else SECONDS_BETWEEN_LINES
        self._started = self._shown = time.monotonic()

    def update(self, count: int = 1, **numbers: float) -> None:
        """Advance by ``count``; ``numbers`` are shown beside the bar."""
        self.done += count
        self._numbers = "".join(f"  {name} {value:.4g}" for name, value in numbers.items())
        if time.monotonic() - self._shown > self._pause:
            self._show()

    def _show(self, *, last: bool = False) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._started
        text = f"{self.label}: {self.done}/{self.total}{self._numbers}  ({seconds:.0f} s"
        left = seconds / max(1, self.done - self._first) * max(0, self.total - self.done)
        text += ")" if last or not left else f", {timedelta(seconds=round(left))} left)"
        if self._write is None:
            print(text, flush=True)
            return
        bar = f"{'━' * (WIDTH * self.done // max(1, self.total)):·<{WIDTH}}"
        self._write(text if last else f"{bar} {text}", last)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._write:
            self._show(last=True)


def say(text: str) -> None:
    """Print a line of its own, in the place of a bar that the terminal may show."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    print(text, flush=True)


def _line() -> Callable[[str, bool], None] | None:
    if os.environ.get("TQDM_DISABLE") == "1":
        return None
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        from IPython.display import display

        handle = display({"text/plain": ""}, raw=True, display_id=True)
        return lambda text, last: handle.update({"text/plain": text}, raw=True)

    def in_terminal(text: str, last: bool) -> None:
        sys.stderr.write(f"\r{text}\033[K" + "\n" * last)
        sys.stderr.flush()

    return in_terminal if sys.stderr.isatty() else None
