"""MIFA, multimodal information fusion attention: refines all modalities by each other.

MIFA = MGIFA + MLIFA (Dhar et al., WACV 2025, section 3.3 and Fig. 3). Modalities are pooled
over space, summed, and answered with one weight per channel that every modality shares; a
scale per modality lets each take it differently. Because only pooled vectors meet, modalities
may differ in size and rank.

Where modalities differ in channels too, pooled vectors are projected to the width of the widest,
in which they are added as before, and the gate is projected back to each modality's own. The
projections start as the identity, stretched: a gate repeats or skips channels.

A record may lack a modality. `present` says which it holds: pools run over present modalities
alone, and whatever fills the place of an absent one, NaN included, reaches neither the gate
nor its gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drifa_jax.models.initial import ones
from drifa_jax.models.kernels.extremes import max_pool, min_pool
from drifa_jax.models.kernels.record_by_record import pooled_by_record
from drifa_jax.models.kernels.tracing import jit
from drifa_jax.models.mfa import add_all
from drifa_jax.models.pointwise import Pointwise, Weights, pointwise
from drifa_jax.models.pooling import average_pool, over_space
from drifa_jax.typing import FeatureMap, Gate, Pooled, Present

Features = Mapping[str, FeatureMap]
PresentModalities = Mapping[str, Present]


def zero_absent(features: Features, present: PresentModalities | None) -> Features:
    """Replaces whatever fills the place of an absent modality by zeros, which no gate reads.

    Masking a pool alone would stop NaN in the value but not in the gradient, where zero times
    NaN is NaN.
    """
    if present is None:
        return features
    return {
        m: jnp.where(present[m].reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        for m, x in features.items()
    }


def mgifa_gate(
    dense: Weights,
    features: Features,
    present: PresentModalities | None,
    projections: Mapping[str, Weights] | None = None,
) -> Gate:
    """Multimodal global information fusion attention (MGIFA) gate.

    For each of minimum, average and maximum: pool every modality, add the modalities, and
    read the sum through one dense layer and a sigmoid. The layer is shared by the three
    pools, whose answers are added.

    Args:
      dense: `c -> c`, shared by the three pools.
      features: modality -> features with `c` channels; sizes may differ.
      present: modality -> `[b]` bool, or None when every record holds every modality.
      projections: modality -> `c_m -> c`, of those that have another number of channels.

    Returns:
      One weight per channel in (0, 3), float32.

    Source: section 3.3, Fig. 3b. Departure: none; `present` and `projections` are new here.
    Test: tests/models/test_mifa.py.
    """
    pooled_pbc = jnp.stack(
        [
            _sum_over_present(
                _projected({m: pool(x) for m, x in features.items()}, projections), present
            )
            for pool in (min_pool, average_pool, max_pool)
        ]
    )
    return jnp.sum(jax.nn.sigmoid(pointwise(pooled_pbc, dense)), axis=0)


def mlifa_gate(
    convs: Mapping[str, Weights],
    features: Features,
    present: PresentModalities | None,
    projections: Mapping[str, Weights] | None = None,
) -> Gate:
    """Multimodal local information fusion attention (MLIFA) gate.

    Every modality goes through its own 1x1 convolution and a sigmoid; minimum, average and
    maximum over space of all modalities are added.

    Args:
      convs: modality -> 1x1 convolution `c -> c`, or `c_m -> c_m`.
      features: modality -> features with `c` channels; sizes may differ.
      present: modality -> `[b]` bool, or None when every record holds every modality.
      projections: modality -> `c_m -> c`, of those that have another number of channels.

    Returns:
      One weight per channel in (0, 3 M) for M modalities of equal channels, float32.

    Source: section 3.3, Fig. 3c. Departure: none in value; minimum and maximum are taken
    before the sigmoid, which is increasing. `present` and `projections` are new here.
    Test: tests/models/test_mifa.py.
    """
    pooled = {m: pooled_by_record(mlifa_pools, convs[m], x) for m, x in features.items()}
    return _sum_over_present(_projected(pooled, projections), present)


def mlifa_pools(conv: Weights, x: FeatureMap) -> Pooled:
    """Minimum + average + maximum over space of `sigmoid(conv x)`, `[b, c]` in float32."""
    local = pointwise(x, conv)
    return (
        jax.nn.sigmoid(min_pool(local))
        + average_pool(jax.nn.sigmoid(local))
        + jax.nn.sigmoid(max_pool(local))
    )


class MGIFA(nnx.Module):
    """Weights of `mgifa_gate`: `dense`, and `projections` where channels differ.

    Args:
      channels: modality -> channels of its maps.
      rngs: key of the initial weights.
    """

    def __init__(self, channels: Mapping[str, int], *, rngs: nnx.Rngs):
        width = max(channels.values())
        self.dense = Pointwise(width, width, rngs=rngs)
        self.projections = _projections(channels, rngs)

    def __call__(self, features: Features, present: PresentModalities | None = None) -> Gate:
        dense, projections = self.weights
        return mgifa_gate(dense, features, present, projections)

    @property
    def weights(self) -> tuple[Weights, dict[str, Weights]]:
        """Of `dense` and `projections`."""
        return self.dense.weights, _weights(self.projections)


class MLIFA(nnx.Module):
    """Weights of `mlifa_gate`: `convs`, one per modality, and `projections` where channels differ.

    Args:
      channels: modality -> channels of its maps.
      dtype: of the pixel-wise arithmetic; parameters are float32 always.
      rngs: key of the initial weights.
    """

    def __init__(self, channels: Mapping[str, int], *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.convs = nnx.Dict({m: Pointwise(c, c, dtype, rngs=rngs) for m, c in channels.items()})
        self.projections = _projections(channels, rngs)

    def __call__(self, features: Features, present: PresentModalities | None = None) -> Gate:
        convs, projections = self.weights
        return mlifa_gate(convs, features, present, projections)

    @property
    def weights(self) -> tuple[dict[str, Weights], dict[str, Weights]]:
        """Of `convs` and `projections`."""
        return _weights(self.convs), _weights(self.projections)


class MIFA(nnx.Module):
    """Multimodal information fusion attention over named modalities.

    `y_m = x_m * sigmoid(a * MGIFA + b * MLIFA) * alpha_m`

    A drop-in layer between the branches of any multimodal Flax NNX network:

        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from drifa_jax.models.mifa import MIFA
        >>> mifa = MIFA(["mri", "ct"], 16, rngs=nnx.Rngs(params=jax.random.key(0)))
        >>> y = mifa({"mri": jnp.ones([2, 8, 8, 16]), "ct": jnp.ones([2, 4, 6, 16])})
        >>> y["ct"].shape
        (2, 4, 6, 16)

    Args:
      modalities: names of the modalities, at least one.
      num_channels: channels `c` of every map, or modality -> channels of its maps.
      mgifa: whether the MGIFA part is present (off for ablations).
      mlifa: whether the MLIFA part is present (off for ablations).
      dtype: of the pixel-wise arithmetic; parameters and gates are float32 always.
      rngs: key of the initial weights.

    Parameters: `mgifa_scale` (`a`, a scalar), `mlifa_scale` (`b`, per channel) and `alpha`
    (modality -> per channel), all ones at the start. Where channels differ, the scales and parts
    have those of the widest, `c`, and modalities with others have `backs`, `c -> c_m`:

    `y_m = x_m * sigmoid(back_m(a * MGIFA + b * MLIFA)) * alpha_m`

    Raises:
      ValueError: if both parts are off, there is no modality, or the maps' names or channels
        are not those that the module was built for.

    Source: section 3.3, Fig. 3a; unequal channels are not in the paper. The outer sigmoid over sums
    of sigmoids is the authors' implementation; at the start it leaves the gate near one.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        num_channels: int | Mapping[str, int],
        *,
        mgifa: bool = True,
        mlifa: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not (mgifa or mlifa):
            raise ValueError("MIFA needs MGIFA, MLIFA or both; to switch both off, leave MIFA out.")
        if not modalities:
            raise ValueError("MIFA needs the name of at least one modality.")
        if isinstance(num_channels, int):
            num_channels = dict.fromkeys(modalities, num_channels)
        channels = {m: num_channels[m] for m in modalities}
        width = max(channels.values())
        self.dtype = dtype
        self.mgifa = MGIFA(channels, rngs=rngs) if mgifa else None
        self.mlifa = MLIFA(channels, dtype=dtype, rngs=rngs) if mlifa else None
        self.mgifa_scale = nnx.Param(ones()) if mgifa else None
        self.mlifa_scale = nnx.Param(ones(width)) if mlifa else None
        self.backs = nnx.Dict(
            {m: _stretched(width, c, rngs) for m, c in channels.items() if c != width}
        )
        self.alpha = nnx.Dict({m: nnx.Param(ones(c)) for m, c in channels.items()})

    def gates(
        self, features: Features, present: PresentModalities | None = None
    ) -> Mapping[str, Gate]:
        """The weight maps `mgifa`, `mlifa` (of the parts present) and their union `gate`.

        Where channels differ, the union is `gate/<modality>` of each.
        """
        return self.attend(features, present)[1]

    def attend(
        self, features: Features, present: PresentModalities | None = None
    ) -> tuple[dict[str, FeatureMap], Mapping[str, Gate]]:
        """The refined maps by modality (zero where absent) and the gates that refined them."""
        self._check(features)
        parts = {}
        if self.mgifa is not None:
            parts["mgifa"] = (self.mgifa.weights, self.mgifa_scale[...])
        if self.mlifa is not None:
            parts["mlifa"] = (self.mlifa.weights, self.mlifa_scale[...])
        alpha = {m: self.alpha[m][...] for m in features}
        return _refine(parts, _weights(self.backs), alpha, dict(features), present, self.dtype)

    def __call__(
        self, features: Features, present: PresentModalities | None = None
    ) -> dict[str, FeatureMap]:
        """The refined maps by modality, each shaped as its input."""
        return self.attend(features, present)[0]

    def _check(self, features: Features) -> None:
        if set(features) != set(self.alpha):
            raise ValueError(
                f"MIFA was built for the modalities {sorted(self.alpha)} but got "
                f"{sorted(features)}; an absent modality is passed with `present` False."
            )
        for modality, x in features.items():
            num_channels = self.alpha[modality].shape[0]
            if x.shape[-1] != num_channels:
                raise ValueError(
                    f"MIFA was built for {num_channels} channels but {modality!r} has "
                    f"shape {x.shape}."
                )


