"""What every parameter is for, as the modules declare it; from shapes alone."""

from __future__ import annotations

import jax
import pytest

from drifa_jax.models.building import declared_roles
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.models.parameter_roles import ATTENTION, BACKBONE, HEAD, PARTS, Role
from drifa_jax.network_options import NetworkOptions

# Backbone -> its layers: the stem, and stages or, of transformers, blocks.
LAYERS = {
    "resnet10": 5,
    "resnet50": 17,
    "convnext_atto": 5,
    "convnextv2_atto": 5,
    "densenet121": 5,
    "efficientnet_b0": 6,
    "efficientnet_lite0": 6,
    "swin_tiny": 5,
    "deit_tiny": 13,
    "dinov2_registers_small": 13,
    "dinov3_small": 13,
}


def roles_of(backbone, **modalities):
    options = NetworkOptions(backbone=backbone, mifa_parts=("mgifa",))
    described = {"mri": ModalityDescription(1)} | modalities
    return declared_roles(NetworkDescription(described, {"tumour": 3}, options))


def listed(roles):
    return jax.tree.leaves(roles)


@pytest.fixture(scope="module")
def resnet():
    return roles_of("resnet10", ct=ModalityDescription(1), labs=ModalityDescription(5, "table"))


@pytest.mark.parametrize("backbone", LAYERS)
def test_every_parameter_of_a_backbone_is_in_one_of_its_layers(backbone):
    of_backbone = [r for r in listed(roles_of(backbone)) if r.part == BACKBONE]
    assert {role.above for role in of_backbone} == set(range(1, LAYERS[backbone] + 1))


def test_parts_are_backbone_attention_and_head(resnet):
    stem = resnet["branches"]["mri"]["stem"]
    assert stem["conv"]["kernel"] == Role(BACKBONE, "mri", above=5)
    assert stem["conv"]["bias"] == Role(BACKBONE, "mri", above=5)
    assert stem["norm"]["scale"] == Role(BACKBONE, "mri", above=5)
    assert resnet["branches"]["ct"]["stages"]["stage_3"]["conv1"]["kernel"].above == 1
    assert resnet["branches"]["labs"]["embed"]["kernel"] == Role(BACKBONE, "labs", above=5)
    assert {role.part for role in listed(resnet["heads"])} == {HEAD}
    assert {role.part for role in listed(resnet)} == set(PARTS)


def test_attention_is_attention_inside_branches_and_between_them(resnet):
    inside = resnet["branches"]["mri"]["stages"]["stage_0"]["mfa1"]
    assert {(role.part, role.modality) for role in listed(inside)} == {(ATTENTION, "mri")}
    assert {(role.part, role.modality) for role in listed(resnet["fusion"])} == {(ATTENTION, "")}


def test_attention_to_slices_belongs_to_no_branch_that_could_be_frozen():
    volume = ModalityDescription(1, "volume", slice_attention=True)
    branch = roles_of("efficientnet_lite0", ct=volume)["branches"]["ct"]
    assert {(role.part, role.modality) for role in listed(branch["pooling"])} == {(ATTENTION, "")}
    assert {(role.part, role.modality) for role in listed(branch["slices"])} == {(BACKBONE, "ct")}


def test_tokens_and_positions_are_embeddings():
    branch = roles_of("dinov2_registers_small")["branches"]["mri"]
    assert {name for name in branch for role in listed(branch[name]) if role.embeds} == {
        "class_token",
        "registers",
        "positions",
    }
