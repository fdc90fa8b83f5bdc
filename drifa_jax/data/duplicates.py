"""Duplicates: found by bytes, by pixels and by perceptual hash, counted, removed.

An image that is in training and in test makes the test score a memory test. Public collections
hold many; `find_duplicates` lists every pair that straddles two splits, `remove_duplicates`
takes the ones out of training that validation or test also holds. `same_files` decodes nothing.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from drifa_jax.data.record import Record, Source, TabularSpec
from drifa_jax.data.records import Records, as_records
from drifa_jax.data.splits import connected, group_ids
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

HASH_SIDE = 16
DEFAULT_DISTANCE = 8
"""Differing bits, of 256, up to which two images count as near duplicates."""

BEGINNING = 2**14
"""Bytes by which files of one size are told apart first."""

KEEP_ORDER = ("test", "validation", "train")
"""A duplicate stays in the first of these splits that holds it."""


@dataclass(frozen=True)
class Duplicate:
    """Two records of different splits with the same or nearly the same image.

    Attributes:
      removed_split, removed_id: the record that training can do without.
      kept_split, kept_id: the record that stays.
      modality: of the image.
      kind: "exact" (equal pixels) or "near" (similar difference hash).
      distance: differing bits of the 256 of the hash.
      same_labels: whether all labels agree.
    """

    removed_split: str
    removed_id: str
    kept_split: str
    kept_id: str
    modality: str
    kind: str
    distance: int
    same_labels: bool


@dataclass(frozen=True)
class Fingerprints:
    """Of the images of one modality of a source, in the order of its records.

    Attributes:
      exact: SHA-256 of the pixels, "" where the record lacks the modality.
      perceptual: `[n, 4]` uint64, the difference hash.
    """

    exact: tuple[str, ...]
    perceptual: np.ndarray


def difference_hash(image: np.ndarray) -> np.ndarray:
    """256 bits `[4]` uint64: whether each of 16 x 16 places is brighter than its left neighbour.

    Of a volume any change changes all bits, so that only equal ones are near: organs of people who
    are strangers look alike in a few hundred bits.
    """
    if image.ndim == 4:
        return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image)).digest(), np.uint64)
    grey = image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)


def content_hash(record: Record) -> str:
    """SHA-256 of the images that a record holds, with their names and shapes."""
    digest = hashlib.sha256()
    for modality in sorted(record.images):
        image = np.ascontiguousarray(record.images[modality])
        digest.update(f"{modality}{image.shape}{image.dtype}".encode())
        digest.update(image)
    return digest.hexdigest()


def fingerprints(source: Source) -> dict[str, Fingerprints]:
    """Modality -> fingerprints; reads every record once."""
    names = [spec.name for spec in source.modalities if not isinstance(spec, TabularSpec)]

    def read(index: int) -> dict[str, tuple[str, np.ndarray]]:
        images = source[index].images
        return {
            name: (
                hashlib.sha256(np.ascontiguousarray(images[name])).hexdigest(),
                difference_hash(images[name]),
            )
            for name in names
            if name in images
        }

    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(read, range(len(source))))
    nothing = ("", np.zeros(4, np.uint64))
    return {
        name: Fingerprints(
            tuple(row.get(name, nothing)[0] for row in rows),
            np.stack([row.get(name, nothing)[1] for row in rows]),
        )
        for name in names
    }


def same_files(files: Sequence[Path]) -> list[list[int]]:
    """Groups of files with the same bytes, as positions in `files`; those that are alone left out.

    Only files of one size are opened, and read on only where their beginnings agree, so that ten
    thousand pictures take a second. Nothing is read twice. Files that cannot be read are like no
    other.

    Test: tests/data/test_duplicates.py.
    """
    alike: list[list[int]] = [list(range(len(files)))]
    for tell in (_size, _beginning, _rest):
        several = [k for members in alike for k in members]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(tell, [files[k] for k in several])
            told = dict(zip(several, found, strict=True))
        parted: dict[tuple[int, object], list[int]] = {}
        for number, members in enumerate(alike):
            for k in members:
                if told[k] is not None:
                    parted.setdefault((number, told[k]), []).append(k)
        alike = [members for members in parted.values() if len(members) > 1]
    return alike


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size or None
    except OSError:
        return None


def _beginning(file: Path) -> bytes | None:
    try:
        with file.open("rb") as content:
            return hashlib.blake2b(content.read(BEGINNING)).digest()
    except OSError:
        return None


def _rest(file: Path) -> bytes | None:
    """Of a file that its beginning is all of, nothing is read."""
    try:
        if file.stat().st_size <= BEGINNING:
            return b""
        with file.open("rb") as content:
            content.seek(BEGINNING)
            return hashlib.file_digest(content, hashlib.blake2b).digest()
    except OSError:
        return None


def find_duplicates(
    sources: Mapping[str, Source],
    *,
    max_distance: int = DEFAULT_DISTANCE,
    prints: Mapping[str, Mapping[str, Fingerprints]] | None = None,
) -> list[Duplicate]:
    """Every pair of records of two splits whose images are equal or nearly so.

    Args:
      sources: split -> source.
      max_distance: of the difference hash; -1 finds exact duplicates only.
      prints: split -> `fingerprints(source)`, when they are known already.

    Returns:
      Duplicates, ordered by split and record; one removed record may have several.

    Test: tests/data/test_duplicates.py.
    """
    prints = prints or {split: fingerprints(source) for split, source in sources.items()}
    order = sorted(sources, key=lambda s: KEEP_ORDER.index(s) if s in KEEP_ORDER else -1)
    found = []
    for place, kept in enumerate(order):
        for removed in order[place + 1 :]:
            for modality in prints[kept].keys() & prints[removed].keys():
                left, right = prints[removed][modality], prints[kept][modality]
                for i, j, distance in _matches(left, right, max_distance):
                    exact = left.exact[i] == right.exact[j]
                    found.append(
                        Duplicate(
                            removed,
                            sources[removed].record_id(i),
                            kept,
                            sources[kept].record_id(j),
                            modality,
                            "exact" if exact else "near",
                            distance,
                            _labels_agree(sources[removed], i, sources[kept], j),
                        )
                    )
    return sorted(found, key=lambda d: (d.removed_split, d.removed_id, d.distance, d.kept_id))


def remove_duplicates(
    sources: Mapping[str, Source], duplicates: Iterable[Duplicate]
) -> dict[str, Records]:
    """The splits without the records that another split holds; test is never changed."""
    gone: dict[str, set[str]] = {}
    for duplicate in duplicates:
        gone.setdefault(duplicate.removed_split, set()).add(duplicate.removed_id)
    cleaned = {split: as_records(source) for split, source in sources.items()}
    for split, ids in gone.items():
        records = cleaned[split]
        stay = [i for i, record_id in enumerate(records.ids) if record_id not in ids]
        note = f"{records.description}, without {len(records) - len(stay)} duplicates"
        cleaned[split] = records.take(stay, note)
    return cleaned


def groups_with_duplicates(
    source: Source, max_distance: int = DEFAULT_DISTANCE, prints: Mapping | None = None
) -> list[str]:
    """Group ids under which near duplicates share a group, so that no split tears them apart."""
    prints = prints or fingerprints(source)
    groups = group_ids(source)
    _, number = np.unique(groups, return_inverse=True)
    edges = [
        (number[i], number[j])
        for pictures in prints.values()
        for i, j, _ in _matches(pictures, pictures, max_distance)
    ]
    components = connected(int(number.max()) + 1, edges)[number].tolist()
    first: dict[int, str] = {}
    for group, component in zip(groups, components, strict=True):
        first.setdefault(component, group)
    return [first[component] for component in components]


def write_table(path: Path, duplicates: Sequence[Duplicate]) -> None:
    """A CSV of what was found, one row per pair; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Duplicate)])
        writer.writeheader()
        writer.writerows(asdict(duplicate) for duplicate in duplicates)


