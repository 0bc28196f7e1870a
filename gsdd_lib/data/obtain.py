"""Getting Fashion-MNIST onto this machine: what ``make data`` does, and the only network access.

Three ways, in this order: it is there already; Debian's package is installed with ``apt-get``;
the publisher's files are fetched. Whichever it is, the content is verified before it counts.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from gsdd_lib.config import DataConfig
from gsdd_lib.data.dataset import DataError
from gsdd_lib.data.fashion_mnist import (
    DEBIAN_FOLDER,
    FILES,
    HOW_TO_GET,
    MAX_BYTES,
    find,
    locate,
    places,
    read_fashion_mnist,
    read_file,
    verified,
)
from gsdd_lib.data.fetch import fetch
from gsdd_lib.data.idx import inflate

PACKAGE = "dataset-fashion-mnist"
APT_TIMEOUT_S = 600
# Both are the publisher's own. The second has no https; the content's SHA-256 is what is trusted.
ADDRESSES = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

Say = Callable[[str], None]


def obtain_fashion_mnist(folder: str = "", *, fetch_only: bool = False, say: Say = print) -> str:
    """Find, install or fetch Fashion-MNIST; returns one line that says which.

    folder: look there and fetch to there; empty: the usual places
    fetch_only: do not look elsewhere and do not install, fetch what is missing
    say: is told what takes time, and what did not work, one line each

    Raises :class:`DataError` when nothing works.
    """
    if not fetch_only:
        try:
            return f"found in {_verified(folder)}"
        except DataError as fault:
            say(f"not usable as it is: {str(fault).removesuffix(f'; {HOW_TO_GET}')}")
        if not folder and (apt_get := apt_get_command()):
            say(f"installing Debian's package {PACKAGE} with apt-get")
            try:
                install_package(apt_get)
                return f"Debian's package {PACKAGE}, installed in {_verified(str(DEBIAN_FOLDER))}"
            except DataError as fault:
                say(str(fault))
    target = places(folder)[0].folder
    source = fetch_files(target, say=say)
    return f"fetched from {source} to {target}" if source else f"complete in {target}"


def _verified(folder: str) -> Path:
    """The folder where all the files are, after reading every byte of them."""
    read_fashion_mnist(DataConfig(dataset="fashion_mnist", folder=folder))
    return find(folder).folder


def apt_get_command() -> list[str]:
    """``apt-get`` with the rights to install, through password-less sudo if need be, or []."""
    if not shutil.which("apt-get"):
        return []
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo") and _run(["sudo", "-n", "true"]).returncode == 0:
        return ["sudo", "-n", "apt-get"]
    return []


def install_package(apt_get: list[str]) -> None:
    """Install the package, with fresh package lists if the present ones do not know it."""
    install = [*apt_get, "install", "-y", "--no-install-recommends", PACKAGE]
    result = _run(install)
    if result.returncode:
        _run([*apt_get, "update"])
        result = _run(install)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise DataError(f"apt-get could not install {PACKAGE} ({lines[-1]})")


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            timeout=APT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def fetch_files(folder: Path, *, say: Say = print) -> str:
    """Fetch to ``folder`` each file that is not there intact; returns the last address used.

    The empty string says that all were there. A plain file that fails its check is in the way of
    the compressed one that would be fetched, so that is an error for the user to resolve.
    """
    source = ""
    for stem in FILES:
        present = locate(folder, stem)
        try:
            read_file(present, stem)
            continue
        except DataError as fault:
            if present.suffix != ".gz":
                raise DataError(f"{fault}; remove it and run this again") from None
        name = f"{stem}.gz"
        say(f"fetching {name}")
        source = _fetch_file(folder / name, stem).removesuffix(name)
    return source


def _fetch_file(path: Path, stem: str) -> str:
    """Fetch one ``.gz`` file; returns the address it came from."""

    def check(content: bytes) -> None:
        verified(inflate(content, MAX_BYTES, source=path.name), stem, source=path.name)

    addresses = [base + path.name for base in ADDRESSES]
    try:
        return fetch(addresses, path, check=check, max_bytes=MAX_BYTES)
    except DataError as fault:
        by_hand = f"where the network is closed, put the four .gz files into {path.parent} by hand"
        raise DataError(f"{fault}; {by_hand}") from None
