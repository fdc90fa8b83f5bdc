"""Records on their way into a network, a block at a time, and its answers on their way out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from drifa_jax.data.record import MISSING_LABEL, Source, stack_records
from drifa_jax.errors import UserError
from drifa_jax.predict.described import Description
from drifa_jax.predict.reading import Item, read_item
from drifa_jax.predictions.table import Predictions

RECORDS_A_BLOCK = 256
"""Records whose images and samples are held at once."""

LARGEST_BATCH = 16
"""Records that are answered together: fewer than that, and dispatching them costs more."""

Images = Mapping[str, Sequence[Item] | np.ndarray]
Arrays = dict[str, np.ndarray]
Predict = Callable[[Arrays, Arrays, Sequence[str]], Predictions]


def stream(
    predict: Predict,
    description: Description,
    images: Images,
    record_ids: Sequence[str] | None = None,
) -> Iterator[Predictions]:
    """The answers to records, `RECORDS_A_BLOCK` at a time.

    Args:
      predict: pixels, presence and names to answers.
      description: of what it reads.
      images: modality -> one item a record.
      record_ids: names; the images' fingerprints when None.

    Raises:
      UserError: naming the modality or the image that does not fit.
    """
    count = count_records(description, images)
    if record_ids is not None and len(record_ids) != count:
        raise UserError(f"There are {count} records but {len(record_ids)} names.")
    for start in range(0, count, RECORDS_A_BLOCK):
        rows = slice(start, min(start + RECORDS_A_BLOCK, count))
        pixels, present = read_images(description, {m: x[rows] for m, x in images.items()}, start)
        names = fingerprints(pixels, present) if record_ids is None else record_ids[rows]
        yield predict(pixels, present, names)


def count_records(description: Description, images: Images) -> int:
    """How many records there are; every modality must have as many."""
    names = [spec.name for spec in description.modalities]
    if unknown := [name for name in images if name not in names]:
        raise UserError(f"The modalities {unknown} are unknown; this network reads {names}.")
    counts = {name: len(items) for name, items in images.items()}
    if not counts or len(set(counts.values())) != 1 or 0 in counts.values():
        raise UserError(
            f"Every modality needs one image (or None) a record, of at least one record; "
            f"got {counts or 'no images'}."
        )
    return next(iter(counts.values()))


def read_images(description: Description, images: Images, start: int = 0) -> tuple[Arrays, Arrays]:
    """Pixels `[b, h, w, c]` uint8 (of tables, features) and presence `[b]` bool by modality.

    Args:
      description: of what the network reads.
      images: modality -> one item a record.
      start: number of the first record, for messages.
    """
    count = count_records(description, images)
    pixels, present = {}, {}
    for spec in description.modalities:
        name = spec.name
        given = images.get(name, [None] * count)
        reading = description.readings[name]
        present[name] = np.array([image is not None for image in given])
        pixels[name] = np.stack(
            [
                read_item(item, spec, reading, f"{name} {start + row}")
                for row, item in enumerate(given)
            ]
        )
    nothing = ~np.any(list(present.values()), axis=0)
    if nothing.any():
        raise UserError(f"Record {start + int(np.argmax(nothing))} has no image in any modality.")
    lacking = [name for name, held in present.items() if not held.all()]
    if lacking and not description.may_lack_modalities:
        raise UserError(
            f"Some records lack {' and '.join(lacking)}, but this network was trained on "
            "records that hold every modality. Give all images, or train with "
            "--config.data.pairing=by_task."
        )
    return pixels, present


def read_blocks(
    description: Description, source: Source, *, start: int = 0, size: int = RECORDS_A_BLOCK
) -> Iterator[tuple[Arrays, Arrays, Arrays, list[str]]]:
    """Pixels and presence by modality, labels by task and record ids, `size` records at a time.

    Raises:
      UserError: where the source is empty.
    """
    if not len(source):
        raise UserError(f"{source.description} holds no records.")
    for first in range(start, len(source), size):
        records = [source[row] for row in range(first, min(first + size, len(source)))]
        pixels, present = stack_records(records, description.modalities)
        labels = {
            task: np.array([r.labels.get(task, MISSING_LABEL) for r in records], np.int32)
            for task in description.tasks
        }
        yield pixels, present, labels, [record.record_id for record in records]


def fingerprints(pixels: Arrays, present: Arrays) -> list[str]:
    """A name for each record made of its pixels: the same picture has the same name anywhere."""
    names = []
    for row in range(len(next(iter(present.values())))):
        digest = hashlib.blake2b(digest_size=6)
        for name in sorted(pixels):
            if present[name][row]:
                digest.update(name.encode() + np.ascontiguousarray(pixels[name][row]).tobytes())
        names.append(f"image-{digest.hexdigest()}")
    return names


def batches(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each batch, and the same with the last repeated to fill the one compiled shape."""
    size = min(LARGEST_BATCH, 1 << (count - 1).bit_length())
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        yield rows, np.pad(rows, (0, size - len(rows)), mode="edge")
