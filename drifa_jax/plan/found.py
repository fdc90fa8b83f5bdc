"""What the modalities of given paths are: where each lies, what labels it, and whose it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.plan import names
from drifa_jax.plan.modality import Answers, Found, too_small
from drifa_jax.plan.survey import Survey, survey
from drifa_jax.plan.tables import table_modalities, what_tables_lack

SAMPLED = 20
"""DICOM or NIfTI files that are tried before all of a place are taken for unreadable."""


def find_modalities(
    places: Sequence[tuple[str, Path]], answers: Answers, say: Callable[[str], None]
) -> list[Found]:
    """The modalities at the given places.

    Args:
      places: (name or "", folder or file).
      answers: of the user.
      say: called with what was found, a line a place.

    Raises:
      UserError: where nothing recognisable lies; `Questions` where the user must choose.
    """
    found: list[Found] = []
    for name, path in places:
        files = survey(path)
        say(f"{path}: {files}")
        found += _modalities(name, path, files, answers)
    repeated = {f.name for f in found if sum(g.name == f.name for g in found) > 1}
    if repeated:
        raise UserError(
            f"Two places hold a modality {sorted(repeated)[0]!r}; name each: NAME=PATH, for "
            f"example mri={places[0][1]}."
        )
    return found


def _modalities(name: str, path: Path, files: Survey, answers: Answers) -> list[Found]:
    tables = table_modalities(path, files, answers)
    if tables:
        return tables
    if files.nifti or files.dicom:
        return [_medical(name, path, files, answers)]
    if files.arrays and not files.images:
        return [_arrays(name, path, files)]
    if not files.images:
        raise UserError(
            f"{path} holds {files}: nothing to train on. Give a folder with class folders of "
            "images, DICOM or NIfTI files, or with a table that names images and labels."
        )
    trees = {} if name else names.modality_trees(files.images)
    if trees:
        return [_folders(head, files.root, tree, answers) for head, tree in trees.items()]
    tree = names.class_tree(files.images)
    if tree is None:
        if small := names.small_classes(files.images):
            raise UserError(f"{path}: {too_small(small)}")
        raise UserError(
            f"{path} holds {files}, but neither folders that are classes nor a table with labels. "
            "Put each class into a folder of its own, or add a table (CSV) with a column that "
            f"names the image and one for its label.{what_tables_lack(files)}"
        )
    if len(tree.classes) == 1 and (lack := what_tables_lack(files)):
        raise UserError(f"{path}: all images lie in one folder ({tree.classes[0]}).{lack}")
    return [_folders(name or names.modality_name(path.name), files.root, tree, answers)]


def _folders(name: str, root: Path, tree: names.ClassTree, answers: Answers) -> Found:
    fields: dict[str, Any] = {"root": str((root / tree.top).resolve()), "format": "folders"}
    shown = ", ".join(tree.classes[:6]) + (", ..." if len(tree.classes) > 6 else "")
    reasons = {
        "format": f"{len(tree.images)} images in {len(tree.classes)} class folders ({shown})"
    }
    if answers.include:
        tree = names.including(tree, answers.include)
        fields["include"], reasons["include"] = answers.include, "as you said"
    if answers.group_pattern:
        patients = names.grouped(tree, answers.group_pattern, "as you said")
        if patients is None:
            raise UserError(f"--group-pattern {answers.group_pattern} does not fit all names.")
    else:
        patients = names.grouping(tree)
    facts = []
    if patients is None:
        facts.append("no patient id is seen in the file names: images may share a patient")
    else:
        fields["group_pattern"] = patients.pattern
        reasons["group_pattern"] = (
            f"{patients.words}: {patients.groups} patients or slides, kept whole in every split "
            "(another: --group-pattern REGEX)"
        )
    return Found(
        name,
        root / tree.top,
        fields,
        reasons,
        tree.images,
        name,
        tree.counts,
        dict(tree.counts) if patients is None else patients.by_class,
        tree.splits,
        0 if patients is None else patients.groups,
        facts=facts,
        classes_of=tree.classes_of,
    )


def _medical(name: str, path: Path, files: Survey, answers: Answers) -> Found:
    kind, images = ("nifti", files.nifti) if files.nifti else ("dicom", files.dicom)
    tree = names.class_tree(images)
    if tree is None:
        raise UserError(
            f"{path} holds {files}, but no class folders: put the studies of each class into a "
            "folder of its own."
        )
    _check_readable(kind, files.root, images)
    found = _folders(name or names.modality_name(path.name), files.root, tree, answers)
    found.fields["format"] = kind
    found.reasons["format"] = f"{len(images)} {kind.upper()} files in class folders"
    if kind == "dicom":
        found.fields.pop("group_pattern", None)
        found.reasons["root"] = "PatientID in the headers keeps patients whole; it is never shown"
        found.facts.clear()
    return found


def _check_readable(kind: str, root: Path, images: Sequence[str]) -> None:
    """An error where not one header in a sample of files can be read."""
    from drifa_jax.data.readers import dicom_files, nifti

    step = max(1, len(images) // SAMPLED)
    problems = []
    for image in images[::step]:
        try:
            if kind == "nifti":
                nifti.read_shape(root / image)
            else:
                dicom_files.load(root / image, pixels=False)
            return
        except UserError as error:
            problems.append(error)
    raise UserError(
        f"{root}: none of {len(problems)} {kind.upper()} files that were tried can be read. "
        f"{problems[0]}"
    ) from problems[0]


def _arrays(name: str, path: Path, files: Survey) -> Found:
    import numpy as np

    from drifa_jax.data.problems import reading

    file = files.root / files.arrays[0]
    if len(files.arrays) > 1:
        raise UserError(
            f"{path} holds {len(files.arrays)} array files; give one of them: "
            f"{', '.join(files.arrays[:5])}."
        )
    with reading(file, "is not a readable npz file"), np.load(file) as content:
        held = {
            key: content[key].reshape(-1)
            for key in content.files
            if key.endswith("_labels") and content[key].size == len(content[key])
        }
    if not held:
        raise UserError(f"{file} holds no arrays called train_labels, val_labels, test_labels.")
    values, counts = np.unique(np.concatenate(list(held.values())), return_counts=True)
    classes = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    called = name or names.modality_name(file.stem)
    splits = {
        key.removesuffix("_labels").replace("val", "validation"): len(v) for key, v in held.items()
    }
    return Found(
        called, file, {"root": str(file.resolve()), "format": "npz"},
        {"format": "an array file with labels and splits, as MedMNIST's"}, (), called, classes,
        dict(classes), splits,
    )  # fmt: skip
