"""Checks of a data set before anything is trained on it: one report of what is and is not right.

Every record is read once. A check ends as "ok", "warning" (training is possible, the result may
mislead) or "error" (training would fail or its score would lie).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from drifa_jax.data.duplicates import Fingerprints, difference_hash, find_duplicates
from drifa_jax.data.label_checks import OK, label_findings
from drifa_jax.data.record import MISSING_LABEL, Source, TabularSpec
from drifa_jax.data.records import notes_of
from drifa_jax.data.splits import class_counts, leaking_groups
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Check:
    """One finding: what was checked, how it ended, and up to a few examples."""

    name: str
    status: str
    finding: str


@dataclass
class SplitFacts:
    """What one pass over a split found.

    Attributes:
      problems: record id -> why it cannot be read.
      present: modality -> records that hold it.
      constant: records, as "id modality", whose image has a single value.
      levels: modality -> (mean, standard deviation, lowest, highest) over all values.
      prints: modality -> fingerprints, in the order of the records.
    """

    problems: dict[str, str] = field(default_factory=dict)
    present: Counter = field(default_factory=Counter)
    constant: list[str] = field(default_factory=list)
    levels: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    prints: dict[str, Fingerprints] = field(default_factory=dict)


def inspect(source: Source, progress: Callable[[int], None] = lambda count: None) -> SplitFacts:
    """Read every record of a split once."""
    facts = SplitFacts()
    names = [spec.name for spec in source.modalities]
    pictures = [spec.name for spec in source.modalities if not isinstance(spec, TabularSpec)]
    sums = {name: np.zeros(3) for name in names}
    lowest = dict.fromkeys(names, np.inf)
    highest = dict.fromkeys(names, -np.inf)
    rows: dict[str, list] = {name: [] for name in pictures}

    def read(index: int):
        try:
            return source[index]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(source), 64):
            indices = range(start, min(start + 64, len(source)))
            for index, record in zip(indices, pool.map(read, indices), strict=True):
                images = {} if isinstance(record, str) else record.images
                if isinstance(record, str):
                    facts.problems[source.record_id(index)] = record
                for name, image in images.items():
                    facts.present[name] += 1
                    low, high = float(image.min()), float(image.max())
                    if low == high and name in pictures:
                        facts.constant.append(f"{source.record_id(index)} {name}")
                    values = image.astype(np.float64)
                    sums[name] += (values.size, values.sum(), np.square(values).sum())
                    lowest[name], highest[name] = min(low, lowest[name]), max(high, highest[name])
                for name in pictures:
                    if name in images:
                        pixels = np.ascontiguousarray(images[name])
                        digest = hashlib.sha256(pixels).hexdigest()
                        rows[name].append((digest, difference_hash(pixels)))
                    else:
                        rows[name].append(("", np.zeros(4, np.uint64)))
            progress(len(indices))
    for name in names:
        count, total, squares = sums[name]
        if count:
            mean = total / count
            deviation = float(np.sqrt(max(squares / count - mean**2, 0.0)))
            facts.levels[name] = (float(mean), deviation, lowest[name], highest[name])
    facts.prints = {
        name: Fingerprints(tuple(d for d, _ in row), np.stack([h for _, h in row]))
        for name, row in rows.items()
        if row
    }
    return facts


def verify(
    sources: Mapping[str, Source],
    facts: Mapping[str, SplitFacts],
    *,
    require_all_modalities: bool = False,
) -> list[Check]:
    """All checks of a set of splits.

    Args:
      sources: split -> source.
      facts: split -> `inspect(source)`.
      require_all_modalities: whether a record without a modality is an error.

    Test: tests/data/test_verify.py.
    """
    checks = [_counts(sources), *_notes(sources), _decodability(facts), _sizes(sources)]
    checks.append(_constant(facts))
    checks += [_labels(sources, task.name) for task in next(iter(sources.values())).tasks]
    checks += [_disjoint(sources), _groups(sources)]
    checks.append(_alignment(sources, facts, require_all_modalities))
    checks.append(_duplicates(sources, facts))
    return checks


def _counts(sources) -> Check:
    counts = {split: len(source) for split, source in sources.items()}
    empty = [split for split, count in counts.items() if count == 0]
    missing = [split for split in ("train", "test") if split not in counts]
    text = ", ".join(f"{split} {count}" for split, count in counts.items())
    if empty or missing:
        return Check("counts", "error", f"{text}; empty or missing splits: {empty + missing}")
    return Check("counts", "ok", text)


def _decodability(facts) -> Check:
    broken = [
        f"{record_id}: {why}" for f in facts.values() for record_id, why in f.problems.items()
    ]
    if broken:
        return Check("decodability", "error", f"{len(broken)} unreadable; {_some(broken)}")
    return Check("decodability", "ok", "every record was read")


def _sizes(sources) -> Check:
    kinds = {
        s: tuple((m.name, m.shape) for m in source.modalities) for s, source in sources.items()
    }
    if len(set(kinds.values())) > 1:
        return Check("sizes", "error", f"splits differ in modalities or sizes: {kinds}")
    shapes = ", ".join(f"{name} {shape}" for name, shape in next(iter(kinds.values())))
    return Check("sizes", "ok", shapes)


def _constant(facts) -> Check:
    blank = [record for f in facts.values() for record in f.constant]
    if blank:
        return Check("blank images", "warning", f"{len(blank)} of one grey level; {_some(blank)}")
    return Check("blank images", "ok", "none")


def _labels(sources, task: str) -> Check:
    name = f"labels of {task}"
    spec = next(t for t in next(iter(sources.values())).tasks if t.name == task)
    counts = {split: class_counts(source, task) for split, source in sources.items()}
    text = "; ".join(
        f"{split} " + ", ".join(f"{c} {n}" for c, n in zip(spec.classes, values, strict=True))
        for split, values in counts.items()
    )
    unlabelled = sum(int((s.labels(task) == MISSING_LABEL).sum()) for s in sources.values())
    text += f"; {unlabelled} without label" if unlabelled else ""
    found = [f for f in label_findings(sources) if task in f.task.split(", ")]
    status = found[0].status if found else OK
    return Check(name, status, "; ".join([*(finding.text for finding in found), text]))


def _notes(sources) -> list[Check]:
    return [Check("scan", "warning", note) for note in notes_of(sources.values())]


def _disjoint(sources) -> Check:
    seen: dict[str, str] = {}
    shared = []
    for split, source in sources.items():
        for index in range(len(source)):
            record_id = source.record_id(index)
            if record_id in seen:
                shared.append(f"{record_id} in {seen[record_id]} and {split}")
            seen[record_id] = split
    if shared:
        return Check("record ids", "error", f"{len(shared)} repeated; {_some(shared)}")
    return Check("record ids", "ok", "unique over all splits")


def _groups(sources) -> Check:
    spans = leaking_groups(sources)
    if spans:
        some = [f"{group} in {' and '.join(splits)}" for group, splits in spans.items()]
        return Check("groups", "error", f"{len(spans)} span splits; {_some(some)}")
    single = all(
        source.group_id(i) == source.record_id(i)
        for source in sources.values()
        for i in range(len(source))
    )
    if single:
        return Check(
            "groups",
            "warning",
            "every record is its own group; if patients have several, they leak",
        )
    return Check("groups", "ok", "every group lies in one split")


def _alignment(sources, facts, required: bool) -> Check:
    names = [m.name for m in next(iter(sources.values())).modalities]
    total = sum(len(source) for source in sources.values())
    held = {name: sum(f.present[name] for f in facts.values()) for name in names}
    text = ", ".join(f"{name} {count} of {total}" for name, count in held.items())
    never = [name for name, count in held.items() if count == 0]
    if never:
        return Check("modalities", "error", f"no record holds {never}; {text}")
    if required and any(count < total for count in held.values()):
        return Check("modalities", "error", f"records lack modalities; {text}")
    return Check("modalities", "ok", text)


def _duplicates(sources, facts) -> Check:
    prints = {split: f.prints for split, f in facts.items()}
    found = find_duplicates(sources, prints=prints)
    if not found:
        return Check("duplicates", "ok", "none across splits")
    exact = {(d.kept_split, d.kept_id) for d in found if d.kind == "exact"}
    every = {(d.kept_split, d.kept_id) for d in found}
    examples = [f"{d.removed_split} {d.removed_id} = {d.kept_split} {d.kept_id}" for d in found]
    return Check(
        "duplicates",
        "error",
        f"{len(exact)} held-out records are pixel-identical, {len(every)} near identical, to "
        f"records of a split that they must not share; {_some(examples)}",
    )


def _some(examples: list[str], number: int = 3) -> str:
    rest = f" and {len(examples) - number} more" if len(examples) > number else ""
    return "e.g. " + "; ".join(examples[:number]) + rest
