"""Physical values as 8 bits."""

from __future__ import annotations

import numpy as np


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values from `low` to `high` as 0..255, clipped outside."""
    span = max(float(high) - float(low), 1e-6)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / span)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
