"""The fused features in two dimensions, as neighbourhoods (paper, Fig. 5).

t-SNE keeps neighbours together and little else: distances between clusters, their sizes and
their places mean nothing, and clusters can appear where there are none.

Source: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008, by scikit-learn.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

from drifa_jax.explain.members import Pixels, Present, masks, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored

LARGEST_PERPLEXITY = 30.0
FEWEST_RECORDS = 4
FEW_RECORDS = 1000
"""Below which threads of t-SNE wait for each other longer than they work: on cores that others use
as well, 90 records took 75 s by two threads and 4 s by one, to the same places."""


def fused_features(
    restored: Restored, pixels: Pixels, *, present: Present | None = None
) -> np.ndarray:
    """What the heads read, `[e, b, features]` float32."""
    function = _compiled(restored.network)
    return over_members(restored, function, dict(pixels), masks(restored, present))


def embed(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """t-SNE of features `[b, n]` of one member: `[b, 2]`, the same for the same seed.

    Features are standardised, so that a channel's scale does not decide who is near.

    Raises:
      ValueError: for fewer than `FEWEST_RECORDS` records, or features that are not finite.

    Test: tests/explain/test_embedding.py.
    """
    # Imported here: scikit-learn's manifold module is slow to load.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < FEWEST_RECORDS:
        raise ValueError(f"features are {features.shape}; give {FEWEST_RECORDS} records or more.")
    if not np.isfinite(features).all():
        raise ValueError("features hold values that are not finite.")
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    perplexity = min(LARGEST_PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, learning_rate="auto")
    with threadpool_limits(1 if len(scaled) < FEW_RECORDS else None):
        return tsne.fit_transform(scaled).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _compiled(network: Functional):
    def pooled(params, statistics, pixels, present):
        (_, seen), _ = network.apply(
            params, statistics, scale_pixels(pixels), train=False, present=present
        )
        return seen["pooled"]

    return jax.jit(pooled)
