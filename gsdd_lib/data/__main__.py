"""``python -m gsdd_lib.data fashion_mnist``: get a data set onto this machine (``make data``)."""

import argparse
import sys
from collections.abc import Sequence

from gsdd_lib.data import DataError, reader
from gsdd_lib.data.obtain import obtain_fashion_mnist

OBTAIN = {"fashion_mnist": obtain_fashion_mnist}


def main(arguments: Sequence[str] | None = None) -> int:
    """Say in one line where the data set is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gsdd_lib.data", description=__doc__)
    parser.add_argument("dataset", help="its name, e.g. fashion_mnist")
    parser.add_argument("--folder", default="", help="where its files are, or shall be put")
    parser.add_argument("--fetch", action="store_true", help="fetch it, install no package")
    options = parser.parse_args(arguments)
    try:
        reader(options.dataset)
        if options.dataset not in OBTAIN:
            print(f"{options.dataset}: part of the library, nothing to get")
            return 0
        line = OBTAIN[options.dataset](options.folder, fetch_only=options.fetch, say=_note)
    except DataError as error:
        print(f"{options.dataset}: {error}", file=sys.stderr)
        return 1
    print(f"{options.dataset}: {line}")
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