def read_table(path: Path) -> list[Duplicate]:
    """What `write_table` wrote; nothing where it wrote none.

    Raises:
      UserError: when the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            Duplicate(
                **{field.name: row[field.name] for field in fields(Duplicate)}
                | {"distance": int(row["distance"]), "same_labels": row["same_labels"] == "True"}
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: is no table of duplicates ({error}).") from error


def _matches(left: Fingerprints, right: Fingerprints, max_distance: int):
    """(i, j, distance) of the pairs that match, by blocks of a bounded size."""
    block = max(1, 4_000_000 // max(1, len(right.exact)))
    by_hash: dict[str, list[int]] = {}
    for j, digest in enumerate(right.exact):
        if digest:
            by_hash.setdefault(digest, []).append(j)
    if max_distance < 0:
        for i, digest in enumerate(left.exact):
            yield from ((i, j, 0) for j in by_hash.get(digest, ()))
        return
    held = np.array([bool(digest) for digest in right.exact])
    for start in range(0, len(left.exact), block):
        rows = left.perceptual[start : start + block]
        distance = np.bitwise_count(rows[:, None] ^ right.perceptual[None]).sum(-1, dtype=np.int32)
        for i, j in zip(*np.nonzero((distance <= max_distance) & held), strict=True):
            if left.exact[start + i]:
                yield start + int(i), int(j), int(distance[i, j])


def _labels_agree(first: Source, i: int, second: Source, j: int) -> bool:
    return all(first.labels(t.name)[i] == second.labels(t.name)[j] for t in first.tasks)
