"""Progress as plain text, readable without a kernel: a line that renews itself.

Where that cannot be, or ``TQDM_DISABLE=1`` asks for no bars, a line is printed now and then.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Self

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_UPDATES = 10.0, 0.2
WIDTH = 24  # characters of the bar
MEASURED = {"step": 4, "evaluation": 1}  # how many are timed; the first step warms up
UNITS = ((180 * 60, 3600, "h"), (180, 60, "min"), (0, 1, "s"))  # from which seconds on
WORTH_SAYING = 10.0  # seconds; a rest that is shorter is not announced


class Progress:
    """``with Progress(steps, "fit") as progress: ... progress.update(psnr_db=25.1)``.

    ``done``: steps done before; ``every``: steps between two evaluations, for :meth:`timed`.
    """

    def __init__(self, total: int, label: str, *, done: int = 0, every: int = 1) -> None:
        self.total, self.label, self.done, self.every = total, label, done, every
        self._first, self._numbers = done, ""
        self._times: dict[str, list[float]] = {what: [] for what in MEASURED}
        self._write = _line()
        self._pause = SECONDS_BETWEEN_UPDATES if self._write else SECONDS_BETWEEN_LINES
        self._started = self._shown = time.monotonic()

    def update(self, count: int = 1, **numbers: float) -> None:
        """Advance by ``count``; ``numbers`` are shown beside the bar."""
        self.done += count
        self._numbers = "".join(f"  {name} {value:.4g}" for name, value in numbers.items())
        if time.monotonic() - self._shown > self._pause:
            self._show()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Around a "step" or an "evaluation"; once they are known, prints what the rest takes."""
        started, times = time.monotonic(), self._times[what]
        yield
        if len(times) == MEASURED[what]:
            return
        times.append(time.monotonic() - started)
        if len(times) < MEASURED[what] or len(self._times["step"]) < MEASURED["step"]:
            return
        done, (_, *measured) = self.done + (what == "step"), self._times["step"]
        steps, each = self.total - done, sum(measured) / len(measured)
        seconds, text = steps * each, f"{steps} steps ({each:.2g} s a step)"
        evaluations = -(-self.total // self.every) - done // self.every
        for took in self._times["evaluation"]:
            seconds += evaluations * took
            text += f" and {evaluations} evaluations ({took:.2g} s each)"
        if not self._times["evaluation"]:
            text += ", evaluations not counted"
        until = datetime.now() + timedelta(seconds=seconds)
        day = "" if until.date() == datetime.now().date() else "%a %d %b "
        if seconds >= WORTH_SAYING:
            unit, name = next(rest for least, *rest in UNITS if seconds >= least)
            say(f"about {seconds / unit:.0f} {name} for {text}, until {until:{day}%H:%M}")

    def _show(self, *, last: bool = False) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._started
        text = f"{self.label}: {self.done}/{self.total}{self._numbers}  ({seconds:.0f} s"
        if self._write is None:
            print(f"{text})", flush=True)
            return
        left = seconds / max(1, self.done - self._first) * max(0, self.total - self.done)
        bar = f"{'━' * (WIDTH * self.done // max(1, self.total)):·<{WIDTH}}"
        self._write(f"{text})" if last else f"{bar} {text}, {left:.0f} s left)", last)

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
