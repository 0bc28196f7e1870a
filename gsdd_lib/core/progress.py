"""Progress that is visible everywhere: a bar in a notebook or a terminal, sparse lines elsewhere.

A batch run stores a bar frozen at 0 %, so where bars are off (``TQDM_DISABLE=1``, which the runner
sets) a line is printed every few seconds instead.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10.0
FIRST_STEPS = 4  # measured before the rest is estimated; the first of them warms up and is left out
WORTH_SAYING = 10.0  # seconds; a rest that is shorter is not announced


def say(line: str) -> None:
    """Print a line, above the bars where there are any."""
    with tqdm.external_write_mode():
        print(line, flush=True)


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
