"""Where decoded images and whitening matrices are kept between runs, out of the repository."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$GSDD_CACHE, else gsdd in the user's cache folder. Nothing in it is needed: all is remade."""
    if own := os.environ.get("GSDD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gsdd"
