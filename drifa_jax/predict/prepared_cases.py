"""Sets that `drifa data prepare` stored, as records to predict: `FOLDER:SPLIT`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from drifa_jax.data.prepare import PLAN_FILE
from drifa_jax.data.record import TabularSpec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.prepared import DESCRIPTION_FILE, open_prepared
from drifa_jax.errors import UserError
from drifa_jax.predict.reading import Item, Reading, Stored


def split_prepared(text: str) -> tuple[Path, str | None] | None:
    """`prepared/mri:test` as folder and split; None where it names no prepared set."""
    if _is_prepared(Path(text)):
        return Path(text), None
    folder, colon, split = text.rpartition(":")
    if colon and _is_prepared(Path(folder)):
        return Path(folder), split
    return None


def _is_prepared(folder: Path) -> bool:
    """Whether a set was prepared there, or its preparation began."""
    return any((folder / name).is_file() for name in (DESCRIPTION_FILE, PLAN_FILE))


def find_prepared(
    arguments: Sequence[str], modalities: Mapping[str, Reading]
) -> dict[str, dict[str, Item]] | None:
    """Modality -> record id -> pixels, of prepared sets; None where no argument names one.

    Raises:
      UserError: where the split is not named, or a set does not fit the network.
    """
    named = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_named = bool(equals) and name in modalities
        named.append((name if is_named else None, split_prepared(value if is_named else argument)))
    if not any(place for _, place in named):
        return None
    if not all(place for _, place in named):
        raise UserError("Some images are a prepared set and some are not; give one or the other.")
    found: dict[str, dict[str, Item]] = {}
    for name, (folder, split) in named:
        source = _open(folder, split)
        held = [spec.name for spec in source.modalities]
        if name is not None and name not in held:
            raise UserError(f"{folder} was prepared of {held}, not of {name!r}.")
        taken = held if name is None else [name]
        if unknown := sorted(set(taken) - set(modalities)):
            raise UserError(
                f"{folder} was prepared of {unknown}, which this network does not read; it reads "
                f"{list(modalities)}."
            )
        for modality in taken:
            if modality in found:
                raise UserError(f"{modality} is given twice; name one split of one set.")
            found[modality] = _items(source, modality, folder)
    return found


def _open(folder: Path, split: str | None) -> Records:
    splits = open_prepared(folder)
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        asked = "say which to predict" if split is None else f"not {split!r}; choose one of them"
        raise UserError(
            f"{folder} holds the splits {', '.join(splits)}; {asked}, as {folder}:"
            f"{'test' if 'test' in splits else next(iter(splits))}."
        )
    return splits[split]


def _items(source: Records, name: str, folder: Path) -> dict[str, Item]:
    (spec,) = (spec for spec in source.modalities if spec.name == name)
    if isinstance(spec, TabularSpec):
        raise UserError(
            f"{folder}: {name} holds no images but encoded rows, which other training rows may "
            f"have encoded otherwise; give the table itself, as {name}=TABLE.csv."
        )
    found: dict[str, Item] = {}
    for row in range(len(source)):
        record = source[row]
        if name in record.images:
            found[record.record_id] = Stored(record.images[name], f"{folder}: {record.record_id}")
    return found
