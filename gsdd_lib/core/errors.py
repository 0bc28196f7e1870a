"""The base of the library's errors: one sentence that says what is wrong and what to do."""

import os
import traceback


class GsddError(Exception):
    """Base of errors raised on purpose; a notebook shows the sentence unless GSDD_TRACEBACK=1."""

    def _render_traceback_(self) -> list[str]:  # called by IPython in place of its own formatting
        if os.environ.get("GSDD_TRACEBACK") == "1":
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self}"]


class ConfigError(GsddError, ValueError):
    """A parameter has a wrong name, type or value; the message has one sentence per fault."""


class DataError(GsddError, ValueError):
    """Images cannot be read or used; the message is one sentence: what is wrong, what to do."""
