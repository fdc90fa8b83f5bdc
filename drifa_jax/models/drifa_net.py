"""DRIFA-Net: one branch per modality, fused between stages, read by one head per task."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import Backbone
from drifa_jax.models.branches import run_branches
from drifa_jax.models.dropout import monte_carlo_dropout
from drifa_jax.models.gates import STEM, PlacedGate
from drifa_jax.models.matching import matched
from drifa_jax.models.mifa import PresentModalities, zero_absent
from drifa_jax.models.pixels import Normalisation
from drifa_jax.models.pooling import average_pool
from drifa_jax.models.reading import ResolutionReading, mean_and_deviation
from drifa_jax.models.readouts.contract import ExpertReadout
from drifa_jax.models.registry import FUSIONS, READOUTS, registered
from drifa_jax.models.rematerialisation import computed_again
from drifa_jax.models.stochastic_depth import StochasticDepth
from drifa_jax.network_options import (
    DROPOUT_AT_HEADS,
    PAPER,
    READ_RESOLUTIONS,
    NetworkOptions,
)
from drifa_jax.rng import stream
from drifa_jax.typing import DropoutKey, FeatureMap, Images, Logits, Pooled

Intermediates = dict[str, jax.Array]


class DRIFANet(nnx.Module):
    """Dual robust information fusion attention network over named branches.

    Args:
      branches: modality -> backbone; they may differ in stages, channels, sizes and axes.
      tasks: task -> number of classes.
      options: fusion and where it happens, readout, dropout and parts of the attention.
      rngs: key of the initial weights.
      normalisations: modality -> what its images go through first; others are read as they are.

    Calling it with images by modality returns `(logits, intermediates)`: logits by task,
    `[b, num_classes]` float32, and every named intermediate, which `jax.jit` drops unless used.

    Its stages are `rows`: what the branches run side by side (`models/matching.py`). Of equal
    branches, stage k is stage k of each.

    Source: Fig. 1 and section 3. After each stage: dropout (until the last resolution), an MFA
    per branch (but after the last stage), MIFA. Departure: none in value. The authors
    concatenate maps, drop elements and pool; here each map is dropped and pooled on its own and
    the vectors are concatenated, so that branches may differ in size.
    """

    def __init__(
        self,
        branches: Mapping[str, Backbone],
        tasks: Mapping[str, int],
        *,
        options: NetworkOptions = PAPER,
        rngs: nnx.Rngs,
        normalisations: Mapping[str, Normalisation] | None = None,
    ):
        if not branches:
            raise ValueError("A network needs at least one modality.")
        if not tasks:
            raise ValueError("A network needs at least one task.")
        self.modalities = tuple(branches)
        self.plans = {m: tuple(branch.plan) for m, branch in branches.items()}
        self.rows = matched(self.plans, options.fuse_at)
        self.num_stages = len(self.rows)
        self.dropout_rate = options.dropout_rate
        self.drops_at_heads = options.dropout_at == DROPOUT_AT_HEADS
        self.dtype = options.dtype
        given = normalisations or {}
        self.normalisations = {m: given.get(m, Normalisation()) for m in branches}
        self.branches = nnx.Dict(dict(branches))
        self.fusion = nnx.Dict()
        fusion = registered(FUSIONS, "model.fusion", options.fusion)
        for number, row in enumerate(self.rows):
            if row.meets:
                self.fusion[f"stage_{number}"] = fusion(
                    {m: self.plans[m][k].channels for m, k in row.stages},
                    last=number == self.num_stages - 1,
                    options=options,
                    rngs=rngs,
                )
        readout = registered(READOUTS, "model.readout", options.readout)
        if options.read_stages == READ_RESOLUTIONS:
            self.reading = ResolutionReading(self.plans, options=options)
            self.num_features = dict(self.reading.num_features)
        else:
            self.reading = None
            self.num_features = {m: plan[-1].channels for m, plan in self.plans.items()}
        self.heads = nnx.Dict(
            {
                task: readout(self.num_features, k, options=options, rngs=rngs)
                for task, k in tasks.items()
            }
        )

    def __call__(
        self,
        images: Mapping[str, Images],
        *,
        train: bool | Mapping[str, bool],
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
        depth: StochasticDepth | None = None,
        rematerialise: bool = False,
    ) -> tuple[dict[str, Logits], Intermediates]:
        """Logits by task and named intermediates.

        Args:
          images: modality -> `[b, h, w, c]`, float.
          train: whether batch norm uses and remembers this batch's statistics; by modality where
            branches differ.
          dropout_key: draws Monte Carlo dropout, in training and in prediction alike; one key,
            or one per record; None switches dropout off.
          present: modality -> `[b]` bool, or None when every record holds every modality. The
            images of absent modalities have no effect, whatever they hold.
          depth: of branches in training that can skip blocks; None skips none.
          rematerialise: whether a backward pass computes the activations inside stems and stages
            again, so that only those between them are kept.
        """
        seen: Intermediates = {}
        during = {"depth": depth, "rematerialise": rematerialise}
        features = self._first_stages(images, train, present, **during)
        stages = range(self.num_stages)
        features = self._stages(stages, features, train, dropout_key, present, seen, **during)
        return self._read(features, train, dropout_key, present, seen), seen

    def before_dropout(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        present: PresentModalities | None = None,
    ) -> dict[str, FeatureMap | Pooled]:
        """What Monte Carlo samples of an image share.

        Features after each branch's first stage; with `dropout_at="heads"` what the heads read,
        modality -> `[b, num_features]`.
        """
        features = self._first_stages(images, train, present)
        if not self.drops_at_heads:
            return features
        features = self._stages(range(self.num_stages), features, train, None, present, {})
        return self._pooled(features, train, None, present, {})

    def from_dropout(
        self,
        features: Mapping[str, FeatureMap | Pooled],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> tuple[dict[str, Logits], Intermediates]:
        """Logits and intermediates from the features of `before_dropout`."""
        seen: Intermediates = {}
        if self.drops_at_heads:
            return self._answers(features, dropout_key, present, seen), seen
        stages = range(self.num_stages)
        features = self._stages(stages, features, train, dropout_key, present, seen)
        return self._read(features, train, dropout_key, present, seen), seen

    def until_stage(
        self,
        number: int,
        images: Mapping[str, Images],
        *,
        train: bool,
        dropout_key: DropoutKey | None = None,
        present: PresentModalities | None = None,
    ) -> dict[str, FeatureMap]:
        """Features of each modality after stage `number` and its fusion.

        A branch whose first stage comes later gives the features after that stage.
        """
        features = self._first_stages(images, train, present)
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
        stages = range(number + 1, self.num_stages)
        features = self._stages(stages, features, train, dropout_key, present, {})
        return self._read(features, train, dropout_key, present, {})

    def gates(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        present: PresentModalities | None = None,
    ) -> tuple[PlacedGate, ...]:
        """Every gate without dropout, those inside branches included."""
        found: list[PlacedGate] = []
        features = self._first_stages(images, train, present, found)
        self._stages(range(self.num_stages), features, train, None, present, {}, found)
        return tuple(found)

    def features(
        self,
        images: Mapping[str, Images],
        *,
        train: bool,
        present: PresentModalities | None = None,
    ) -> list[dict[str, FeatureMap]]:
        """Features of each modality after every stage and its fusion, without dropout."""
        features = self._first_stages(images, train, present)
        found = []
        for number in range(self.num_stages):
            features = self._stages((number,), features, train, None, present, {})
            found.append(self._maps(features))
        return found

    def _stages(
        self,
        stages,
        features,
        train,
        dropout_key,
        present,
        seen: Intermediates,
        found=None,
        depth=None,
        rematerialise=False,
    ):
        during = {"train": train, "present": present, "found": found, "depth": depth}
        for number in stages:
            stage = functools.partial(
                DRIFANet._stage, number=number, dropout_key=dropout_key, **during
            )
            features, seen_here = _part(stage, self, features, rematerialise)
            seen |= seen_here
        return features

    def _stage(self, features, number, train, dropout_key, present, found, depth):
        """Features after a stage and its fusion, and what was seen there."""
        seen: Intermediates = {}
        name, row = f"stage_{number}", self.rows[number]
        # The first stages of all branches were run together, before any dropout.
        later = {m: (k,) for m, k in row.stages if k > 0}
        if self.reading is not None:
            # Before they go on rather than after they came, so that what an explanation
            # holds after a stage is all that the rest depends on.
            features = features | {
                _read_of(m, k - 1): mean_and_deviation(
                    features[m], self._kept(m, k - 1, dropout_key)
                )
                for m, (k,) in later.items()
                if k - 1 in self.reading.stages[m]
            }
        features = run_branches(
            self.branches, features, "stage", later, number, train, present, found, depth
        )
        seen |= {f"{name}/rra/{m}": features[m] for m, _ in row.stages}
        if not self.drops_at_heads:
            drops = {m for m, k in row.stages if self.plans[m][k].dropout}
            features = self._drop(features, dropout_key, name, drops)
        if not row.meets:
            return features, seen
        fused = self.fusion[name]({m: features[m] for m, _ in row.stages}, present)
        seen |= {f"{name}/{key}": x for key, x in fused.seen.items()}
        if found is not None:
            found += [dataclasses.replace(gate, stage=number) for gate in fused.gates]
        return features | fused.features, seen

    def _read(self, features, train, dropout_key, present, seen: Intermediates):
        pooled = self._pooled(features, train, dropout_key, present, seen)
        return self._answers(pooled, dropout_key, present, seen)

    def _pooled(self, features, train, dropout_key, present, seen: Intermediates):
        """What the heads read: modality -> `[b, num_features]`."""
        if not self.drops_at_heads:
            features = self._drop(features, dropout_key, "fused", set(self.modalities))
        maps = zero_absent(self._maps(features), present)
        pooled = {m: average_pool(maps[m]) for m in self.modalities}
        seen["pooled"] = jnp.concatenate(list(pooled.values()), -1)
        if self.reading is not None:
            read = {
                m: [
                    *(features[_read_of(m, k)] for k in stages[:-1]),
                    mean_and_deviation(maps[m], self._kept(m, stages[-1], dropout_key)),
                ]
                for m, stages in self.reading.stages.items()
            }
            # By modality it says which branches are frozen, and that the network is in training.
            pooled = self.reading(
                read, train=train if isinstance(train, bool) else True, present=present
            )
        return pooled

    def _answers(self, pooled, dropout_key, present, seen: Intermediates):
        """Logits by task."""
        if self.drops_at_heads:
            pooled = self._drop(pooled, dropout_key, "heads", set(self.modalities))
        logits = {}
        for task, head in self.heads.items():
            if not isinstance(head, ExpertReadout):
                logits[task] = head(pooled, present)
                continue
            said = head.opinions(pooled, present)
            logits[task] = said.logits
            seen[f"tempered/{task}"] = said.tempered
            seen |= {f"experts/{task}/{name}": x for name, x in said.experts.items()}
            seen |= {f"evidence/{task}/{name}": x for name, x in said.evidence.items()}
        return logits

    def _kept(self, modality, number, dropout_key) -> float:
        """Share of a map's elements that dropout left when it is read after a stage."""
        if dropout_key is None or self.drops_at_heads:
            return 1.0
        plan = self.plans[modality]
        # What heads read of the last stage is dropped once more.
        times = plan[number].dropout + (number == len(plan) - 1)
        return (1.0 - self.dropout_rate) ** times

    def _first_stages(self, images, train, present, found=None, depth=None, rematerialise=False):
        """From pixels to the features after each branch's stem and first stage."""
        if set(images) != set(self.modalities):
            raise ValueError(
                f"The network reads the modalities {sorted(self.modalities)} but got "
                f"{sorted(images)}."
            )
        images = {m: self.normalisations[m](images[m]).astype(self.dtype) for m in self.modalities}
        images = zero_absent(images, present)
        during = {"train": train, "present": present, "found": found, "depth": depth}
        calls = [("stem", dict.fromkeys(self.modalities, ()), STEM)]
        for number, row in enumerate(self.rows):
            calls.append(("stage", {m: (k,) for m, k in row.stages if k == 0}, number))
        features = images
        for method, of_branches, number in calls:
            if of_branches:
                first = functools.partial(
                    run_branches, method=method, calls=of_branches, number=number, **during
                )
                features = _part(first, self.branches, features, rematerialise)
        return features

    def _maps(self, features: Mapping[str, FeatureMap]) -> dict[str, FeatureMap]:
        """The features in which modalities meet, without tokens."""
        return {m: features[m] for m in self.modalities}

    def _drop(self, features, dropout_key, site, modalities):
        if dropout_key is None:
            return features
        return {
            m: monte_carlo_dropout(x, self.dropout_rate, stream(dropout_key, site, m))
            if m in modalities
            else x
            for m, x in features.items()
        }


def _part(part, module, features, rematerialise):
    """What a part of the network, a function of a module and features, makes of these."""
    return computed_again(part, module, features) if rematerialise else part(module, features)


def _read_of(modality: str, number: int) -> str:
    """Where what is read of a branch's stage goes along beside its map."""
    return f"{modality}/read/{number}"
