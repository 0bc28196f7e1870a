"""``python -m gsdd_lib.data NAME``: say where a data set is; ``--fetch`` gets what is missing."""

import argparse
import sys
from collections.abc import Sequence

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.data import DataError, read_data
from gsdd_lib.data.fashion_mnist import fetch_fashion_mnist


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a data set, which checks it; the exit status is 1 where it is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m gsdd_lib.data", description=__doc__)
    parser.add_argument("dataset", help="its name, such as fashion_mnist")
    parser.add_argument("--folder", default="", help="where its files are, or where they should go")
    parser.add_argument("--fetch", action="store_true", help="fetch it where it is missing")
    options = parser.parse_args(arguments)
    try:
        config = DataConfig(dataset=options.dataset, folder=options.folder)
        try:
            raw = read_data(config)
        except DataError:
            if not options.fetch or config.dataset != "fashion_mnist":
                raise
            fetch_fashion_mnist(options.folder)
            raw = read_data(config)
    except GsddError as error:
        print(f"{options.dataset}: {error}", file=sys.stderr)
        return 1
    print(f"{options.dataset}: {raw.provenance}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
