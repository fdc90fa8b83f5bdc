"""From a run directory to answers with their uncertainty.

predictor = drifa_jax.load("runs/brain-quick")
prediction = predictor({"mri": ["a.png"], "ct": ["b.png"]})
prediction["tumour"].labels, prediction["tumour"].uncertainty.predictive_entropy
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifa_jax.compilation import Program, compiler_options
from drifa_jax.data.pairing import groups_of
from drifa_jax.data.record import Source
from drifa_jax.errors import UserError
from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.registry import BACKBONES, FUSIONS, READOUTS
from drifa_jax.post_processing import saved
from drifa_jax.post_processing.out_of_distribution import DistanceDetector
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.post_processing.task import PostProcessingOptions
from drifa_jax.predict.described import Description
from drifa_jax.predict.kept_apart import check_apart, folds_of
from drifa_jax.predict.restored import Restored, restore
from drifa_jax.predict.streaming import Arrays, Images, batches, read_blocks, read_images, stream
from drifa_jax.predictions.table import Predictions, Provenance, joined, task_predictions
from drifa_jax.rng import root_key
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words, sampling_mesh
from drifa_jax.uncertainty.measures import Uncertainty, concatenated, from_samples


class Predictor:
    """Answers, their uncertainty and, with post-processing, sets and referrals.

    Args:
      restored: network, parameters and the shape of the data.
      num_samples: Monte Carlo samples of each member.
      seed: of the samples; the same seed gives the same answer.
      post_processing: what was fitted on the validation split; None for bare answers.

    Attributes:
      description: modalities (with the size that images are brought to) and tasks.
    """

    def __init__(
        self,
        restored: Restored,
        *,
        num_samples: int,
        seed: int = 0,
        post_processing: PostProcessing | None = None,
    ):
        if num_samples < 1:
            raise UserError(f"The number of samples is {num_samples}; it must be at least 1.")
        self.restored = restored
        self.description: Description = restored.description
        self.num_samples, self.seed = num_samples, seed
        self.post_processing = post_processing
        features = jax.jit(
            lambda *state: fused_features(restored.network, *state),
            compiler_options=compiler_options(),
        )
        sampler = make_sampler(
            restored.network, num_samples=num_samples, mesh=sampling_mesh(self.num_members)
        )
        sampler = jax.jit(sampler, compiler_options=compiler_options())
        named = _named(restored)
        self._features = Program(features, named and ["features", named])
        self._sampler = Program(sampler, named and ["samples", num_samples, named])

    @property
    def num_members(self) -> int:
        return len(self.restored.steps)

    @property
    def detector(self) -> DistanceDetector | None:
        """Tells records out of distribution; None where nothing was fitted for it."""
        return None if self.post_processing is None else self.post_processing.detector

    @property
    def identity(self) -> str:
        """Digest of the weights and of what they read and answer."""
        return self.restored.model_identity

    def __call__(self, images: Images, record_ids: Sequence[str] | None = None) -> Predictions:
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
        return joined(list(self.stream(images, record_ids)))

    def stream(
        self, images: Images, record_ids: Sequence[str] | None = None
    ) -> Iterator[Predictions]:
        """The same block by block, so that few images are held at once."""
        return stream(self.predict, self.description, images, record_ids)

    def predict(self, pixels: Arrays, present: Arrays, record_ids: Sequence[str]) -> Predictions:
        """Answers for records at the network's size, as `read` gives them."""
        self._compile(pixels, present, record_ids)
        uncertainty = self.uncertainty(pixels, present, record_ids)
        fitted = self.post_processing
        detector = self.detector
        return Predictions(
            tuple(record_ids),
            {
                task: task_predictions(
                    classes, uncertainty[task], None if fitted is None else fitted.tasks.get(task)
                )
                for task, classes in self.description.tasks.items()
            },
            self.provenance,
            None if detector is None else detector(self.features(pixels, present)),
            present=present,
        )

    def _compile(self, pixels: Arrays, present: Arrays, record_ids: Sequence[str]) -> None:
        """Compiles both programs beside each other, where both are needed."""
        if self.detector is None:
            return
        _, filled = next(batches(len(record_ids)))
        words = record_words(record_ids)
        self._sampler.ready(*self._sampler_arguments(pixels, present, words, filled))
        self._features.ready(*self._features_arguments(pixels, present, filled))

    @property
    def provenance(self) -> Provenance:
        """Of answers, without what is known of their records."""
        fitted = self.post_processing
        return Provenance(
            runs=tuple(str(run) for run in self.restored.runs),
            identity=self.identity,
            steps=tuple(self.restored.steps),
            num_members=self.num_members,
            num_samples=self.num_samples,
            seed=self.seed,
            post_processing="" if fitted is None else fitted.fitted_on,
            synthetic=self.description.synthetic,
        )

    def read(self, images: Images) -> tuple[Arrays, Arrays]:
        """Pixels `[b, h, w, c]` uint8 (of tables, features) and presence `[b]` bool by modality."""
        return read_images(self.description, images)

    def uncertainty(
        self, pixels: Arrays, present: Arrays, record_ids: Sequence[str]
    ) -> dict[str, Uncertainty]:
        """Measures by task of records at the network's size, uncalibrated."""
        samples = self.samples(pixels, present, record_ids)
        for task, p in samples.items():
            bad = ~np.isfinite(p).all((0, 1, 3))
            if bad.any():
                names = [name for name, is_bad in zip(record_ids, bad, strict=True) if is_bad]
                raise UserError(
                    f"The network's answer to {task!r} is not finite for {', '.join(names[:5])}"
                    f"{' and others' if len(names) > 5 else ''}; the run is not usable."
                )
        return {task: from_samples(p) for task, p in samples.items()}

    def samples(
        self, pixels: Arrays, present: Arrays, record_ids: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Probabilities `[e, s, b, k]` by task."""
        words = record_words(record_ids)
        parts = []
        for rows, filled in batches(len(words)):
            drawn = self._sampler(*self._sampler_arguments(pixels, present, words, filled))
            parts.append({task: np.asarray(p)[:, :, : len(rows)] for task, p in drawn.items()})
        return {task: np.concatenate([part[task] for part in parts], 2) for task in parts[0]}

    def features(self, pixels: Arrays, present: Arrays) -> np.ndarray:
        """Fused features `[e, b, d]` without dropout."""
        parts = []
        for rows, filled in batches(len(next(iter(present.values())))):
            fused = self._features(*self._features_arguments(pixels, present, filled))
            parts.append(np.asarray(fused)[:, : len(rows)])
        return np.concatenate(parts, 1)

    def _sampler_arguments(self, pixels: Arrays, present: Arrays, words: np.ndarray, rows):
        state = self.restored.params, self.restored.statistics
        images = {name: x[rows] for name, x in pixels.items()}
        key = root_key(self.seed)
        return *state, images, key, words[rows], None, self._masks(present, rows)

    def _features_arguments(self, pixels: Arrays, present: Arrays, rows: np.ndarray):
        state = self.restored.params, self.restored.statistics
        images = {name: x[rows] for name, x in pixels.items()}
        return *state, images, self._masks(present, rows)

    def _masks(self, present: Arrays, rows: np.ndarray):
        # What is absent is masked, also from a network that never saw a record without it.
        whole = all(np.all(held) for held in present.values())
        if whole and not self.description.may_lack_modalities:
            return None
        return {name: held[rows] for name, held in present.items()}


def _named(restored: Restored) -> list[Any] | None:
    """What tells a network's programs from others'; None where parts come from outside."""
    for part in (*BACKBONES.values(), *FUSIONS.values(), *READOUTS.values()):
        if not getattr(part, "func", part).__module__.startswith("drifa_jax."):
            return None
    return [json.loads(restored.config.to_json()), restored.description.to_json()]


def load(
    *runs: str | Path,
    num_samples: int | None = None,
    seed: int = 0,
    post_processing: bool = True,
    options: PostProcessingOptions | None = None,
) -> Predictor:
    """The predictor of a run, or the deep ensemble of several.

        import drifa_jax
        predictor = drifa_jax.load("runs/brain-quick")

    Args:
      runs: run directories; several make an ensemble.
      num_samples: Monte Carlo samples of each member; the run's own setting when None.
      seed: of the samples.
      post_processing: whether to calibrate, refer and make prediction sets. What that takes is
        read from the first run or, at the first time, fitted on the validation split of its data
        and saved there; what was fitted for other weights is never used. Of the folds of one
        cross-validation each answers its own validation records, which no other may.
      options: how it is fitted, when it is.

    Raises:
      UserError: naming the directory or file that is missing, damaged or does not fit.
    """
    restored = restore(runs)
    num_samples = num_samples or restored.config.uncertainty.num_mc_samples
    predictor = Predictor(restored, num_samples=num_samples, seed=seed)
    if post_processing:
        _post_process(predictor, options or PostProcessingOptions())
    return predictor


def prepare(run: str | Path, validation: Source) -> None:
    """Fits the post-processing of a finished run and saves it there, so that `load` reads it.

    Args:
      run: its directory.
      validation: the validation split of its data.

    Raises:
      UserError: where the validation records say too little.
    """
    restored = restore([run])
    predictor = Predictor(restored, num_samples=restored.config.uncertainty.num_mc_samples)
    _post_process(predictor, PostProcessingOptions(), validation)


def _post_process(
    predictor: Predictor, options: PostProcessingOptions, validation: Source | None = None
) -> None:
    """What was saved or, the first time, what is fitted on validation records."""
    run, tasks = predictor.restored.runs[0], predictor.description.tasks
    path = saved.path_in(run, predictor.identity, predictor.num_samples, predictor.seed, options)
    found = saved.read(path, tasks, predictor.identity)
    if found is None:
        parts = _kept_apart(predictor) if validation is None else [(predictor, validation)]
        saved.save(fit_post_processing(predictor, parts, options), path)
        # Read back: the first answer is then that of every later one, to the last bit.
        found = saved.read(path, tasks, predictor.identity)
    predictor.post_processing = found


def _kept_apart(predictor: Predictor) -> list[tuple[Predictor, Source]]:
    """Who answers which validation records without having been trained on any of them."""
    runs = predictor.restored.runs
    folds = folds_of(runs)
    if len(folds) == 1:
        check_apart(runs, "validation")
        members = {0: predictor}
    else:
        members = {
            fold: Predictor(restore(own), num_samples=predictor.num_samples, seed=predictor.seed)
            for fold, own in folds.items()
        }
    return [(member, member.restored.open_dataset().validation) for member in members.values()]


def fit_post_processing(
    predictor: Predictor,
    parts: Sequence[tuple[Predictor, Source]],
    options: PostProcessingOptions,
) -> PostProcessing:
    """The post-processing of a network from records that it was not trained on.

    Args:
      predictor: the network.
      parts: validation records, each with the members that were not trained on them: the whole
        network and one split or, of folds, each its own. Folds share no feature space, so that
        nothing is told out of distribution then.
      options: how it is fitted.

    Raises:
      UserError: where they say too little.
    """
    tasks = predictor.description.tasks
    found = []
    for member, validation in parts:
        for pixels, present, labels, names in read_blocks(member.description, validation):
            uncertainty = member.uncertainty(pixels, present, names)
            found.append((uncertainty, labels, member.features(pixels, present), present))
    uncertainties, labels, features, present = zip(*found, strict=True)
    return saved.fit(
        {task: concatenated([part[task] for part in uncertainties]) for task in tasks},
        {task: np.concatenate([part[task] for part in labels]) for task in tasks},
        tasks,
        np.concatenate(features, 1) if len(parts) == 1 else None,
        {name: np.concatenate([part[name] for part in present]) for name in present[0]},
        [groups_of(source, row) for _, source in parts for row in range(len(source))],
        options,
        fitted_on="validation split of "
        + "; ".join(dict.fromkeys(source.description for _, source in parts)),
        identity=predictor.identity,
    )


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
