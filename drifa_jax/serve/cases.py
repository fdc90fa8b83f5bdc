"""A case on its way through the server, and the few that are kept for their explanation."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.predictions.table import Predictions


@dataclass(frozen=True)
class Case:
    """What the network reads of one record.

    Attributes:
      record_id: part of the keys of the samples.
      pixels: modality -> array of its spec, zeros where it is absent.
      present: modality -> whether the record holds it.
      rows: tabular modality -> column -> value in words, as it was read.
      pictures: modality -> PNG of what was sent.
      facts: modality -> what is known of its file.
    """

    record_id: str
    pixels: dict[str, np.ndarray]
    present: dict[str, bool]
    rows: dict[str, dict[str, str]]
    pictures: dict[str, bytes]
    facts: dict[str, dict[str, Any]]

    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""
        arrays = sum(x.nbytes for x in self.pixels.values())
        return arrays + sum(map(len, self.pictures.values()))


@dataclass(frozen=True)
class Answered:
    """A case and what the network says of it.

    Attributes:
      case: the case.
      predictions: of one record.
      seconds: "decoding", "waiting" and "network".
    """

    case: Case
    predictions: Predictions
    seconds: dict[str, float]


class Held:
    """Answered cases, or what was made of them, in memory; the oldest go first.

    Their names cannot be guessed.

    Args:
      most, num_bytes, seconds: how many, how large together, and for how long.
      clock: of seconds.
    """

    def __init__(
        self,
        most: int,
        num_bytes: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._most, self._num_bytes, self._seconds = most, num_bytes, seconds
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, int, Any]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, held: Any, num_bytes: int) -> str:
        """The name under which it is held from now on."""
        name = secrets.token_urlsafe(16)
        self._held[name] = (self._clock(), num_bytes, held)
        self._size += num_bytes
        self.forget_old()
        return name

    def find(self, name: str) -> Any | None:
        """None where it is held no longer, or never was."""
        self.forget_old()
        found = self._held.get(name)
        return None if found is None else found[2]

    def forget_old(self) -> None:
        """Lets go of what is too old or too much."""
        while self._held:
            since, size, _ = next(iter(self._held.values()))
            if (
                self._clock() - since < self._seconds
                and len(self._held) <= self._most
                and self._size <= self._num_bytes
            ):
                return
            self._held.popitem(last=False)
            self._size -= size
