"""Suites: named lists of sets, each a config of truly paired records and its published split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.config import Config
from drifa_jax.config_files import load_config
from drifa_jax.errors import UserError

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class BenchmarkSet:
    """One set of records.

    Attributes:
      name: of its folder and rows.
      config: `FILE.py:VARIANT`.
      manifest: its published split; None draws one.
    """

    name: str
    config: str
    manifest: Path | None = None

    def load(self, root: str, overrides: Sequence[tuple[str, str]]) -> Config:
        """Its configuration, with all modalities below one root where one is given."""
        config = load_config(self.config, overrides)
        if not root:
            return config
        modalities = {
            name: dataclasses.replace(modality, root=root)
            for name, modality in config.data.modalities.items()
        }
        return dataclasses.replace(
            config, data=dataclasses.replace(config.data, modalities=modalities)
        )


SUITES: Mapping[str, tuple[BenchmarkSet, ...]] = {
    "paired-v1": tuple(
        BenchmarkSet(name, f"paired.py:{name}", MANIFESTS / "paired-v1" / f"{name}.json")
        for name in ("milk10k", "bus_bra", "lgg", "ham10000")
    )
}


def find_suite(name: str) -> tuple[BenchmarkSet, ...]:
    """A suite by its name, or one set by its config file.

    Raises:
      UserError: for neither.
    """
    if name in SUITES:
        return SUITES[name]
    file, _, variant = name.partition(":")
    if not file.endswith(".py"):
        raise UserError(
            f"there is no suite {name!r}; choose {', '.join(SUITES)}, or give the config of a set "
            "of your own, FILE.py or FILE.py:VARIANT."
        )
    stem = Path(file).stem
    return (BenchmarkSet(f"{stem}-{variant}" if variant else stem, name),)
