"""Progress as plain text: a line that renews itself, or sparse lines where nothing can be renewed.

In a notebook the line is an ordinary output, which stays readable when the file is opened again
without a kernel; a widget would not. Where ``TQDM_DISABLE=1`` asks for no bars, as the runner does,
and where the output is no terminal, a line is printed every few seconds instead.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.2
WIDTH = 24  # characters of the bar
FIRST_STEPS = 4  # measured before the rest is estimated; the first of them warms up and is left out
WORTH_SAYING = 10.0  # seconds; a rest that is shorter is not announced


class Progress:
    """``with Progress(steps, "fit") as progress: ... progress.update(psnr_db=25.1)``.

    Args:
        total: steps in all.
        label: what is counted.
        done: steps that were done before, by a run that is gone on from.
    """

    def __init__(self, total: int, label: str, *, done: int = 0) -> None:
        self.total, self.label, self.done = total, label, done
        self._first, self._numbers = done, ""
        self._write = _notebook_line() or _terminal_line()
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
        if self._write is None:
            print(f"{text})", flush=True)
        elif last:
            self._write(f"{text})", last)
        else:
            steps, left = max(1, self.done - self._first), max(0, self.total - self.done)
            full = WIDTH * self.done // max(1, self.total)
            bar = "━" * full + "·" * (WIDTH - full)
            self._write(f"{bar} {text}, {seconds / steps * left:.0f} s left)", last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._write:
            self._show(last=True)


def say(text: str) -> None:
    """Print a line of its own, in the place of a bar that the terminal may show."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    print(text, flush=True)


class Pace:
    """Measures the first steps of a run and says what the rest of it will take.

    Args:
        total: steps of the run.
        every: steps between two evaluations; there is one after the last step too.
        done: steps that are behind it.
    """

    def __init__(self, total: int, every: int, *, done: int = 0) -> None:
        self.total, self.every, self.done = total, every, done
        self._steps: list[float] = []
        self._evaluation: float | None = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step; after the first few, one line is printed."""
        started = time.monotonic()
        yield
        self.done += 1
        if len(self._steps) < FIRST_STEPS:
            self._steps.append(time.monotonic() - started)
            if len(self._steps) == FIRST_STEPS:
                self._say()

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation; where the line was printed without its time, it is printed anew."""
        started, known = time.monotonic(), self._evaluation is not None
        yield
        self._evaluation = time.monotonic() - started
        if not known and len(self._steps) == FIRST_STEPS:
            self._say()

    def rest(self) -> tuple[float, str]:
        """Seconds that the rest will take, and the same in words."""
        steps = self.total - self.done
        evaluations = -(-self.total // self.every) - self.done // self.every
        each = sum(self._steps[1:]) / (len(self._steps) - 1)
        seconds, text = steps * each, f"for {steps} steps ({each:.2g} s a step)"
        if self._evaluation is None:
            text += ", evaluations not counted"
        else:
            seconds += evaluations * self._evaluation
            text += f" and {evaluations} evaluations ({self._evaluation:.2g} s each)"
        until = datetime.now() + timedelta(seconds=seconds)
        day = "" if until.date() == datetime.now().date() else "%a %d %b "
        return seconds, f"about {_duration(seconds)} {text}, until {until:{day}%H:%M}"

    def _say(self) -> None:
        seconds, text = self.rest()
        if seconds >= WORTH_SAYING:
            say(text)


def _duration(seconds: float) -> str:
    """In the unit that suits: "40 s", "4 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _notebook_line() -> Callable[[str, bool], None] | None:
    """Show a text in one output of the running cell, in place of the one before."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if os.environ.get("TQDM_DISABLE") == "1" or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    output = None

    def write(text: str, last: bool) -> None:
        nonlocal output
        if output is None:
            output = display({"text/plain": text}, raw=True, display_id=True)
        else:
            output.update({"text/plain": text}, raw=True)

    return write


def _terminal_line() -> Callable[[str, bool], None] | None:
    """Write a text over the last line of the terminal."""
    if os.environ.get("TQDM_DISABLE") == "1" or not sys.stderr.isatty():
        return None

    def write(text: str, last: bool) -> None:
        sys.stderr.write(f"\r{text}\033[K" + "\n" * last)
        sys.stderr.flush()

    return write
