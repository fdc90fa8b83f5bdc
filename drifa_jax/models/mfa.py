"""MFA, multi-branch fusion attention: refines the features of one modality.

MFA = HIFA + CLIA (Dhar et al., WACV 2025, section 3.2 and Fig. 2). Each part reads the whole
feature map and answers with one weight per channel; a learned mixture of the two answers
multiplies the map.

    x ──┬─ HIFA ─ gate_bc ─ a ─┐
        ├─ CLIA ─ gate_bc ─ b ─┴─ sigmoid ─ alpha ─┐
        └──────────────────────────────────────── × ── y

All 1x1 convolutions are matrices over the channel axis, so any number of spatial axes works.
Pixel-wise arithmetic runs in `dtype`; pooled vectors and gates are always float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.initial import ones
from drifa_jax.models.kernels.attention_pools import (
    HIFAPools,
    are_side_by_side,
    attention_pools,
    clia_pool,
    hifa_pools,
)
from drifa_jax.models.kernels.record_by_record import refined_by_record
from drifa_jax.models.kernels.refined_and_normalised import is_in_one_go, refined_and_normalised
from drifa_jax.models.kernels.tracing import jit
from drifa_jax.models.pointwise import Pointwise, Weights, pointwise
from drifa_jax.models.pooling import over_space
from drifa_jax.typing import FeatureMap, Gate, Pooled, Present


def hifa_gate(
    conv1: Weights,
    conv2: Weights,
    conv3: Weights,
    conv4: Weights,
    dense: Weights,
    x: FeatureMap,
) -> Gate:
    """Hierarchical information fusion attention (HIFA) gate.

    Four 1x1 convolutions in a row, each through a sigmoid, see the map at growing depth; the
    third also reads the first again. Shallow features are pooled by average and by maximum,
    deep ones likewise, and one dense layer weighs shallow against deep.

    Args:
      conv1: first of the four 1x1 convolutions `c -> c`.
      conv2: reads the first gate map.
      conv3: reads the sum of the first and second gate maps.
      conv4: reads the third gate map.
      dense: `2c -> c`, reads `[shallow ; deep]`.
      x: features of one modality.

    Returns:
      One weight per channel in (0, 1), float32.

    Source: section 3.2, Fig. 2 (HIFA). Departure: none in value. The maximum of the fourth
    map is taken before its sigmoid, which is increasing, so the sigmoid of that map is only
    computed at `c` places a record; the sum of the third and fourth maps, which the authors'
    implementation forms and never reads, is left out.
    Test: tests/models/test_mfa.py.
    """
    return _hifa_gate_of(hifa_pools((conv1, conv2, conv3, conv4), x), dense)


def _hifa_gate_of(pools: HIFAPools, dense: Weights) -> Gate:
    average1_bc, max2_bc, average3_bc, max4_bc = pools
    shallow_bc = average1_bc + max2_bc
    deep_bc = average3_bc + jax.nn.sigmoid(max4_bc)
    return jax.nn.sigmoid(pointwise(jnp.concatenate([shallow_bc, deep_bc], axis=-1), dense))


def clia_gate(conv1: Weights, conv2: Weights, x: FeatureMap) -> Gate:
    """Channel-wise local information attention (CLIA) gate.

    A 1x1 convolution is averaged over space, a second one reads that average, and the two
    are added: channels that respond anywhere in the image are raised, one weight each.

    Args:
      conv1: 1x1 convolution `c -> c` on the map, followed by a sigmoid here.
      conv2: 1x1 convolution `c -> c` on the pooled vector, followed by a sigmoid here.
      x: features of one modality.

    Returns:
      One weight per channel in (0, 2), float32.

    Source: section 3.2, Fig. 2 (CLIA). Departure: the authors' implementation averages the
    second map over space again, which changes nothing on a map that is one pixel large.
    Test: tests/models/test_mfa.py.
    """
    return _clia_gate_of(clia_pool(conv1, x), conv2)


def _clia_gate_of(first_bc: Pooled, conv2: Weights) -> Gate:
    return first_bc + jax.nn.sigmoid(pointwise(first_bc, conv2))


class HIFA(nnx.Module):
    """Weights of `hifa_gate`: `conv1..conv4` and `dense`.

    Args:
      num_channels: channels `c` of the map.
      dtype: of the pixel-wise arithmetic; parameters are float32 always.
      rngs: key of the initial weights.
    """

    def __init__(self, num_channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.conv1 = Pointwise(num_channels, num_channels, dtype, rngs=rngs)
        self.conv2 = Pointwise(num_channels, num_channels, dtype, rngs=rngs)
        self.conv3 = Pointwise(num_channels, num_channels, dtype, rngs=rngs)
        self.conv4 = Pointwise(num_channels, num_channels, dtype, rngs=rngs)
        self.dense = Pointwise(2 * num_channels, num_channels, rngs=rngs)

    def __call__(self, x: FeatureMap) -> Gate:
        return hifa_gate(*self.weights, x)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """Of `conv1..conv4` and `dense`."""
        layers = (self.conv1, self.conv2, self.conv3, self.conv4, self.dense)
        return tuple(layer.weights for layer in layers)


class CLIA(nnx.Module):
    """Weights of `clia_gate`: `conv1` and `conv2`.

    Args:
      num_channels: channels `c` of the map.
      dtype: of the pixel-wise arithmetic; parameters are float32 always.
      rngs: key of the initial weights.
    """

    def __init__(self, num_channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.conv1 = Pointwise(num_channels, num_channels, dtype, rngs=rngs)
        self.conv2 = Pointwise(num_channels, num_channels, rngs=rngs)

    def __call__(self, x: FeatureMap) -> Gate:
        return clia_gate(*self.weights, x)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """Of `conv1` and `conv2`."""
        return self.conv1.weights, self.conv2.weights


class MFA(nnx.Module):
    """Multi-branch fusion attention: `y = x * sigmoid(a * HIFA(x) + b * CLIA(x)) * alpha`.

    A drop-in layer for any Flax NNX network; shapes in and out are equal:

        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from drifa_jax.models.mfa import MFA
        >>> mfa = MFA(16, rngs=nnx.Rngs(params=jax.random.key(0)))
        >>> mfa(jnp.ones([2, 8, 8, 16])).shape
        (2, 8, 8, 16)

    Args:
      num_channels: channels `c` of the map.
      hifa: whether the HIFA part is present (off for ablations).
      clia: whether the CLIA part is present (off for ablations).
      dtype: of the pixel-wise arithmetic; parameters and gates are float32 always.
      rngs: key of the initial weights.

    Parameters: `hifa_scale` (`a`, a scalar), `clia_scale` (`b`, per channel) and `alpha` (per
    channel), all ones at the start.

    Raises:
      ValueError: if both parts are off, or the input's channels differ from `num_channels`.

    Source: section 3.2, Fig. 2. The outer sigmoid over gates that already went through one is
    the authors' implementation.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        hifa: bool = True,
        clia: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not (hifa or clia):
            raise ValueError("MFA needs HIFA, CLIA or both; to switch both off, leave MFA out.")
        self.num_channels = num_channels
        self.dtype = dtype
        self.hifa = HIFA(num_channels, dtype=dtype, rngs=rngs) if hifa else None
        self.clia = CLIA(num_channels, dtype=dtype, rngs=rngs) if clia else None
        self.hifa_scale = nnx.Param(ones()) if hifa else None
        self.clia_scale = nnx.Param(ones(num_channels)) if clia else None
        self.alpha = nnx.Param(ones(num_channels))

    def gates(self, x: FeatureMap) -> Mapping[str, Gate]:
        """The weight maps `hifa`, `clia` (of the parts present) and their union `gate`."""
        return self.attend(x)[1]

    def attend(self, x: FeatureMap) -> tuple[FeatureMap, Mapping[str, Gate]]:
        """The refined map together with the gates that refined it."""
        self._check(x)
        return _refine(*self._weights(), x, self.dtype)

    def attend_and_normalise(
        self,
        norm: BatchNorm,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None,
        rectified: bool,
    ) -> tuple[FeatureMap, Mapping[str, Gate]]:
        """The refined map through a batch norm and, if `rectified`, a ReLU; and the gates."""
        if not (train and is_in_one_go(x)):
            y, gates = self.attend(x)
            y = norm(y, train=train, present=present)
            return jax.nn.relu(y) if rectified else y, gates
        self._check(x)
        of_norm = (norm.scale[...], norm.bias[...], present, norm.epsilon)
        y, gates, statistics = _refine_and_normalise(
            *self._weights(), x, self.dtype, *of_norm, rectified
        )
        norm.remember(x, *statistics, present)
        return y, gates

    def _check(self, x: FeatureMap) -> None:
        if x.shape[-1] != self.num_channels:
            raise ValueError(
                f"MFA was built for {self.num_channels} channels but got a map of shape {x.shape}."
            )

    def _weights(self) -> tuple[dict[str, Any], jax.Array]:
        parts = {}
        if self.hifa is not None:
            parts["hifa"] = (self.hifa.weights, self.hifa_scale[...])
        if self.clia is not None:
            parts["clia"] = (self.clia.weights, self.clia_scale[...])
        return parts, self.alpha[...]

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """The refined map, shaped as `x`."""
        return self.attend(x)[0]


