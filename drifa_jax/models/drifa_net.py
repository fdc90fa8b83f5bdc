"""DRIFA-Net: one branch per modality, fused after every stage, read by one head per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbone import (
    BOTTLENECK_BACKBONES,
    RESNET_PLANS,
    Branch,
    GatedBranch,
    ResidualBranch,
    stage_widths,
)
from drifa_jax.models.convolution import LayerOptions
from drifa_jax.models.dropout import monte_carlo_dropout
from drifa_jax.models.heads import AveragedHeads, TaskHead
from drifa_jax.models.mifa import MIFA, PresentModalities, zero_absent
from drifa_jax.models.pooling import average_pool
from drifa_jax.models.rra import optional_mfa
from drifa_jax.models.tabular import TabularBranch
from drifa_jax.rng import stream
from drifa_jax.typing import DropoutKey, FeatureMap, Images, Logits

Intermediates = dict[str, jax.Array]

READOUTS = ("concatenate", "average")
"""How heads read the branches: one head over all features, or one each, averaged."""


@dataclass(frozen=True)
class NetworkOptions:
    """What shapes a DRIFA-Net besides its modalities and tasks. Defaults are the paper's.

    Attributes:
      width: channels after the stem.
      backbone: a name in `RESNET_PLANS`.
      dropout_rate: of Monte Carlo dropout.
      mfa_parts: parts of MFA inside stem and RRA blocks, of "hifa" and "clia".
      stage_mfa_parts: parts of the extra MFA after each stage but the last.
      mifa_parts: parts of MIFA, of "mgifa" and "mlifa"; none leaves the branches apart.
      readout: "concatenate" gives each head the features of all modalities, as in the paper;
        "average" gives each modality its own head and averages their probabilities.
      layers: dtype, padding and batch norm constants.
    """

    width: int = 64
    backbone: str = "resnet18"
    dropout_rate: float = 0.25
    mfa_parts: tuple[str, ...] = ("hifa", "clia")
    stage_mfa_parts: tuple[str, ...] = ("hifa", "clia")
    mifa_parts: tuple[str, ...] = ("mgifa", "mlifa")
    readout: str = "concatenate"
    layers: LayerOptions = field(default_factory=LayerOptions)

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1.")
        if self.backbone not in RESNET_PLANS:
            raise ValueError(
                f"backbone is {self.backbone!r}; choose one of {sorted(RESNET_PLANS)}."
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; it must be in [0, 1).")
        if self.readout not in READOUTS:
            raise ValueError(f"readout is {self.readout!r}; choose one of {READOUTS}.")
        for name, allowed in (
            ("mfa_parts", ("hifa", "clia")),
            ("stage_mfa_parts", ("hifa", "clia")),
            ("mifa_parts", ("mgifa", "mlifa")),
        ):
            unknown = set(getattr(self, name)) - set(allowed)
            if unknown:
                raise ValueError(f"{name} names {sorted(unknown)}; choose among {allowed}.")


class StageFusion(nnx.Module):
    """What happens to all branches after one stage: an MFA in each, then MIFA across them."""

    def __init__(
        self,
        modalities: tuple[str, ...],
        num_channels: int,
        *,
        stage_mfa_parts: tuple[str, ...],
        mifa_parts: tuple[str, ...],
        layers: LayerOptions,
        rngs: nnx.Rngs,
    ):
        self.mfa = nnx.Dict(
            {m: optional_mfa(num_channels, stage_mfa_parts, layers, rngs) for m in modalities}
            if stage_mfa_parts
            else {}
        )
        self.mifa = (
            MIFA(
                modalities,
                num_channels,
                mgifa="mgifa" in mifa_parts,
                mlifa="mlifa" in mifa_parts,
                dtype=layers.dtype,
                rngs=rngs,
            )
            if mifa_parts
            else None
        )


class DRIFANet(nnx.Module):
    """Dual robust information fusion attention network over named branches.

    Args:
      branches: modality -> backbone; all with equal `stage_widths`.
      tasks: task -> number of classes.
      options: dropout rate and parts of the attention.
      rngs: key of the initial weights.

    Calling it with images by modality returns `(logits, intermediates)`: logits by task,
    `[b, num_classes]` float32, and every named intermediate, which `jax.jit` drops unless used.

    Source: Fig. 1 and section 3. After each stage: dropout (until the last resolution), an MFA
    per branch (but after the last stage), MIFA. Departure: none in value. The authors
    concatenate maps, drop elements and pool; here each map is dropped and pooled on its own and
    the vectors are concatenated, so that branches may differ in size.
    """

    def __init__(
        self,
        branches: Mapping[str, Branch],
        tasks: Mapping[str, int],
        *,
        options: NetworkOptions = NetworkOptions(),
        rngs: nnx.Rngs,
    ):
        if not branches:
            raise ValueError("A network needs at least one modality.")
        if not tasks:
            raise ValueError("A network needs at least one task.")
        widths = {m: tuple(branch.stage_widths) for m, branch in branches.items()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"All branches need the same stage widths; they are {widths}.")
        self.modalities = tuple(branches)
        self.stage_widths = next(iter(widths.values()))
        self.dropout_rate = options.dropout_rate
        self.num_dropout_stages = sum(w < self.stage_widths[-1] for w in self.stage_widths)
        self.dtype = options.layers.dtype
        self.branches = nnx.Dict(dict(branches))
        self.fusion = nnx.Dict()
        last = len(self.stage_widths) - 1
        for number, num_channels in enumerate(self.stage_widths):
            self.fusion[f"stage_{number}"] = StageFusion(
                self.modalities,
                num_channels,
                stage_mfa_parts=options.stage_mfa_parts if number < last else (),
                mifa_parts=options.mifa_parts,
                layers=options.layers,
                rngs=rngs,
            )
        num_features = self.stage_widths[-1]
        self.averages = options.readout == "average"
        self.heads = nnx.Dict(
            {
                task: AveragedHeads(self.modalities, num_features, k, rngs=rngs)
                if self.averages
                else TaskHead(num_features * len(self.modalities), k, rngs=rngs)
                for task, k in tasks.items()
            }
        )

    def __call__(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> tuple[dict[str, Logits], Intermediates]:
        """Logits by task and named intermediates.

        Args:
          images: modality -> `[b, h, w, c]`, float.
          train: whether batch norm uses and remembers this batch's statistics.
          dropout_key: draws Monte Carlo dropout, in training and in prediction alike; one key,
            or one per record; None switches dropout off.
          present: modality -> `[b]` bool, or None when every record holds every modality. The
            images of absent modalities have no effect, whatever they hold.
        """
        features = self.before_dropout(images, train=train, present=present)
        return self.from_dropout(features, train=train, dropout_key=dropout_key, present=present)

    def before_dropout(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        present: PresentModalities | None = None,
    ) -> dict[str, FeatureMap]:
        """Features after the first stage: all that Monte Carlo samples of one image share."""
        return self._stage(0, self._stem(images, train, present), train, present)

    def from_dropout(
        self,
        features: Mapping[str, FeatureMap],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> tuple[dict[str, Logits], Intermediates]:
        """Logits and intermediates from the features of `before_dropout`."""
        seen: Intermediates = {}
        stages = range(len(self.stage_widths))
        features = self._stages(stages, features, train, dropout_key, present, seen)
        return self._read(features, dropout_key, present, seen), seen

    def until_stage(
        self,
        number: int,
        images: Mapping[str, Images],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> dict[str, FeatureMap]:
        """Features of each modality after stage `number` and its fusion."""
        features = self.before_dropout(images, train=train, present=present)
        return self._stages(range(number + 1), features, train, dropout_key, present, {})

    def from_stage(
        self,
        number: int,
        features: Mapping[str, FeatureMap],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> dict[str, Logits]:
        """Logits from what `until_stage` returned; explanations differentiate here."""
        stages = range(number + 1, len(self.stage_widths))
        features = self._stages(stages, features, train, dropout_key, present, {})
        return self._read(features, dropout_key, present, {})

    def observe(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        present: PresentModalities | None = None,
    ) -> Intermediates:
        """Every intermediate without dropout, and the gates that branches hold inside.

        Beside those that calling the network returns: `stem/<m>/mfa` and
        `stage_k/rra/<m>/mfa1` (and `mfa2`), `[b, c]` float32.
        """
        seen: Intermediates = {}
        inside: Intermediates = {}
        features = self._stem(images, train, present, inside)
        features = self._stage(0, features, train, present, inside)
        stages = range(len(self.stage_widths))
        features = self._stages(stages, features, train, None, present, seen, inside)
        self._read(features, None, present, seen)
        return inside | seen

    def _stages(
        self, stages, features, train, dropout_key, present, seen: Intermediates, inside=None
    ):
        for number in stages:
            name = f"stage_{number}"
            if number > 0:
                features = self._stage(number, features, train, present, inside)
            seen |= {f"{name}/rra/{m}": x for m, x in features.items()}
            if number < self.num_dropout_stages:
                features = self._drop(features, dropout_key, name)
            features = self._fuse(name, features, present, seen)
        return features

    def _read(self, features, dropout_key, present, seen: Intermediates):
        features = zero_absent(self._drop(features, dropout_key, "fused"), present)
        pooled = {m: average_pool(features[m]) for m in self.modalities}
        seen["pooled"] = jnp.concatenate(list(pooled.values()), -1)
        if self.averages:
            return {task: head(pooled, present) for task, head in self.heads.items()}
        return {task: head(seen["pooled"]) for task, head in self.heads.items()}

    def _stem(self, images, train, present, inside: Intermediates | None = None):
        if set(images) != set(self.modalities):
            raise ValueError(
                f"The network reads the modalities {sorted(self.modalities)} but got "
                f"{sorted(images)}."
            )
        images = {m: images[m].astype(self.dtype) for m in self.modalities}
        images = zero_absent(images, present)
        features = {}
        for m, x in images.items():
            branch, options = self.branches[m], {"train": train, "present": _of(present, m)}
            if inside is None or not isinstance(branch, GatedBranch):
                features[m] = branch.stem(x, **options)
            else:
                features[m], gates = branch.attend_stem(x, **options)
                inside |= {f"stem/{m}/{name}": gate for name, gate in gates.items()}
        return features

    def _stage(self, number, features, train, present, inside: Intermediates | None = None):
        after = {}
        for m, x in features.items():
            branch, options = self.branches[m], {"train": train, "present": _of(present, m)}
            if inside is None or not isinstance(branch, GatedBranch):
                after[m] = branch.stage(number, x, **options)
            else:
                after[m], gates = branch.attend_stage(number, x, **options)
                inside |= {f"stage_{number}/rra/{m}/{name}": g for name, g in gates.items()}
        return after

    def _drop(self, features, dropout_key, site):
        if dropout_key is None:
            return features
        return {
            m: monte_carlo_dropout(x, self.dropout_rate, stream(dropout_key, site, m))
            for m, x in features.items()
        }

    def _fuse(self, name, features, present, seen: Intermediates):
        fusion = self.fusion[name]
        for m, mfa in fusion.mfa.items():
            refined, gates = mfa.attend(features[m])
            features = features | {m: refined}
            seen |= {f"{name}/mfa/{m}": refined, f"{name}/mfa/{m}/gate": gates["gate"]}
        if fusion.mifa is not None:
            features, gates = fusion.mifa.attend(features, present)
            seen |= {f"{name}/mifa/{part}": gate for part, gate in gates.items()}
            seen |= {f"{name}/mifa/{m}": x for m, x in features.items()}
        return features


def drifa_net(
    modalities: Mapping[str, int],
    tasks: Mapping[str, int],
    *,
    options: NetworkOptions = NetworkOptions(),
    tables: Mapping[str, int] | None = None,
    rngs: nnx.Rngs,
) -> DRIFANet:
    """The paper's network: a residual branch for each modality.

        >>> import jax
        >>> from flax import nnx
        >>> options = NetworkOptions(width=4)
        >>> net = drifa_net(
        ...     {"mri": 1, "ct": 1}, {"tumour": 4}, options=options,
        ...     rngs=nnx.Rngs(params=jax.random.key(0)),
        ... )
        >>> images = {"mri": jax.numpy.ones([2, 64, 64, 1]), "ct": jax.numpy.ones([2, 32, 48, 1])}
        >>> logits, _ = net(images, train=False)
        >>> logits["tumour"].shape
        (2, 4)

    Args:
      modalities: modality -> channels of its images.
      tasks: task -> number of classes.
      options: width, backbone, dropout and parts of the attention.
      tables: tabular modality -> its number of features.
      rngs: key of the initial weights.
    """
    branches: dict[str, Branch] = {
        m: ResidualBranch(
            num_channels,
            width=options.width,
            blocks_per_resolution=RESNET_PLANS[options.backbone],
            bottleneck=options.backbone in BOTTLENECK_BACKBONES,
            mfa_parts=options.mfa_parts,
            options=options.layers,
            rngs=rngs,
        )
        for m, num_channels in modalities.items()
    }
    if branches:
        widths = next(iter(branches.values())).stage_widths
    else:
        widths = stage_widths(options.width, RESNET_PLANS[options.backbone])
    for m, num_features in (tables or {}).items():
        branches[m] = TabularBranch(num_features, widths, dtype=options.layers.dtype, rngs=rngs)
    return DRIFANet(branches, tasks, options=options, rngs=rngs)


def _of(present: PresentModalities | None, modality: str) -> Any:
    return None if present is None else present[modality]
