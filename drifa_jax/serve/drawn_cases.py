"""SYNTHETIC cases to try a network with that was trained on drawn ones."""

from __future__ import annotations

from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.predict.predictor import Predictor
from drifa_jax.serve.engine import AnyPredictor
from drifa_jax.serve.reading_case import png

COUNT = 12
SIDE = 256
"""Pixels; the network brings them to its own size, as any picture."""


class DrawnCases:
    """Test records of the phantoms that a run was trained on, drawn anew for each request.

    Args:
      source: of phantoms.
      names: modalities of the network.
    """

    def __init__(self, source: PhantomSource, names: tuple[str, ...]):
        self._source, self.names = source, names

    def picture(self, modality: str, number: int) -> bytes | None:
        """PNG; None where there is no such case."""
        if modality not in self.names or not 0 <= number < COUNT:
            return None
        return png(self._source[number].images[modality][..., 0])


def drawn_cases(predictor: AnyPredictor) -> DrawnCases | None:
    """None for a network that was trained on anything but phantoms."""
    if not isinstance(predictor, Predictor):
        return None
    config = predictor.restored.config.data
    specs = predictor.description.modalities
    if config.source != "phantoms" or not all(isinstance(spec, ModalitySpec) for spec in specs):
        return None
    source = PhantomSource("test", COUNT, config.phantoms.seed, SIDE)
    return DrawnCases(source, tuple(spec.name for spec in specs))
