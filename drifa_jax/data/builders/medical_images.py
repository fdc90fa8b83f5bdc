"""The common part of the TensorFlow Datasets builders: labelled images with group ids.

A builder states what a public data set is (source, citation, licence, published counts) and
lists its files; this module stores them as ArrayRecord. Neither building nor reading needs
TensorFlow.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from drifa_jax.data.decode import decode_pixels
from drifa_jax.data.sources.folders import FolderIndex
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Facts:
    """What is published about a data set.

    Attributes:
      title, homepage, citation, licence: for `dataset_info.json`.
      folder: name of the folder of its download (the last part of its Kaggle address).
      instructions: how to get it.
      task: name of the classification task.
      classes: class names, in order.
      published: split -> class -> number of images of the full set.
      caveats: what a user must know before believing a score.
    """

    title: str
    homepage: str
    citation: str
    licence: str
    folder: str
    task: str
    classes: tuple[str, ...]
    published: Mapping[str, Mapping[str, int]]
    caveats: str
    columns: tuple[str, ...] = ()
    instructions: str = field(default="")


@dataclass(frozen=True)
class Example:
    """One image: its file, class, group, and the extra columns of the set as text."""

    record_id: str
    path: Path
    label: str
    group_id: str
    columns: Mapping[str, str] = field(default_factory=dict)


class MedicalImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of labelled images; subclasses give `FACTS` and `list_examples`."""

    VERSION = tfds.core.Version("1.0.0")
    FACTS: ClassVar[Facts]

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:
        return (
            f"Download {self.FACTS.title} from {self.FACTS.homepage}, unpack it as "
            f"{self.FACTS.folder}/ and give that folder, or the one above it, as manual_dir."
        )

    def list_examples(self, root: Path) -> Mapping[str, list[Example]]:
        """Split -> examples found in the unpacked download."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        facts = self.FACTS
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=list(facts.classes)),
            "record_id": tfds.features.Text(),
            "group_id": tfds.features.Text(),
        }
        features |= {column: tfds.features.Text() for column in facts.columns}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{facts.title}.\n\n{facts.caveats}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=facts.homepage,
            citation=facts.citation,
            license=facts.licence,
            metadata=tfds.core.MetadataDict(task=facts.task, published=dict(facts.published)),
        )

    def _split_generators(self, dl_manager):
        root = find_root(Path(dl_manager.manual_dir), self.FACTS.folder)
        examples = self.list_examples(root)
        counts = {
            split: dict(Counter(example.label for example in some))
            for split, some in examples.items()
        }
        self.info.metadata.update(check_counts(self.FACTS, counts))
        return {split: self._generate_examples(some) for split, some in examples.items()}

    def _generate_examples(self, examples) -> Iterator[tuple[str, dict]]:
        for example in examples:
            yield (
                example.record_id,
                {
                    "image": io.BytesIO(stored_bytes(example.path)),
                    "label": example.label,
                    "record_id": example.record_id,
                    "group_id": example.group_id,
                    **example.columns,
                },
            )


def find_root(manual_dir: Path, folder: str) -> Path:
    """The unpacked download: `manual_dir` itself, or the folder of that name in it."""
    nested = manual_dir / folder
    return nested if nested.is_dir() else manual_dir


def check_counts(facts: Facts, counts: Mapping[str, Mapping[str, int]]) -> dict:
    """Counts found, a checksum of them, and whether they are the published ones.

    A subset is built all the same, with a warning: scores on it are not those of the full set.
    """
    unknown = {c for split in counts.values() for c in split} - set(facts.classes)
    if unknown:
        raise UserError(f"{facts.title}: unknown classes {sorted(unknown)} in the download.")
    if not sum(sum(split.values()) for split in counts.values()):
        raise UserError(f"{facts.title}: the folder holds none of its images.")
    complete = {s: dict(c) for s, c in counts.items()} == {
        s: dict(c) for s, c in facts.published.items()
    }
    if facts.published and not complete:
        found = sum(sum(split.values()) for split in counts.values())
        wanted = sum(sum(split.values()) for split in facts.published.values())
        logging.warning(
            "%s: holds %d images where %d are published; scores on it are not comparable.",
            facts.title,
            found,
            wanted,
        )
    text = json.dumps(counts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"counts": dict(counts), "counts_sha256": digest, "complete": complete}


def stored_bytes(path: Path) -> bytes:
    """What is stored of an image: a colour JPEG or PNG as it is, anything else as colour PNG.

    One form for all, so that the set can be read back by any TFDS decoder; only lossless changes.
    """
    data = path.read_bytes()
    pixels = decode_pixels(data, 3, name=str(path))
    coded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    kept = coded is not None and coded.dtype == "uint8" and coded.ndim == 3 and coded.shape[2] == 3
    if kept and data[:2] in (b"\xff\xd8", b"\x89P"):
        return data
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def from_folders(index: FolderIndex, names: Mapping[str, str] | None = None) -> dict:
    """Split -> examples of class folders; a single tree is the split "full"."""
    examples: dict[str, list[Example]] = {}
    for file in index.files:
        label = index.classes[file.label]
        example = Example(
            file.path, index.root / file.path, (names or {}).get(label, label), file.group
        )
        examples.setdefault(file.split or "full", []).append(example)
    return examples
