"""`drifa data`: prepares, verifies, counts and shows the data that a network is trained on."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from drifa_jax.console import printable, progress, say
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

TAKES_OVERRIDES = True
STATUS_SIGNS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
SYNTHETIC_NOTE = "SYNTHETIC DATA: drawn by a program; nothing here is about patients."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (summary, extend, _) in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        _add_source(action)
        extend(action)


def run(options: argparse.Namespace) -> int:
    """Runs one action; exit code 1 when a check or a record failed."""
    return ACTIONS[options.action][2](options)


def _build(options: argparse.Namespace) -> int:
    from drifa_jax.data.builders.building import build

    path = build(options.builder, options.manual_dir, options.output)
    say(f"Built {options.builder} in {path}.")
    return 0


FLAGS = {
    "root": "folder or file with the data of one modality",
    "format": "folders, manifest, npz, npy, prepared, dicom, nifti or tfds",
    "task": "name of the task",
    "classes": "class names, separated by commas",
    "depth": "npz, npy, dicom, nifti, manifest: slices of a volume; 0 reads pictures",
    "channels": "of the images: 1 (grey) or 3 (colour)",
    "fit": "how another aspect ratio is fitted: stretch, pad or crop",
    "group_pattern": "regular expression for the patient",
    "include": "regular expression that paths must contain",
    "table": "manifest: the CSV, Excel or Parquet file",
    "rows": "manifest: COLUMN=VALUE, the rows that are read",
    "id_column": "manifest: name of a column",
    "image_column": "manifest: name of a column",
    "label_column": "manifest: name of a column, or of one-hot columns with commas",
    "label_table": "manifest: another table with further columns of the same ids",
    "group_column": "manifest: name of a column",
    "split_column": "manifest: name of a column",
    "window": "dicom: a window preset, or three with commas",
}
"""Field of `ModalityConfig` -> what its flag says."""

CHOICES = {"fit": ("stretch", "pad", "crop"), "channels": (1, 3)}
SPLITS = {
    "split_seed": "draws other splits",
    "validation_fraction": "of the training records",
    "test_fraction": "where the data bring no test split",
}
"""Flags named after fields of `DataConfig`, in words."""


def _add_source(parser: argparse.ArgumentParser) -> None:
    from drifa_jax.config import DataConfig, ModalityConfig

    group = parser.add_argument_group("data", "a configuration, or the data of one modality")
    group.add_argument("--config", help="FILE.py or FILE.py:VARIANT; all of its data")
    group.add_argument("--modality", default="image", help="name of the modality")
    group.add_argument("--size", type=int, default=128, help="height and width in pixels")
    fields = {field.name: field.default for field in dataclasses.fields(ModalityConfig)}
    for name, words in FLAGS.items():
        default = {"task": "diagnosis", "classes": ""}.get(name, fields[name])
        group.add_argument(
            f"--{name.replace('_', '-')}",
            default=default,
            type=type(default),
            choices=CHOICES.get(name),
            help=f"{words} (default: {default})" if default != "" else words,
        )
    for name, words in SPLITS.items():
        default = getattr(DataConfig(), name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{words} (default: {default})",
        )


def _opened(options: argparse.Namespace) -> Mapping:
    """The splits that are worked on; what was noticed of them is told."""
    from drifa_jax.data.records import notes_of

    (splits,) = open_data(options).values()
    for note in notes_of(splits.values()):
        say(f"NOTE: {note}")
    return splits


def open_data(options: argparse.Namespace) -> dict[str, Mapping]:
    """Modality -> its splits; the data set of a configuration counts as one."""
    if bool(options.config) == bool(options.root):
        raise UserError("Give either --config FILE.py or --root FOLDER.")
    if options.config:
        from drifa_jax.config_files import load_config
        from drifa_jax.data.dataset import open_dataset

        dataset = open_dataset(load_config(options.config, options.overrides).data)
        splits = dataset.splits
        return {"all": splits}
    if options.overrides:
        raise UserError("--config.field=value changes a configuration; give --config as well.")
    from drifa_jax.data.archive import is_archive, unpack

    if options.format in ("folders", "manifest", "dicom", "nifti") and is_archive(options.root):
        archive = Path(options.root)
        options.root = str(unpack(archive, archive.with_name(archive.name + ".unpacked")))
        say(f"Unpacked {archive} in {options.root}.")
    if options.format == "prepared":
        from drifa_jax.data.sources.prepared import open_prepared

        return {"all": open_prepared(options.root)}
    from drifa_jax.config import ModalityConfig
    from drifa_jax.data.sources.opening import open_modality
    from drifa_jax.data.splits import shares

    values = {name: getattr(options, name) for name in FLAGS}
    values["classes"] = tuple(filter(None, options.classes.split(",")))
    splits = open_modality(
        options.modality,
        ModalityConfig(height=options.size, width=options.size, **values),
        shares(options.validation_fraction, options.test_fraction),
        options.split_seed,
        getattr(options, "quarantine", None),
    )
    return {options.modality: splits}


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="empty folder for the set")
    parser.add_argument(
        "--builder",
        default="",
        help="a data set by name instead of --root: "
        "tfds builds it from --manual-dir (see docs/data.md)",
    )
    parser.add_argument("--manual-dir", type=Path, help="where the downloaded data set lies")
    parser.add_argument(
        "--on-problem",
        default="fail",
        choices=("fail", "quarantine"),
        help="store nothing (default), or leave such records out and list them",
    )
    parser.add_argument(
        "--duplicates",
        default="remove",
        choices=("remove", "keep"),
        help="training records that validation or test also holds: remove them "
        "(default), or keep the set as distributed",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")


def _prepare(options: argparse.Namespace) -> int:
    from drifa_jax.data.label_checks import refuse_labels
    from drifa_jax.data.prepare import QUARANTINE_FILE, prepare
    from drifa_jax.data.split_manifest import describe_split

    if options.builder:
        return _build(options)
    if options.on_problem == "quarantine":
        # Beside the set: what cannot even be listed is known before the folder is claimed.
        options.quarantine = f"{options.output}-quarantine.csv"
    splits = _opened(options)
    refuse_labels(splits, options.root)
    if any(hasattr(source, "pair") for source in splits.values()):
        raise UserError(
            "Random pairing draws fresh partners in every epoch, so pairs cannot be stored. "
            "Prepare each modality by itself with --root, and pair the prepared sets."
        )
    splits = _without_duplicates(splits, options)
    total = sum(len(source) for source in splits.values())
    with progress("preparing", total) as advance:
        outcome = prepare(
            splits,
            options.output,
            on_problem=options.on_problem,
            num_threads=options.threads,
            progress=advance,
        )
    describe_split(splits, options.split_seed, hash_content=False).save(
        options.output / "split.json"
    )
    say(
        f"{outcome.written} records written, {outcome.resumed} were there, "
        f"{outcome.quarantined} quarantined: {options.output}"
    )
    if options.on_problem == "quarantine":
        for listed in (Path(options.quarantine), options.output / QUARANTINE_FILE):
            if listed.is_file():
                say(f"What was left out is listed in {listed}.")
    return 0


def _without_duplicates(splits: Mapping, options: argparse.Namespace) -> Mapping:
    from drifa_jax.data.duplicates import find_duplicates, remove_duplicates, write_table

    if options.duplicates == "keep":
        return splits
    from drifa_jax.data.verify import inspect

    total = sum(len(source) for source in splits.values())
    with progress("looking for duplicates", total) as advance:
        prints = {split: inspect(source, advance).prints for split, source in splits.items()}
    found = find_duplicates(splits, prints=prints)
    if found:
        table = options.output.with_name(options.output.name + "-duplicates.csv")
        write_table(table, found)
        cleaned = remove_duplicates(splits, found)
        for split, source in splits.items():
            gone = len(source) - len(cleaned[split])
            if gone:
                say(f"{gone} of {len(source)} {split} records are duplicates of held-out records")
        say(f"Removed duplicates are listed in {table}; keep them with --duplicates keep.")
        return cleaned
    return splits


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--paired", action="store_true", help="records must hold every modality")


def _verify(options: argparse.Namespace) -> int:
    from drifa_jax.data.verify import inspect, verify

    # The checks tell what was noticed.
    (splits,) = open_data(options).values()
    total = sum(len(source) for source in splits.values())
    with progress("reading", total) as advance:
        facts = {split: inspect(source, advance) for split, source in splits.items()}
    checks = verify(splits, facts, require_all_modalities=options.paired)
    _note_synthetic(splits)
    for check in checks:
        print(printable(f"{STATUS_SIGNS[check.status]} {check.name}: {check.finding}"))
    if options.json:
        rows = [check.__dict__ for check in checks]
        content = {"synthetic": _synthetic(splits), "checks": rows}
        with written_whole(options.json) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(check.status == "error" for check in checks) else 0


def _stats(options: argparse.Namespace) -> int:
    from drifa_jax.data.splits import class_counts, group_ids
    from drifa_jax.data.verify import inspect

    splits = _opened(options)
    total = sum(len(source) for source in splits.values())
    with progress("reading", total) as advance:
        facts = {split: inspect(source, advance) for split, source in splits.items()}
    content = {"synthetic": _synthetic(splits), "splits": {}}
    for split, source in splits.items():
        content["splits"][split] = {
            "description": source.description,
            "records": len(source),
            "groups": len(set(group_ids(source))),
            "unreadable": len(facts[split].problems),
            "classes": {
                task.name: dict(
                    zip(task.classes, class_counts(source, task.name).tolist(), strict=True)
                )
                for task in source.tasks
            },
            "modalities": {
                spec.name: {
                    "shape": list(spec.shape),
                    "present": facts[split].present[spec.name],
                    **_levels(facts[split].levels.get(spec.name)),
                }
                for spec in source.modalities
            },
        }
    _note_synthetic(splits)
    print(json.dumps(content, indent=1))
    return 0


def _levels(levels) -> dict[str, float]:
    if levels is None:
        return {}
    names = ("mean", "standard_deviation", "lowest", "highest")
    return {name: round(value, 3) for name, value in zip(names, levels, strict=True)}


def _add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="a .png or .html file")
    parser.add_argument(
        "--per-class", type=int, default=4, help="images of each class (default: 4)"
    )
    parser.add_argument(
        "--augmentation",
        default="paper",
        help="preset shown beside the training "
        "images: none, flip, paper, mri, ct, photo (default: paper)",
    )


def _view(options: argparse.Namespace) -> int:
    from drifa_jax.data import contact_sheet
    from drifa_jax.data.transforms import PRESETS, Augment

    if options.output.suffix not in (".png", ".html"):
        raise UserError(f"--output {options.output} must end in .png or .html.")
    if options.augmentation not in PRESETS:
        raise UserError(
            f"--augmentation {options.augmentation!r}; choose one of {sorted(PRESETS)}."
        )
    splits = _opened(options)
    names = [spec.name for spec in next(iter(splits.values())).modalities]
    transform = None
    if options.augmentation != "none":
        transform = Augment(dict.fromkeys(names, PRESETS[options.augmentation]))
    rows = contact_sheet.strips(splits, per_class=options.per_class, transform=transform)
    title = "SYNTHETIC records" if _synthetic(splits) else "records"
    if transform is not None:
        title += f"; in train, each is followed by its {options.augmentation!r} augmentation"
    write = contact_sheet.write_png if options.output.suffix == ".png" else contact_sheet.write_html
    write(options.output, rows, title)
    _note_synthetic(splits)
    say(f"{len(rows)} rows: {options.output}")
    return 0


def _synthetic(splits: Mapping) -> bool:
    return any(source.synthetic for source in splits.values())


def _note_synthetic(splits: Mapping) -> None:
    if _synthetic(splits):
        say(SYNTHETIC_NOTE)


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


ACTIONS = {
    "prepare": ("decode and resize once, store as ArrayRecord", _add_prepare, _prepare),
    "verify": ("check a data set before training on it", _add_verify, _verify),
    "stats": ("count records, groups, classes and grey levels", _nothing, _stats),
    "view": ("draw a contact sheet per split, class and modality", _add_view, _view),
}
"""Action -> one line of help, its own flags, what it does."""
