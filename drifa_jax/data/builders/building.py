"""Building the known data sets without TensorFlow."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path

from drifa_jax.errors import UserError

BUILDERS: Mapping[str, tuple[str, str]] = {
    "ham10000": ("ham10000", "Ham10000"),
    "sipakmed": ("sipakmed", "Sipakmed"),
    "brain_tumor_mri": ("brain_mri", "BrainTumorMri"),
    "iq_othnccd_lung_ct": ("lung_ct", "IqOthnccdLungCt"),
    "brain_stroke_ct": ("brain_stroke_ct", "BrainStrokeCt"),
    "covid_chestxray": ("covid_chestxray", "CovidChestxray"),
    "sars_cov2_ct": ("sars_cov2_ct", "SarsCov2Ct"),
}
"""Name -> module in this folder and class."""


def build(name: str, manual_dir: str | Path | None, data_dir: str | Path) -> Path:
    """Store a downloaded data set as ArrayRecord below `data_dir`; returns its folder.

    Raises:
      UserError: if the name is unknown or the download is missing or not what it should be.

    Test: tests/data/builders/test_building.py.
    """
    if name not in BUILDERS:
        raise UserError(f"The builder {name!r} is unknown; choose one of {sorted(BUILDERS)}.")
    import tensorflow_datasets as tfds

    module, kind = BUILDERS[name]
    builder_class = getattr(importlib.import_module(f"drifa_jax.data.builders.{module}"), kind)
    builder = builder_class(data_dir=str(data_dir), file_format="array_record")
    if manual_dir is None or not Path(manual_dir).is_dir():
        raise UserError(
            f"The folder {manual_dir} does not exist (--manual-dir). "
            f"{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    config = tfds.download.DownloadConfig(manual_dir=Path(manual_dir))
    # The tfds bars of every split would scroll away the messages of this package.
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)
