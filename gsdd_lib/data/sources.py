"""Where encoded images lie: a tree of folders, one per class, or a packed archive of such a tree.

A :class:`Listing` names every image with its split and label, always in one order (training images
first, class by class, by file name), and hands out their bytes. Labels follow the order of the
classes asked for, never a position in a folder.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gsdd_lib.data.dataset import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"})
MAX_BYTES = 2**28  # of one encoded image


@dataclass(frozen=True)
class Entry:
    """One encoded image: where it is (a path below the root), and what it shows."""

    path: str
    label: int
    train: bool


@dataclass(frozen=True)
class Listing:
    """All images wanted of one tree or archive.

    key: a hash that changes with any name, size or time of change of what is listed
    read: yields (position in ``entries``, bytes), every position once, in any order
    """

    entries: tuple[Entry, ...]
    key: str
    read: Callable[[], Iterator[tuple[int, bytes]]]


Tree = dict[str, dict[str, list[str]]]  # split folder -> class folder -> image names, sorted


def folder_tree(root: Path, splits: Sequence[str]) -> Tree:
    """The class folders of each of ``splits`` (``""``: the root itself) that is there."""
    tree: Tree = {}
    for split in splits:
        if (root / split).is_dir():
            classes = sorted(p for p in (root / split).iterdir() if _is_open_folder(p))
            tree[split] = {folder.name: _image_names(folder) for folder in classes}
    return tree


def list_folder(root: Path, tree: Tree, labels: dict[str, int], *, train: str) -> Listing:
    """The listing of ``tree`` below ``root``: classes in ``labels``, split ``train`` first."""
    entries = _entries(tree, labels, train)
    digest = hashlib.sha256()
    for entry in entries:
        status = (root / entry.path).stat()
        digest.update(f"{entry} {status.st_size} {status.st_mtime_ns}\n".encode())

    def read() -> Iterator[tuple[int, bytes]]:
        for position, entry in enumerate(entries):
            try:
                yield position, (root / entry.path).read_bytes()
            except OSError as error:
                raise DataError(f"{entry.path} cannot be read ({error.strerror})") from None

    return Listing(entries, digest.hexdigest(), read)


def archive_tree(path: Path, splits: Sequence[str]) -> Tree:
    """Likewise for a ``.tgz`` whose members are ``<anything>/split/class/image``."""
    tree: Tree = {}
    for member, _ in _members(path):
        place = _place(member)
        if place and place[0] in splits:
            split, folder, name = place
            tree.setdefault(split, {}).setdefault(folder, []).append(name)
    return {s: {f: sorted(n) for f, n in sorted(c.items())} for s, c in tree.items()}


def list_archive(path: Path, tree: Tree, labels: dict[str, int], *, train: str) -> Listing:
    """The listing of an archive's ``tree``; nothing is unpacked to the disk."""
    entries = _entries(tree, labels, train)
    positions = {entry.path: position for position, entry in enumerate(entries)}
    status = path.stat()
    listed = f"{path.name} {status.st_size} {status.st_mtime_ns} {entries}"

    def read() -> Iterator[tuple[int, bytes]]:
        for member, content in _members(path, positions):
            yield positions["/".join(_place(member))], content

    return Listing(entries, hashlib.sha256(listed.encode()).hexdigest(), read)


def _entries(tree: Tree, labels: dict[str, int], train: str) -> tuple[Entry, ...]:
    entries = []
    for split in sorted(tree, key=lambda name: name != train):
        for folder in sorted(set(tree[split]) & set(labels), key=labels.__getitem__):
            for name in tree[split][folder]:
                path = "/".join(part for part in (split, folder, name) if part)
                entries.append(Entry(path, labels[folder], split == train))
    return tuple(entries)


def _is_open_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _image_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if _is_image(p.name) and p.is_file())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def _place(member: str) -> tuple[str, str, str] | None:
    """(split, class, image) of a member's name, if it is an image in such a place."""
    parts = PurePosixPath(member).parts
    return parts[-3:] if len(parts) >= 3 and _is_image(parts[-1]) else None


def _members(path: Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, b"") of the plain files of an archive; of those ``wanted`` by place, the content."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if not member.isfile() or member.size > MAX_BYTES:
                    continue
                place = _place(member.name)
                if wanted is None:
                    yield member.name, b""
                elif place and "/".join(place) in wanted:
                    yield member.name, tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a whole, readable .tgz archive ({error})") from None
