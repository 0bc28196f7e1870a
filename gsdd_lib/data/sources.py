"""Where data sets are found, which images a folder or an archive holds, and their bytes.

A :class:`Listing` names every image with its split and label, always in one order: training images
first, class by class, by file name. A label is the position of the class among those asked for,
never its position in a folder.
"""

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import project_root

FORMATS = {  # by suffix: what counts as an image, and the formats that are opened
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF"},
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM"},
}
MAX_BYTES = 2**26  # of one encoded image
EXPANSION, SLACK = 8, 2**26  # an archive may hold 8 times its size, and 64 MiB

Tree = dict[str, dict[str, list[str]]]  # split folder -> class folder -> image names, sorted


@dataclass(frozen=True)
class Entry:
    """One encoded image: its path below the root, and what it shows."""

    path: str
    label: int
    train: bool


@dataclass(frozen=True)
class Listing:
    """The selected images of a folder or an archive.

    Attributes:
        entries: the images, in order.
        key: hash of their content, wherever they are stored.
        read: yields (position in ``entries``, function that returns the bytes) in any order.
    """

    entries: tuple[Entry, ...]
    key: str
    read: Callable[[], Iterator[tuple[int, Callable[[], bytes]]]]


def roots(folder: str = "") -> list[Path]:
    """Where to look for a data set: ``folder`` alone if given, else $GSDD_DATA and ``data``.

    A relative path is counted from the project root.
    """
    given = [folder] if folder else [os.environ.get("GSDD_DATA", ""), "data"]
    try:
        return [project_root() / Path(place).expanduser() for place in given if place]
    except RuntimeError as error:  # "~name" where there is no such user
        raise DataError(f"{given[0]} is not a folder ({error}); name another") from None


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises :class:`DataError` where it cannot be read or is larger."""
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > max_bytes:
                raise DataError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def folder_tree(root: Path, splits: Sequence[str]) -> Tree:
    """The class folders of each of ``splits`` (``""``: the root itself) that exists."""
    tree: Tree = {}
    for split in splits:
        if (root / split).is_dir():
            visible = sorted(p for p in (root / split).iterdir() if not p.name.startswith("."))
            tree[split] = {
                folder.name: sorted(p.name for p in folder.iterdir() if _is_image(p.name))
                for folder in visible
                if folder.is_dir()
            }
    return tree


def list_folder(root: Path, tree: Tree, labels: dict[str, int], *, train: str) -> Listing:
    """List the images of the classes in ``labels``, those of the split ``train`` first."""
    entries = _entries(tree, labels, train)
    paths = [root / entry.path for entry in entries]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda path: sha256(read_bytes(path, MAX_BYTES)).digest(), paths))

    def read() -> Iterator[tuple[int, Callable[[], bytes]]]:
        for position, (path, digest) in enumerate(zip(paths, digests, strict=True)):
            yield position, partial(_read_unchanged, path, digest)

    return Listing(entries, sha256(b"".join(digests)).hexdigest(), read)


def archive_tree(path: Path, splits: Sequence[str]) -> Tree:
    """The tree in a ``.tgz`` whose members are ``<anything>/split/class/image``."""
    tree: dict[str, dict[str, set[str]]] = {}
    for (split, folder, name), _ in _members(path):
        if split in splits:
            tree.setdefault(split, {}).setdefault(folder, set()).add(name)
    return {s: {f: sorted(n) for f, n in sorted(c.items())} for s, c in tree.items()}


def list_archive(
    path: Path, tree: Tree, labels: dict[str, int], *, train: str, digest: str
) -> Listing:
    """Likewise for an archive, which is read in place; ``digest`` is its hash."""
    entries = _entries(tree, labels, train)
    listed = f"{digest} {[entry.path for entry in entries]}"

    def read() -> Iterator[tuple[int, Callable[[], bytes]]]:
        positions = {entry.path: position for position, entry in enumerate(entries)}
        for place, read_member in _members(path):
            if (position := positions.pop("/".join(place), None)) is not None:
                content = read_member()
                yield position, lambda content=content: content

    return Listing(entries, sha256(os.fsencode(listed)).hexdigest(), read)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hash of the content of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return file_digest(file, algorithm).hexdigest()


def _read_unchanged(path: Path, digest: bytes) -> bytes:
    content = read_bytes(path, MAX_BYTES)
    if sha256(content).digest() != digest:
        raise DataError(f"{path} was changed while the data set was read; load it again")
    return content


def _entries(tree: Tree, labels: dict[str, int], train: str) -> tuple[Entry, ...]:
    entries = []
    for split in sorted(tree, key=lambda name: name != train):
        for folder in sorted(set(tree[split]) & set(labels), key=labels.__getitem__):
            for name in tree[split][folder]:
                path = "/".join(part for part in (split, folder, name) if part)
                entries.append(Entry(path, labels[folder], split == train))
    return tuple(entries)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in FORMATS


class _Bounded:
    """The decompressed stream of an archive, with an error where it becomes too long."""

    def __init__(self, path: Path, stream: gzip.GzipFile) -> None:
        self._path, self._stream = path, stream
        self._left = EXPANSION * path.stat().st_size + SLACK

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(
                f"{self._path} holds more than {EXPANSION} times its size, which photographs never"
                " do; unpack it yourself and name the folder"
            )
        return content


def _members(path: Path) -> Iterator[tuple[tuple[str, str, str], Callable[[], bytes]]]:
    """((split, class, image), function that returns the bytes) of the images in an archive."""
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(gzip.open(path))
            tar = stack.enter_context(tarfile.open(fileobj=_Bounded(path, stream), mode="r|"))
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if member.isfile() and len(parts) >= 3 and _is_image(parts[-1]):
                    if member.size > MAX_BYTES:
                        limit = f"{member.size:,} bytes; at most {MAX_BYTES:,} are read"
                        raise DataError(f"{member.name} in {path} has {limit}")
                    yield parts[-3:], lambda member=member: tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a whole, readable .tgz archive ({error})") from None
