"""``python -m gsdd_lib.data fashion_mnist``: get a data set onto this machine (``make data``)."""

import argparse
import sys
from collections.abc import Sequence

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, reader
from gsdd_lib.data.fashion_mnist import obtain_fashion_mnist

OBTAIN = {"fashion_mnist": obtain_fashion_mnist}
EMBEDDED = ("digits", "shapes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Say in one line where the data set is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gsdd_lib.data", description=__doc__)
    parser.add_argument("dataset", help="its name, e.g. fashion_mnist")
    parser.add_argument("--folder", default="", help="where its files are, or shall be put")
    parser.add_argument("--fetch", action="store_true", help="fetch it, install no package")
    options = parser.parse_args(arguments)
    try:
        read = reader(options.dataset)
        if options.dataset in EMBEDDED:
            line = "part of the library, nothing to get"
        elif options.dataset in OBTAIN:
            line = OBTAIN[options.dataset](options.folder, fetch_only=options.fetch, say=_note)
        else:  # not fetched here: read once, which checks and decodes it, or says how to get it
            read_once = read(DataConfig(dataset=options.dataset, folder=options.folder))
            line = f"found: {read_once.provenance}"
    except DataError as error:
        print(f"{options.dataset}: {error}", file=sys.stderr)
        return 1
    print(f"{options.dataset}: {line}")
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
