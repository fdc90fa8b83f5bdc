"""Splits that keep a patient whole and the classes balanced, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drifa_jax.data.problems import Problems, some_of
from drifa_jax.data.record import MISSING_LABEL, SPLITS, Source
from drifa_jax.data.records import SPLIT, Records, as_records
from drifa_jax.errors import UserError


def group_ids(source: Source) -> list[str]:
    """The group of every record."""
    if isinstance(source, Records):
        return source.groups
    return [source.group_id(i) for i in range(len(source))]


def connected(num: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """The component `[num]` of each of `num` things, of which edges hold two together."""
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    from scipy import sparse

    graph = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(num, num))
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def strata(source: Source) -> np.ndarray:
    """One integer per record that names its combination of labels over all tasks, `[n]`."""
    columns = [source.labels(task.name) for task in source.tasks]
    if not columns:
        return np.zeros(len(source), np.int64)
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def split_groups(
    strata: np.ndarray, groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Indices of each part: groups stay whole, strata keep their proportions.

    Groups are shuffled, taken from the largest to the smallest, and each goes to the part that
    lacks its strata the most, relative to what the part should hold.

    Args:
      strata: `[n]` integers, the combination of labels of every record.
      groups: the group of every record.
      fractions: part -> share of the records; positive, adding up to 1.
      seed: draws the order of groups.

    Returns:
      part -> sorted indices, disjoint, together all records.

    Raises:
      ValueError: if the fractions are no distribution or there are fewer groups than parts.

    Test: tests/data/test_splits.py.
    """
    shares = np.array(list(fractions.values()), float)
    if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions {dict(fractions)} must be positive and add up to 1")
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    num_groups = int(group_of.max(initial=-1)) + 1
    if num_groups < len(shares):
        raise ValueError(f"{num_groups} groups cannot fill the {len(shares)} parts {[*fractions]}")
    # The last column counts all records, so that rounding in each stratum does not add up.
    counts = np.zeros((num_groups, int(strata.max()) + 2))
    np.add.at(counts, (group_of, strata), 1)
    counts[:, -1] = counts.sum(1)
    wanted = shares[:, None] * counts.sum(0)
    held = np.zeros_like(wanted)
    part_of = np.zeros(num_groups, np.int64)
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(num_groups)
    for group in shuffled[np.argsort(-counts[shuffled, -1], kind="stable")]:
        present = counts[group] > 0
        # Half of the group itself makes the rule round to nearest instead of up.
        missing = wanted[:, present] - held[:, present] - counts[group, present] / 2
        lack = (missing / wanted[:, present]) @ counts[group, present]
        part = int(np.argmax(lack))
        held[part] += counts[group]
        part_of[group] = part
    part_of = _without_empty_parts(part_of, counts, len(shares))
    return {name: np.flatnonzero(part_of[group_of] == k) for k, name in enumerate(fractions)}


def _without_empty_parts(part_of: np.ndarray, counts: np.ndarray, num_parts: int) -> np.ndarray:
    """Give every empty part the smallest group of the part with the most groups."""
    sizes = counts[:, -1]
    for part in range(num_parts):
        if not (part_of == part).any():
            fullest = np.bincount(part_of, minlength=num_parts).argmax()
            candidates = np.flatnonzero(part_of == fullest)
            part_of[candidates[sizes[candidates].argmin()]] = part
    return part_of


def split_source(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, Records]:
    """Records cut into parts, grouped and stratified by all of their tasks."""
    records = as_records(source)
    parts = split_groups(strata(records), records.groups, fractions, seed)
    return {
        name: records.take(indices, f"{records.description}, {name} part, split seed {seed}")
        for name, indices in parts.items()
    }


def shares(validation: float, test: float) -> dict[str, float]:
    """Split -> its share of data that bring no splits."""
    held_out = {"validation": validation, "test": test}
    held_out = {split: share for split, share in held_out.items() if share > 0}
    return {"train": 1 - sum(held_out.values()), **held_out}