@functools.partial(jit, static_argnums=(3,))
def _refine(parts, alpha, x, dtype):
    """MFA as a function of its weights. Under `jit`, so that equal shapes are traced once."""
    return refined_by_record(functools.partial(_gates, dtype), _apply, (parts, alpha), x)


@functools.partial(jit, static_argnums=(3, 7, 8))
def _refine_and_normalise(parts, alpha, x, dtype, scale, bias, present, epsilon, rectified):
    """MFA and the batch norm after it."""
    gates, weights = functools.partial(_gates, dtype), (parts, alpha)
    of_norm = (scale, bias, present, epsilon, rectified)
    return refined_and_normalised(gates, _scaled_gate, weights, x, *of_norm)


def _gates(dtype, weights, x):
    parts, _ = weights
    gates = _part_gates({name: of_part for name, (of_part, _) in parts.items()}, x.astype(dtype))
    weighted = [parts[name][1].reshape(1, -1) * gates[name] for name in GATES if name in parts]
    return gates | {"gate": jax.nn.sigmoid(add_all(weighted))}


def _part_gates(parts, x):
    if len(parts) == 2 and are_side_by_side():
        *convs, dense = parts["hifa"]
        conv1, conv2 = parts["clia"]
        pools, first_bc = attention_pools(tuple(convs), conv1, x)
        return {"hifa": _hifa_gate_of(pools, dense), "clia": _clia_gate_of(first_bc, conv2)}
    return {name: gate(*parts[name], x) for name, gate in GATES.items() if name in parts}


GATES = {"hifa": hifa_gate, "clia": clia_gate}
"""Part -> its gate."""


def _apply(weights, gates, x):
    return x * over_space(_scaled_gate(weights, gates), x)


def _scaled_gate(weights, gates):
    _, alpha = weights
    return gates["gate"] * alpha[None]


def add_all(terms: Sequence[jax.Array]) -> jax.Array:
    """The sum of at least one array, without a zero of a dtype of its own."""
    return functools.reduce(jnp.add, terms)
