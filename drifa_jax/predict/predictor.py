"""From a run directory to answers with their uncertainty.

predictor = drifa_jax.load("runs/brain-quick")
prediction = predictor({"mri": ["a.png"], "ct": ["b.png"]})
prediction["tumour"].labels, prediction["tumour"].uncertainty.predictive_entropy
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from drifa_jax.compilation import compiler_options
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.record import Source
from drifa_jax.errors import UserError
from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.decisions import DecisionOptions, TaskDecisions
from drifa_jax.predict.foreign import ForeignDetector
from drifa_jax.predict.prediction import Prediction, decide
from drifa_jax.predict.reading import Item, read_item
from drifa_jax.predict.restored import Description, Restored, restore
from drifa_jax.predict.rules import fit_rules, read_rules, rules_path, save_rules
from drifa_jax.rng import root_key
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words, sampling_mesh
from drifa_jax.uncertainty.measures import Uncertainty, from_samples

LARGEST_BATCH = 16
"""Records predicted together; smaller batches are padded to a power of two."""

Images = Mapping[str, Sequence[Item] | np.ndarray]


class Predictor:
    """A trained network, or an ensemble, that answers for images.

    Calling it with images by modality returns a `Prediction`. The same images under the same
    names give the same answer, whatever is predicted beside them.

    Args:
      restored: the members.
      num_samples: Monte Carlo samples of each member.
      seed: of the samples.
      decisions: task -> frozen rules; empty for none.

    Attributes:
      description: modalities (with the size that images are brought to) and tasks.
      decisions: task -> frozen rules.
      detector: tells foreign records; None without rules, or where validation was too small.
    """

    def __init__(
        self,
        restored: Restored,
        *,
        num_samples: int,
        seed: int = 0,
        decisions: Mapping[str, TaskDecisions] | None = None,
    ):
        if num_samples < 1:
            raise UserError(f"The number of samples is {num_samples}; it must be at least 1.")
        self.restored = restored
        self.description: Description = restored.description
        self.num_samples, self.seed = num_samples, seed
        self.decisions = dict(decisions or {})
        self.detector: ForeignDetector | None = None
        self._features = jax.jit(
            lambda *of: fused_features(restored.network, *of), compiler_options=compiler_options()
        )
        sampler = make_sampler(
            restored.network, num_samples=num_samples, mesh=sampling_mesh(self.num_members)
        )
        self._sampler = jax.jit(sampler, compiler_options=compiler_options())

    @property
    def num_members(self) -> int:
        return len(self.restored.steps)

    def __call__(self, images: Images, record_ids: Sequence[str] | None = None) -> Prediction:
        """Answers for records.

        Args:
          images: modality -> one item a record: paths, or arrays `[h, w]`, `[h, w, 1]` or
            `[h, w, 3]` uint8 of any size, or None where the record lacks the modality; or one
            array `[b, h, w, c]`. Images, DICOM files and slices of NIfTI volumes
            (`scan.nii.gz:43`) are brought to the network's size and channels as in training; of
            a table, an item is its row, a mapping of columns to values. A modality that no
            record has may be left out.
          record_ids: names, part of the keys of the samples; the images' fingerprints when None.

        Raises:
          UserError: naming the modality or the image that does not fit.
        """
        pixels, present = self.read(images)
        count = len(next(iter(present.values())))
        if record_ids is None:
            record_ids = fingerprints(pixels, present)
        if len(record_ids) != count:
            raise UserError(f"There are {count} records but {len(record_ids)} names.")
        uncertainty = self.uncertainty(pixels, present, record_ids)
        scores = None if self.detector is None else self.detector(self.features(pixels, present))
        return Prediction(
            tuple(record_ids),
            {
                task: decide(classes, uncertainty[task], self.decisions.get(task))
                for task, classes in self.description.tasks.items()
            },
            self.num_members,
            self.num_samples,
            scores,
        )

    def read(self, images: Images) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Pixels `[b, h, w, c]` uint8 (of tables, features) and presence `[b]` bool by modality."""
        specs = {spec.name: spec for spec in self.description.modalities}
        if unknown := [name for name in images if name not in specs]:
            raise UserError(
                f"The modalities {unknown} are unknown; this network reads {list(specs)}."
            )
        counts = {name: len(of) for name, of in images.items()}
        if not counts or len(set(counts.values())) != 1 or 0 in counts.values():
            raise UserError(
                f"Every modality needs one image (or None) a record, of at least one record; "
                f"got {counts or 'no images'}."
            )
        count = next(iter(counts.values()))
        pixels, present = {}, {}
        for name, spec in specs.items():
            given = images.get(name, [None] * count)
            present[name] = np.array([image is not None for image in given])
            pixels[name] = np.stack(
                [
                    read_item(item, spec, self.description.readings[name], f"{name} {row}")
                    for row, item in enumerate(given)
                ]
            )
        self._check_present(present)
        return pixels, present

    def uncertainty(
        self,
        pixels: Mapping[str, np.ndarray],
        present: Mapping[str, np.ndarray],
        record_ids: Sequence[str],
    ) -> dict[str, Uncertainty]:
        """Measures by task of records at the network's size, uncalibrated."""
        samples = self.samples(pixels, present, record_ids)
        for task, p in samples.items():
            bad = ~np.isfinite(p).all((0, 1, 3))
            if bad.any():
                names = [one for one, is_bad in zip(record_ids, bad, strict=True) if is_bad]
                raise UserError(
                    f"The network's answer to {task!r} is not finite for {', '.join(names[:5])}"
                    f"{' and others' if len(names) > 5 else ''}; the run is not usable."
                )
        return {task: from_samples(p) for task, p in samples.items()}

    def samples(
        self,
        pixels: Mapping[str, np.ndarray],
        present: Mapping[str, np.ndarray],
        record_ids: Sequence[str],
    ) -> dict[str, np.ndarray]:
        """Probabilities `[e, s, b, k]` by task."""
        words = record_words(record_ids)
        key = root_key(self.seed)
        state = self.restored.params, self.restored.statistics
        parts = []
        for rows, filled in _batches(len(words)):
            masked = self._masks(present, filled)
            images = {name: of[filled] for name, of in pixels.items()}
            drawn = self._sampler(*state, images, key, words[filled], None, masked)
            parts.append({task: np.asarray(p)[:, :, : len(rows)] for task, p in drawn.items()})
        return {task: np.concatenate([part[task] for part in parts], 2) for task in parts[0]}

    def features(
        self, pixels: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Fused features `[e, b, d]` without dropout."""
        state = self.restored.params, self.restored.statistics
        parts = []
        for rows, filled in _batches(len(next(iter(present.values())))):
            images = {name: of[filled] for name, of in pixels.items()}
            fused = self._features(*state, images, self._masks(present, filled))
            parts.append(np.asarray(fused)[:, : len(rows)])
        return np.concatenate(parts, 1)

    def _masks(self, present: Mapping[str, np.ndarray], rows: np.ndarray):
        if not self.description.may_lack_modalities:
            return None
        return {name: of[rows] for name, of in present.items()}

    def _check_present(self, present: Mapping[str, np.ndarray]) -> None:
        nothing = ~np.any(list(present.values()), axis=0)
        if nothing.any():
            raise UserError(f"Record {int(np.argmax(nothing))} has no image in any modality.")
        lacking = [name for name, of in present.items() if not of.all()]
        if lacking and not self.description.may_lack_modalities:
            raise UserError(
                f"Some records lack {' and '.join(lacking)}, but this network was trained on "
                "records that hold every modality. Give all images, or train with "
                "--config.data.pairing=by_task."
            )


def load(
    *runs: str | Path,
    num_samples: int | None = None,
    seed: int = 0,
    decisions: bool = True,
    options: DecisionOptions | None = None,
) -> Predictor:
    """The predictor of a run, or the deep ensemble of several.

        import drifa_jax
        predictor = drifa_jax.load("runs/brain-quick")

    Args:
      runs: run directories; several make an ensemble.
      num_samples: Monte Carlo samples of each member; the run's own setting when None.
      seed: of the samples.
      decisions: whether to calibrate and decide. The rules are read from the first run or, at
        the first time, fitted on the validation split of its data and saved there.
      options: how rules are fitted, when they are.

    Raises:
      UserError: naming the directory or file that is missing, damaged or does not fit.
    """
    restored = restore(runs)
    num_samples = num_samples or restored.config.uncertainty.num_mc_samples
    predictor = Predictor(restored, num_samples=num_samples, seed=seed)
    if decisions:
        _give_rules(predictor, options or DecisionOptions())
    return predictor


def prepare(run: str | Path, validation: Source) -> None:
    """Fits the rules of a finished run and saves them in it, so that `load` reads them.

    Args:
      run: its directory.
      validation: the validation split of its data.

    Raises:
      UserError: where the validation records say too little.
    """
    restored = restore([run])
    predictor = Predictor(restored, num_samples=restored.config.uncertainty.num_mc_samples)
    _give_rules(predictor, DecisionOptions(), validation)


def _give_rules(
    predictor: Predictor, options: DecisionOptions, validation: Source | None = None
) -> None:
    """Saved rules or, the first time, those fitted on validation records (of the run's data)."""
    path = rules_path(predictor, options)
    rules = read_rules(path, predictor.description.tasks)
    if rules is None:
        if validation is None:
            validation = open_dataset(predictor.restored.config.data).validation
        save_rules(fit_rules(predictor, validation, options), path)
        # Read back: the first answer is then that of every later one, to the last bit.
        rules = read_rules(path, predictor.description.tasks)
    predictor.decisions, predictor.detector = dict(rules.decisions), rules.detector


def fused_features(
    network: Functional,
    params: Parameters,
    statistics: BatchStatistics,
    images: Mapping[str, jax.Array],
    present: Mapping[str, jax.Array] | None,
) -> jax.Array:
    """What the heads read, `[e, b, d]`, of members stacked along `e`, without dropout."""

    def of_member(state):
        (_, seen), _ = network.apply(*state, scale_pixels(images), train=False, present=present)
        return seen["pooled"]

    return jax.lax.map(of_member, (params, statistics))


def fingerprints(pixels: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> list[str]:
    """A name for each record made of its pixels: the same picture has the same name anywhere."""
    names = []
    for row in range(len(next(iter(present.values())))):
        digest = hashlib.blake2b(digest_size=6)
        for name in sorted(pixels):
            if present[name][row]:
                digest.update(name.encode() + np.ascontiguousarray(pixels[name][row]).tobytes())
        names.append(f"image-{digest.hexdigest()}")
    return names


def _batches(count: int):
    """Rows of each batch, and the same with the last repeated to fill the one compiled shape."""
    size = min(LARGEST_BATCH, 1 << (count - 1).bit_length())
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        yield rows, np.pad(rows, (0, size - len(rows)), mode="edge")