def split_records(
    records: Records, fractions: Mapping[str, float], seed: int
) -> dict[str, Records]:
    """The splits that records bring, and, where they bring none, drawn ones.

    A record without a split goes where its group is, or is drawn. Where the data bring no
    validation split, it is drawn from training.

    Raises:
      UserError: where there are too few groups, or the splits that the data bring tear one apart.
    """
    groups, kinds = np.asarray(records.groups), strata(records)
    brought = [split or "" for split in records.column(SPLIT)]
    home = {group: split for group, split in zip(groups, brought, strict=True) if split}
    split = np.array(
        [own or home.get(g, "") for g, own in zip(groups, brought, strict=True)], "U10"
    )

    def draw(among: str, parts: Mapping[str, float]) -> None:
        rows = np.flatnonzero(split == among)
        names = np.unique(groups[rows])
        if len(names) >= len(parts):
            for part, indices in split_groups(kinds[rows], groups[rows], parts, seed).items():
                split[rows[indices]] = part
        elif home:
            split[rows] = "train"
        else:
            few = ", ".join(map(repr, names.tolist()))
            raise UserError(
                f"{records.description}: {len(names)} groups ({few}) cannot fill the {len(parts)} "
                f"splits {', '.join(parts)}, since a group stays whole. Is a group one patient? "
                "Name another group pattern or column, or give data that bring splits."
            )

    if "" in split:
        draw("", fractions)
    share = fractions.get("validation", 0)
    if home and share and "train" in split and "validation" not in split:
        draw("train", {"train": 1 - share, "validation": share})
    splits = {
        name: records.take(rows, f"{records.description}, {name} split")
        for name in SPLITS
        if len(rows := np.flatnonzero(split == name))
    }
    if home:
        _check_brought(splits, records)
    refuse_crossing(splits)
    return splits


def _check_brought(splits: Mapping[str, Records], records: Records) -> None:
    """An error where splits that the data bring leave training or test without what they need."""
    problems = Problems(records.description)
    for split in ("train", "test"):
        if split not in splits:
            problems.add(split, "is an empty split")
    for task in records.tasks:
        trained = set(splits["train"].labels(task.name)) if "train" in splits else set()
        for split, part in splits.items():
            for index in sorted(set(part.labels(task.name)) - trained - {MISSING_LABEL}):
                what = f"is a class of {task.name} in {split} that training does not hold"
                problems.add(task.classes[index], what)
    problems.raise_any("Correct the splits, or leave them out and let splits be drawn.")


def class_counts(source: Source, task: str) -> np.ndarray:
    """Number of records of each class, `[num_classes]`; records without a label are left out."""
    num_classes = next(spec.num_classes for spec in source.tasks if spec.name == task)
    labels = source.labels(task)
    return np.bincount(labels[labels != MISSING_LABEL], minlength=num_classes)


def k_folds(
    source: Source, num_folds: int, seed: int, *, num_repeats: int = 1
) -> Iterator[tuple[Records, Records]]:
    """(train, test) of every fold, grouped and stratified; repeats draw other folds.

    Raises:
      ValueError: if there are fewer than two folds, or fewer groups than folds.
    """
    if num_folds < 2 or num_repeats < 1:
        raise ValueError(f"num_folds {num_folds} must be >= 2 and num_repeats {num_repeats} >= 1")
    records = as_records(source)
    groups, labels = records.groups, strata(records)
    equal = {str(fold): 1 / num_folds for fold in range(num_folds)}
    for repeat in range(num_repeats):
        # SeedSequence keeps repeat r of seed s apart from repeat 0 of seed s + r.
        own = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
        folds = split_groups(labels, groups, equal, own)
        for fold, test in folds.items():
            name = f"{source.description}, fold {fold} of {num_folds}, repeat {repeat}, seed {seed}"
            train = np.setdiff1d(np.arange(len(records)), test)
            yield records.take(train, f"{name}, train"), records.take(test, f"{name}, test")


def leaking_groups(sources: Mapping[str, Source]) -> dict[str, tuple[str, ...]]:
    """Group -> the splits that hold it, for every group in more than one split."""
    return _shared({split: group_ids(source) for split, source in sources.items()})


def refuse_crossing(splits: Mapping[str, Records]) -> None:
    """An error where a record id or a group lies in more than one split.

    Raises:
      UserError: naming up to five of them, where they lie, and the cure.
    """
    for what, names in (
        ("record ids", {split: records.ids for split, records in splits.items()}),
        ("groups", {split: records.groups for split, records in splits.items()}),
    ):
        if shared := _shared(names):
            named = [f"{name!r} in {' and '.join(where)}" for name, where in shared.items()]
            raise UserError(
                f"{len(shared)} {what} lie in more than one split, so that a network would be "
                f"tested on whom it was trained on: {some_of(named)}. Correct the splits that the "
                "data bring, or let whole groups be drawn anew: data.duplicates=group."
            )


def _shared(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    seen: dict[str, list[str]] = {}
    for split, own in names.items():
        for name in dict.fromkeys(own):
            seen.setdefault(name, []).append(split)
    return {name: tuple(where) for name, where in seen.items() if len(where) > 1}
