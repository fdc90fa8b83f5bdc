"""The paper's readout beside heads that only help to train the branches."""

from __future__ import annotations

from collections.abc import Mapping

from drifa_jax.models.readouts.contract import Opinions
from drifa_jax.models.readouts.experts import FUSED, ExpertHeads
from drifa_jax.typing import Pooled, Present


class AuxiliaryHeads(ExpertHeads):
    """`ExpertHeads` in all that is trained, `ConcatenatedHead` in what is answered.

    The fair reference for a product of experts: what differs is the product alone.

    Source: none in the paper; auxiliary losses of modalities are those of Wang et al., "What makes
    training multi-modal classification networks hard?", CVPR 2020, without their weights.
    """

    def opinions(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None = None
    ) -> Opinions:
        """What each head says; the answer is that of the fused one."""
        said = super().opinions(pooled, present)
        fused = said.experts[FUSED]
        return Opinions(fused, said.experts, {FUSED: fused}, fused)
