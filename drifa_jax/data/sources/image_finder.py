"""Files below a root by what a table calls them: a relative path, a name, an identifier."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from drifa_jax.data.problems import LeftOut
from drifa_jax.data.readers.any_file import DICOM, NIFTI, kind_by_name, split_slice
from drifa_jax.data.readers.nifti import stem
from drifa_jax.data.readers.series import holds_series
from drifa_jax.data.sources.walking import names_below

MAX_NAME = 255
"""Bytes of a file name."""
MAX_PATH = 4000
"""Bytes of a path."""


class ImageFinder:
    """Finds images below a root, by relative path or by unique name.

    Test: tests/data/sources/test_manifest.py.
    """

    def __init__(self, root: Path):
        self._root = root
        self._called: dict[str, list[str]] | None = None

    def find(self, cell: str, *, volumes: bool = False) -> str | LookupError:
        """The path (with `:NUMBER` where the cell names a slice), or what is wrong.

        Args:
          cell: of the table.
          volumes: whether whole volumes are looked for, so that a folder may be meant: the files
            of one DICOM series.
        """
        text = cell.replace("\\", "/")
        pure = PurePosixPath(text)
        sizes = [len(part.encode(errors="replace")) for part in pure.parts]
        if not pure.parts or max(sizes) > MAX_NAME or sum(sizes) > MAX_PATH or "\0" in text:
            return LookupError(f"names no image with {cell[:40]!r}")
        if pure.is_absolute() or ".." in pure.parts or text[1:2] == ":":
            return LookupError(f"points outside the root with {cell!r}")
        path, number = split_slice(str(self._root / pure))
        if path.is_dir() and not volumes:
            what = "name one file of it, or read its DICOM series as a volume (depth)"
            return LookupError(f"names the folder {cell!r}; {what}")
        if path.is_dir() and not holds_series(path):
            return LookupError(f"names the folder {cell!r}, which holds no DICOM series")
        if path.is_file() or path.is_dir():
            if not path.resolve().is_relative_to(self._root.resolve()):
                return LookupError(f"points outside the root with {cell!r} (a link)")
            return str(path) if number is None else f"{path}:{number}"
        called = self._by_name()
        # The whole cell first: identifiers hold dots, and `1.0` may be called 1.png.
        found = called.get(pure.name) or called.get(pure.stem, [])
        if len(pure.parts) > 1 or not found:
            return LookupError(f"names {cell!r}, but there is no such image below {self._root}")
        if len(found) > 1:
            return LookupError(f"names {cell!r}, which is ambiguous: {found[0]} and {found[1]}")
        return str(self._root / found[0])

    def _by_name(self) -> dict[str, list[str]]:
        """Name of a file, with and without its suffix -> relative paths."""
        if self._called is None:
            self._called = {}
            for path in map(PurePosixPath, sorted(names_below(self._root, LeftOut()))):
                kind = kind_by_name(path.name)
                if kind is None:
                    continue
                names = {path.name}
                if kind == NIFTI:
                    names.add(stem(PurePosixPath(path.name)))
                else:
                    plain = PurePosixPath(path.name.removesuffix(".gz"))
                    # What follows the last dot of a UID is no suffix.
                    if kind != DICOM or plain.suffix.lower() in (".dcm", ".ima", ".dicom"):
                        names.add(plain.stem)
                for name in names:
                    self._called.setdefault(name, []).append(str(path))
        return self._called
