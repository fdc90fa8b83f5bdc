"""The sections of an evaluation report, each a function of what was evaluated.

`SECTIONS` is their order. A function that has nothing to say returns a section without blocks,
which is left out. To add a section, add its function here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.report.blocks import Section
from drifa_jax.report.sections.classification import classification, curves, learning
from drifa_jax.report.sections.data import data
from drifa_jax.report.sections.overview import headline
from drifa_jax.report.sections.reproduction import cost, reproduction
from drifa_jax.report.sections.subgroups import subgroups
from drifa_jax.report.sections.uncertainty import calibration, referral

SectionMaker = Callable[[Evaluated, Path], Section]

SECTIONS: tuple[SectionMaker, ...] = (
    headline,
    data,
    learning,
    classification,
    curves,
    calibration,
    referral,
    subgroups,
    cost,
    reproduction,
)
