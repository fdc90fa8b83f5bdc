"""Which network this is: a digest of its weights and of what they read and answer.

Whatever is kept beside a run and depends on its network (post-processing, half-finished
evaluations) carries this identity, so that nothing of other weights is taken for its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import numpy as np

from drifa_jax.predict.restored import Restored


def identity_of(restored: Restored) -> str:
    """32 hexadecimal digits, the same wherever the same network is restored.

    Test: tests/predict/test_predictor.py.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = [restored.description.to_json(), dataclasses.asdict(restored.config.model)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((restored.params, restored.statistics)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
