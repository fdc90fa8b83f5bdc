"""What the server did, in the text format of Prometheus; nothing of any case is in it."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Callable

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32)

COUNTERS = {
    "requests": "Requests by path and status.",
    "refused": "Requests that were not answered, by reason.",
    "cases": "Cases that were answered.",
    "explanations": "Cases that were explained.",
    "referred": "Answers that ask for a human, by task.",
    "unlike_training": "Cases flagged as unlike the training data.",
    "decoder_restarts": "Times that a process that decodes had to be started again.",
}
HISTOGRAMS = {
    "decoding_seconds": ("Time to decode the files of a case.", SECONDS),
    "waiting_seconds": ("Time that a case waited for the network.", SECONDS),
    "network_seconds": ("Time that the network took for the batch of a case.", SECONDS),
    "answer_seconds": ("Time from a request's head to its answer.", SECONDS),
    "explanation_seconds": ("Time from asking for an explanation to having it.", SECONDS),
    "batch_cases": ("Cases that were answered together.", BATCHES),
}


class Metrics:
    """Counters and histograms by name, and gauges that are asked when they are read.

    Args:
      gauges: name -> its help, and what tells its value.
    """

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]):
        self._gauges = gauges
        self._counts: dict[str, Counter[tuple[tuple[str, str], ...]]] = {
            name: Counter() for name in COUNTERS
        }
        self._bins = {name: [0] * (len(b) + 1) for name, (_, b) in HISTOGRAMS.items()}
        self._sums = dict.fromkeys(HISTOGRAMS, 0.0)
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        """Adds to a counter; labels are words of this program, never of a client."""
        with self._lock:
            self._counts[name][tuple(sorted(labels.items()))] += by

    def observe(self, name: str, value: float) -> None:
        """Adds one value to a histogram."""
        with self._lock:
            self._bins[name][bisect.bisect_left(HISTOGRAMS[name][1], value)] += 1
            self._sums[name] += value

    def text(self) -> str:
        """All of them, as Prometheus reads them."""
        lines = []
        with self._lock:
            for name, told in COUNTERS.items():
                lines += _head(f"{name}_total", told, "counter")
                for labels, value in sorted(self._counts[name].items()):
                    lines.append(_line(f"{name}_total", labels, value))
            for name, (told, bounds) in HISTOGRAMS.items():
                lines += _head(name, told, "histogram")
                total = 0
                for bound, count in zip((*bounds, "+Inf"), self._bins[name], strict=True):
                    total += count
                    lines.append(_line(f"{name}_bucket", (("le", str(bound)),), total))
                lines.append(_line(f"{name}_sum", (), self._sums[name]))
                lines.append(_line(f"{name}_count", (), total))
        for name, (told, value) in self._gauges.items():
            lines += _head(name, told, "gauge")
            lines.append(_line(name, (), value()))
        return "\n".join(lines) + "\n"


def resident_bytes() -> float:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096.0


def _head(name: str, told: str, kind: str) -> list[str]:
    return [f"# HELP drifa_{name} {told}", f"# TYPE drifa_{name} {kind}"]


def _line(name: str, labels: tuple[tuple[str, str], ...], value: float) -> str:
    inside = ",".join(f'{key}="{word}"' for key, word in labels)
    return f"drifa_{name}{{{inside}}} {value}" if inside else f"drifa_{name} {value}"
