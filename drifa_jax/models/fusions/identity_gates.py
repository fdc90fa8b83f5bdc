"""Gates that start as the identity: within each modality, then across all of them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.fusions.contract import Features, Fused
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.initial import glorot_uniform, zeros
from drifa_jax.models.mfa import add_all
from drifa_jax.models.mifa import zero_absent
from drifa_jax.models.pointwise import Pointwise
from drifa_jax.models.pooling import average_pool, over_space
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Gate, Pooled, Present

EPSILON = 1e-6


class IdentityGates(nnx.Module):
    """`y_m = x_m * (1 + tanh(s_m) g_m) * (1 + tanh(t_m) h_m)`, of the parts in the options.

    With `p_m` the average of `x_m` over space, brought to a mean square of 1, and rank r:

        within:  g_m = tanh(U_m relu(D_m p_m))
        across:  h_m = tanh(V_m relu(sum of E_n p_n over the modalities n that a record has))

    `D` and `E` are `c -> r`, `U` and `V` are `r -> c` with a bias. A gate lies in (0, 2): it can
    raise a channel or shut it off, which the paper's, at 0.98 of a possible 1 at the start, do
    hardly. `s` and `t`, one number a channel, start at 0, so that every gate is 1 and features of
    pretrained branches come through untouched, bit by bit, until training finds a use for it. An
    absent modality adds nothing to the sum and leaves nothing of its own.

    Source: squeeze-and-excitation (Hu et al., CVPR 2018) for pooling, low rank and gates a
    channel; the zero at the start is that of ReZero (Bachlechner et al., UAI 2021). Departures:
    tanh in place of the sigmoid, the strength, the mean square of 1, a sum over modalities.
    Modalities may differ in channels, size and rank.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        last: bool,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        rank, parts = options.gate_rank, options.gate_parts
        self.within = nnx.Dict(
            {m: _Gate(c, rank, rngs=rngs) for m, c in channels.items()} if "within" in parts else {}
        )
        self.across = nnx.Dict(
            {m: _Gate(c, rank, rngs=rngs) for m, c in channels.items()} if "across" in parts else {}
        )

    def __call__(self, features: Features, present: Mapping[str, Present] | None) -> Fused:
        """Gated maps by modality, zero where absent."""
        features = zero_absent(features, present)
        refined, gates = dict(features), []
        if self.within:
            for m, gate in self.within.items():
                values = gate.values(gate.read(refined[m]))
                refined[m] = _gated(refined[m], values)
                gates.append(_placed(values, "within", m))
        if self.across:
            read = {m: gate.read(refined[m]) for m, gate in self.across.items()}
            # An absent modality pools to zero, which the bias-free layer reads as nothing.
            hidden = add_all(list(read.values()))
            for m, gate in self.across.items():
                values = gate.values(hidden)
                refined[m] = _gated(refined[m], values)
                gates.append(_placed(values, "across", m))
        seen = {f"{gate.kind}/{gate.modality}/gate": gate.values for gate in gates}
        return Fused(refined, seen, tuple(gates))


class _Gate(nnx.Module):
    """The low-rank layers and the strength of one gate."""

    def __init__(self, num_channels: int, rank: int, *, rngs: nnx.Rngs):
        self.down = nnx.Param(glorot_uniform(rngs.params(), (num_channels, rank)))
        self.up = Pointwise(rank, num_channels, rngs=rngs)
        self.strength = nnx.Param(zeros(num_channels))

    def read(self, x: FeatureMap) -> Pooled:
        """`[b, rank]`, zero for a map of zeros."""
        pooled = average_pool(x)
        scale = jax.lax.rsqrt(jnp.mean(pooled * pooled, axis=-1, keepdims=True) + EPSILON)
        return (pooled * scale) @ self.down[...]

    def values(self, hidden: Pooled) -> Gate:
        """`1 + tanh(strength) tanh(up(relu(hidden)))`, `[b, c]`."""
        return 1.0 + jnp.tanh(self.strength[...])[None] * jnp.tanh(self.up(jax.nn.relu(hidden)))


def _gated(x: FeatureMap, values: Gate) -> FeatureMap:
    return x * over_space(values, x)


def _placed(values: Gate, kind: str, modality: str) -> PlacedGate:
    return PlacedGate(
        values, {modality: jnp.ones(values.shape[-1], values.dtype)}, kind, modality=modality
    )