@functools.partial(jit, static_argnums=(5,))
def _refine(parts, backs, alpha, features, present, dtype):
    """MIFA as a function of its weights. Under `jit`, so that equal shapes are traced once."""
    features = zero_absent(features, present)
    maps = {m: x.astype(dtype) for m, x in features.items()}
    gates: dict[str, Gate] = {}
    weighted: list[Gate] = []
    for name, gate in (("mgifa", mgifa_gate), ("mlifa", mlifa_gate)):
        if name in parts:
            (weights, projections), scale = parts[name]
            gates[name] = gate(weights, maps, present, projections)
            weighted.append(scale.reshape(1, -1) * gates[name])
    mixed = add_all(weighted)
    if not backs:
        gates["gate"] = jax.nn.sigmoid(mixed)
        own = dict.fromkeys(features, gates["gate"])
    else:
        own = {
            m: jax.nn.sigmoid(pointwise(mixed, backs[m]) if m in backs else mixed) for m in features
        }
        gates |= {f"gate/{m}": gate for m, gate in own.items()}
    refined = {m: x * over_space(own[m] * alpha[m][None], x) for m, x in features.items()}
    return refined, gates


def _stretched(num_in: int, num_out: int, rngs: nnx.Rngs) -> Pointwise:
    """A projection that starts by giving each channel one of the input's, evenly spread."""
    projection = Pointwise(num_in, num_out, rngs=rngs)
    source = np.arange(num_out) * num_in // num_out
    start = np.zeros((num_in, num_out), np.float32)
    start[source, np.arange(num_out)] = 1.0
    projection.kernel = nnx.Param(jnp.asarray(start))
    return projection


def _projections(channels: Mapping[str, int], rngs: nnx.Rngs) -> nnx.Dict:
    """To the widest, of modalities that are not as wide."""
    width = max(channels.values())
    return nnx.Dict({m: _stretched(c, width, rngs) for m, c in channels.items() if c != width})


def _weights(layers: Mapping[str, Pointwise]) -> dict[str, Weights]:
    return {m: layer.weights for m, layer in layers.items()}


def _projected(
    pooled: Mapping[str, Pooled], projections: Mapping[str, Weights] | None
) -> dict[str, Pooled]:
    """Pooled vectors in the common width; those that have it already stay as they are."""
    own = projections or {}
    return {m: pointwise(x, own[m]) if m in own else x for m, x in pooled.items()}


def _sum_over_present(pooled: Mapping[str, Pooled], present: PresentModalities | None) -> Pooled:
    """Adds modalities, leaving out the absent ones of each record."""
    if present is not None:
        pooled = {
            m: jnp.where(present[m][:, None], p, jnp.zeros((), p.dtype)) for m, p in pooled.items()
        }
    return add_all(list(pooled.values()))
