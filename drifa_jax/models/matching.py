"""How the stages of unlike branches stand side by side, and after which modalities meet.

Stages are matched from the end, because the deepest features of two backbones are the most alike:
the last resolution of one branch with the last of another, and inside a resolution the last block
with the last.

    resnet18        0 1 | 2 3 | 4 5 | 6 7
    convnext          0 |   1 |   2 |   3
    network's stage 0 1 | 2 3 | 4 5 | 6 7

Where all branches have the same plan, stage k stands beside stage k. Stages that a list in
`fuse_at` names take the place of the ends of resolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drifa_jax.models.backbones.contract import Stage
from drifa_jax.network_options import FUSE_AT_ALL, FUSE_AT_RESOLUTIONS

Plans = Mapping[str, tuple[Stage, ...]]


@dataclass(frozen=True)
class Row:
    """One stage of the network.

    Attributes:
      stages: (modality, number of its branch's stage) of those that have one here.
      meets: whether these modalities are fused after it.
    """

    stages: tuple[tuple[str, int], ...]
    meets: bool


def matched(plans: Plans, fuse_at: Sequence[int | str]) -> tuple[Row, ...]:
    """The stages of all branches side by side, in the order in which they are run.

    Args:
      plans: modality -> stages of its branch.
      fuse_at: `NetworkOptions.fuse_at`.

    Raises:
      ValueError: for a branch without stages, a name of no stage, or a branch that would never
        meet the others; it lists the stages.
    """
    for m, plan in plans.items():
        if not plan:
            raise ValueError(f"The branch of {m!r} has no stages, so that nothing can be fused.")
    fuse_at = tuple(fuse_at)
    named = fuse_at not in ((FUSE_AT_ALL,), (FUSE_AT_RESOLUTIONS,))
    ends = _named(plans, fuse_at) if named else {m: _resolutions(p) for m, p in plans.items()}
    rows: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for m, plan in plans.items():
        for number in range(len(plan)):
            rows.setdefault(_place(number, ends[m], len(plan)), []).append((m, number))
    return tuple(
        Row(tuple(rows[place]), fuse_at == (FUSE_AT_ALL,) or (place[0] < 0 and place[1] == 0))
        for place in sorted(rows)
    )


def _place(number: int, ends: Sequence[int], num_stages: int) -> tuple[int, int]:
    """Which group of stages it belongs to and where it stands there, both counted from the end.

    Groups close with the stages in `ends`; 0 is the group after the last of them.
    """
    following = [end for end in ends if end >= number]
    return -len(following), number - (following[0] if following else num_stages - 1)


def _resolutions(plan: Sequence[Stage]) -> list[int]:
    return [number for number, stage in enumerate(plan) if stage.ends_resolution]


def _named(plans: Plans, fuse_at: Sequence[int | str]) -> dict[str, list[int]]:
    """Modality -> numbers of the stages that `fuse_at` names, in order."""
    found: dict[str, set[int]] = {m: set() for m in plans}
    for wanted in fuse_at:
        known = False
        for m, plan in plans.items():
            numbers = _numbers(plan, wanted)
            found[m].update(numbers)
            known |= bool(numbers)
        if not known:
            raise ValueError(f"model.fuse_at names {wanted!r}, which is no stage; {_listed(plans)}")
    for m, numbers in found.items():
        if not numbers:
            raise ValueError(
                f"model.fuse_at is {list(fuse_at)}, which names no stage of {m!r}, so that it "
                f"would never meet the others; {_listed(plans)}"
            )
    return {m: sorted(numbers) for m, numbers in found.items()}


def _numbers(plan: Sequence[Stage], wanted: int | str) -> list[int]:
    if isinstance(wanted, str):
        return [number for number, stage in enumerate(plan) if stage.name == wanted]
    number = wanted + len(plan) if wanted < 0 else wanted
    return [number] if 0 <= number < len(plan) else []


def _listed(plans: Plans) -> str:
    """The choices, in words."""
    listed = "; ".join(
        f"{m}: " + ", ".join(f"{k} {stage.name}" for k, stage in enumerate(plan))
        for m, plan in plans.items()
    )
    return f"choose {FUSE_AT_ALL!r}, {FUSE_AT_RESOLUTIONS!r}, or numbers or names among {listed}."
