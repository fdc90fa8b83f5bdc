"""Which stages stand side by side, and after which modalities meet."""

import pytest

from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.matching import matched
from drifa_jax.network_options import NetworkOptions

RESNET18 = tuple(
    Stage(f"resolution_{r}_block_{b}", 2**r, 2**r, dropout=r < 3, ends_resolution=b == 1)
    for r in range(4)
    for b in range(2)
)
CONVNEXT = tuple(Stage(f"stage_{k}", 3 * 2**k, 2**k, dropout=k < 3) for k in range(4))


def rows(fuse_at, **plans):
    """What is run side by side: `{modality: stage}`, and after which rows modalities meet."""
    found = matched(plans, fuse_at)
    return [dict(row.stages) for row in found], [k for k, row in enumerate(found) if row.meets]


def test_equal_branches_meet_after_every_stage_unless_asked_otherwise():
    stages, meetings = rows(NetworkOptions().fuse_at, mri=RESNET18, ct=RESNET18)
    assert stages == [{"mri": k, "ct": k} for k in range(8)]
    assert meetings == list(range(8))


def test_resolutions_are_met_after_their_last_stage():
    stages, meetings = rows(("resolutions",), mri=RESNET18, ct=RESNET18)
    assert len(stages) == 8 and meetings == [1, 3, 5, 7]
    assert rows(("resolutions",), mri=CONVNEXT)[1] == [0, 1, 2, 3]


def test_unlike_branches_are_matched_by_resolution_from_the_end():
    stages, meetings = rows(("all",), mri=RESNET18, ct=CONVNEXT)
    assert stages == [
        {"mri": 0}, {"mri": 1, "ct": 0}, {"mri": 2}, {"mri": 3, "ct": 1},
        {"mri": 4}, {"mri": 5, "ct": 2}, {"mri": 6}, {"mri": 7, "ct": 3},
    ]  # fmt: skip
    assert meetings == list(range(8))
    assert rows(("resolutions",), mri=RESNET18, ct=CONVNEXT)[1] == [1, 3, 5, 7]


def test_a_longer_branch_begins_alone():
    stages, _ = rows(("all",), mri=CONVNEXT, ct=CONVNEXT[:2])
    assert stages == [{"mri": 0}, {"mri": 1}, {"mri": 2, "ct": 0}, {"mri": 3, "ct": 1}]


def test_stages_are_named_by_number_from_either_end_or_by_name():
    for fuse_at in ((1, 3), (1, -1), ("stage_1", "stage_3"), (-1, "stage_1", 3)):
        assert rows(fuse_at, mri=CONVNEXT, ct=CONVNEXT)[1] == [1, 3]


def test_named_stages_of_unlike_branches_meet_in_pairs_from_the_end():
    fuse_at = ("resolution_1_block_0", "resolution_3_block_0", "stage_1", "stage_2")
    stages, meetings = rows(fuse_at, mri=RESNET18, ct=CONVNEXT)
    assert [stages[k] for k in meetings] == [{"mri": 2, "ct": 1}, {"mri": 6, "ct": 2}]
    assert stages[-1] == {"mri": 7, "ct": 3}
    for m, count in (("mri", 8), ("ct", 4)):
        assert [row[m] for row in stages if m in row] == list(range(count))


@pytest.mark.parametrize(
    ("fuse_at", "message"),
    [
        ((4,), r"names 4, which is no stage; .*'all', 'resolutions'.* mri: 0 stage_0, .*3 stage_3"),
        ((0, "layer4"), r"names 'layer4', which is no stage"),
        ((-5,), r"names -5, which is no stage"),
    ],
)
def test_a_name_of_no_stage_is_refused_with_those_that_exist(fuse_at, message):
    with pytest.raises(ValueError, match=message):
        matched({"mri": CONVNEXT, "ct": CONVNEXT}, fuse_at)


def test_a_branch_that_would_never_meet_the_others_is_refused():
    never = r"names no stage of 'ct'.* would never meet.*ct: 0 stage_0"
    with pytest.raises(ValueError, match=never):
        matched({"mri": RESNET18, "ct": CONVNEXT}, ("resolution_3_block_1",))
    with pytest.raises(ValueError, match="'ct' has no stages"):
        matched({"mri": CONVNEXT, "ct": ()}, ("all",))


@pytest.mark.parametrize("fuse_at", [(), ("all", 2), ("all", "resolutions")])
def test_a_word_stands_alone(fuse_at):
    with pytest.raises(ValueError, match="alone, or a list of stages"):
        NetworkOptions(fuse_at=fuse_at)
