"""The library's errors are one sentence in a notebook, a traceback where it is asked for."""

import pytest

from gsdd_lib.core.errors import ConfigError, GsddError


def _raised() -> GsddError:
    with pytest.raises(GsddError) as caught:
        raise ConfigError("ipc must be at least 1")
    return caught.value


def test_a_notebook_shows_one_sentence(monkeypatch):
    monkeypatch.delenv("GSDD_TRACEBACK", raising=False)
    assert _raised()._render_traceback_() == ["ConfigError: ipc must be at least 1"]


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("GSDD_TRACEBACK", "1")
    assert "Traceback" in "".join(_raised()._render_traceback_())
