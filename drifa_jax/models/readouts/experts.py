"""Product of experts: a head for each modality and one for all, combined in log space."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from drifa_jax.models.mfa import add_all
from drifa_jax.models.pointwise import Pointwise
from drifa_jax.models.readouts.contract import Opinions
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import Logits, Pooled, Present

FUSED = "fused"
"""The expert that reads all modalities; the others are named by their modality."""

STARTING_TEMPERATURE = 2.0
"""At 2 the answer is the geometric mean of the product of the modalities' experts and of the
fused expert, which together have seen everything twice."""


class ExpertHeads(nnx.Module):
    """A linear head for each modality and one for all of them, as independent witnesses.

    With the class prior `pi` and the experts e that a record has,

        log p = log pi + sum_e (log p_e - log pi) / T_e, normalised,

    so that an expert counts by what it adds to the prior, and one that knows no more than the
    prior changes nothing. All start so: `log p_e = log pi + W_e x + b_e` with W and b at 0. At
    `T_e = 1` this is `sum_e log p_e - (E - 1) log pi`, Bayes' rule for E experts whose evidence
    is independent given the class. An absent modality is an absent factor, exactly; the fused
    expert reads zeros in its place, as the paper's head does.

    Parameters: `linear` (expert -> layer) and `log_temperatures` (expert -> scalar, log 2 at the
    start). Statistics: `log_prior` `[num_classes]`, uniform until training sets it to that of the
    training records (`train/starting_weights.py`).

    Source: Hinton, "Training products of experts by minimizing contrastive divergence", 2002, for
    the product; Bishop, "Pattern Recognition and Machine Learning", section 1.5.4, for dividing
    by the prior. The temperatures and the fused expert are additions.

    Raises:
      ValueError: for a task of one class, or a modality that has the name of the fused expert.
    """

    def __init__(
        self,
        num_features: Mapping[str, int],
        num_classes: int,
        *,
        options: NetworkOptions | None = None,
        rngs: nnx.Rngs,
    ):
        if num_classes < 2:
            raise ValueError(
                f"The readout 'experts' weighs classes against each other and a task has "
                f"{num_classes}; describe it by two classes or more, or choose another readout."
            )
        if FUSED in num_features:
            raise ValueError(
                f"The readout 'experts' calls its own expert {FUSED!r}; rename that modality."
            )
        widths = dict(num_features) | {FUSED: sum(num_features.values())}
        self.linear = nnx.Dict(
            {e: Pointwise(width, num_classes, rngs=rngs) for e, width in widths.items()}
        )
        for e, width in widths.items():
            # Drawn kernels would add noise that few records never unlearn, once for each expert.
            self.linear[e].kernel = nnx.Param(jnp.asarray(np.zeros((width, num_classes), "f4")))
        self.log_temperatures = nnx.Dict(
            {e: nnx.Param(jnp.asarray(np.float32(math.log(STARTING_TEMPERATURE)))) for e in widths}
        )
        uniform = np.full(num_classes, -math.log(num_classes), np.float32)
        self.log_prior = nnx.BatchStat(jnp.asarray(uniform))

    def __call__(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None = None
    ) -> Logits:
        """Log probabilities but for a constant of each record, `[b, num_classes]` float32."""
        return self.opinions(pooled, present).logits

    def opinions(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None = None
    ) -> Opinions:
        """What each expert says, and the product of it all.

        Args:
          pooled: modality -> `[b, num_features]`.
          present: modality -> `[b]` bool, or None when every record holds every modality.
        """
        fused = {FUSED: jnp.concatenate(list(pooled.values()), -1)}
        log_prior = lax.stop_gradient(self.log_prior[...])[None]
        experts = {e: log_prior + self.linear[e](x) for e, x in (dict(pooled) | fused).items()}
        evidence = self._evidence(experts, present)
        detached = {e: lax.stop_gradient(logits) for e, logits in experts.items()}
        return Opinions(
            self._product(evidence),
            experts,
            evidence,
            self._product(self._evidence(detached, present)),
        )

    def _evidence(self, experts, present):
        """What each expert adds to the log prior; a constant of each record is left in."""
        log_prior = lax.stop_gradient(self.log_prior[...])[None]
        evidence = {}
        for e, logits in experts.items():
            factor = (logits - log_prior) * jnp.exp(-self.log_temperatures[e][...])
            if present is not None and e in present:
                factor = jnp.where(present[e][:, None], factor, jnp.zeros_like(factor))
            evidence[e] = factor
        return evidence

    def _product(self, evidence: Mapping[str, jax.Array]) -> Logits:
        return lax.stop_gradient(self.log_prior[...])[None] + add_all(list(evidence.values()))
