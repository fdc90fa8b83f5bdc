"""What a network would say of a record if it lacked one of its modalities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drifa_jax.explain.members import Pixels, Present
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predictions.table import Predictions


def without_each(
    predictor: Predictor, record_id: str, pixels: Pixels, present: Present
) -> Mapping[str, Predictions]:
    """Modality -> the answers to the record with that modality taken away.

    The masks of the samples are those of the whole record, so that answers differ by what was
    taken away and by nothing else.

    Args:
      predictor: a run or an ensemble. If it was trained on records that hold everything
        (`description.may_lack_modalities`), what it says here is an extrapolation.
      record_id: of the one record.
      pixels: modality -> `[1, ...]`, as `Predictor.read` gives them.
      present: modality -> `[1]` bool.

    Returns:
      Predictions of one record each; empty where the record holds one modality alone.

    Test: tests/explain/test_without.py.
    """
    held = [name for name, has in present.items() if has[0]]
    if len(held) < 2:
        return {}
    count = len(held)
    several = {name: np.repeat(np.asarray(x), count, axis=0) for name, x in pixels.items()}
    kept = {
        name: np.array([has[0] and name != absent for absent in held])
        for name, has in present.items()
    }
    answers = predictor.predict(several, kept, [record_id] * count)
    return {name: answers.take([row]) for row, name in enumerate(held)}
