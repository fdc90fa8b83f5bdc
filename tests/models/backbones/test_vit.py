import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.dinov3_vit import modeling_dinov3_vit

from drifa_jax.interop.checkpoint_names import DINOV2, DINOV3, VIT
from drifa_jax.models.backbones.positions import cubic_matrix
from drifa_jax.models.backbones.vit import VIT_PLANS, ViT, ViTPlan

UNREAD = ("pooler.", "embeddings.mask_token")
"""Tensors of a file that features do not depend on."""


def reference(family, plan):
    """The model of `transformers` in the shape of a plan, and our names for its files."""
    shape = {
        "hidden_size": plan.width,
        "num_hidden_layers": plan.depth,
        "num_attention_heads": plan.num_heads,
        "intermediate_size": 4 * plan.width,
        "patch_size": plan.patch,
        "image_size": plan.patch * (plan.grid or 2),
        "layer_norm_eps": plan.epsilon,
        "attn_implementation": "sdpa",
    }
    registers = {"num_register_tokens": plan.num_registers}
    if family == "vit":
        return ViTModel(ViTConfig(**shape)), VIT
    if family == "deit":
        return DeiTModel(DeiTConfig(**shape)), VIT
    if family == "dinov2":
        return Dinov2Model(Dinov2Config(**shape)), DINOV2
    if family == "registers":
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, **registers)), DINOV2
    return DINOv3ViTModel(DINOv3ViTConfig(**shape, **registers)), DINOV3


# Five blocks do not divide into four stages: 1, 1, 1 and 2.
SHAPE = (16, 5, 2, 4, 3)
PLANS = {
    "vit": ViTPlan(*SHAPE, epsilon=1e-12),
    "deit": ViTPlan(*SHAPE, distillation=True),
    "dinov2": ViTPlan(*SHAPE, layer_scale=1.0),
    "registers": ViTPlan(*SHAPE, layer_scale=1.0, num_registers=2, antialias=True),
    "dinov3": ViTPlan(
        *SHAPE[:4], 0, layer_scale=1.0, num_registers=2, key_bias=False, epsilon=1e-5
    ),
}


def file_of(model, folder):
    """What `save_pretrained` writes, whose names differ from those in memory."""
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    return {name: x for name, x in state.items() if not name.startswith(UNREAD)}


def run_both(family, size, dtype, drawn, features_of, folder, monkeypatch=None):
    plan = PLANS[family]
    model, naming = reference(family, plan)
    state = file_of(drawn(model), folder)
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    ours = features_of(functools.partial(ViT, plan=plan), naming, state, images, dtype)
    model = model.to(torch.from_numpy(images.astype(dtype)).dtype)
    if family == "dinov3" and dtype is np.float64:
        # `transformers` computes angles in float32: frequencies and centres are made wide.
        frequencies = 100.0 ** -np.arange(0, 1, 4 * plan.num_heads / plan.width)
        model.rope_embeddings.inv_freq = torch.from_numpy(frequencies)
        centres = modeling_dinov3_vit.get_patches_center_coordinates
        monkeypatch.setattr(
            modeling_dinov3_vit,
            "get_patches_center_coordinates",
            lambda *sides, **keywords: centres(*sides, **keywords | {"dtype": torch.float64}),
        )
    keywords = {"interpolate_pos_encoding": True} if family in ("vit", "deit") else {}
    with torch.no_grad():
        out = model(
            torch.from_numpy(images.astype(dtype)).movedim(-1, 1),
            output_hidden_states=True,
            **keywords,
        )
    states = [out.hidden_states[k] for k in (0, 1, 2, 3)]
    return ours, [x.movedim(-1, 1) for x in (*states, out.last_hidden_state)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", PLANS)
def test_features_equal_those_of_transformers(
    family, dtype, drawn, features_of, assert_equal_features, tmp_path, monkeypatch
):
    size = (16, 12) if family == "dinov3" else (12, 12)
    ours, theirs = run_both(family, size, dtype, drawn, features_of, tmp_path, monkeypatch)
    assert_equal_features(ours, theirs, dtype)


@pytest.mark.parametrize("family", [family for family in PLANS if family != "dinov3"])
@pytest.mark.parametrize("size", [(8, 20), (7, 8)], ids=["wide", "small, cut"])
def test_positions_are_interpolated_as_in_transformers(
    family, size, drawn, features_of, assert_equal_features, tmp_path
):
    ours, theirs = run_both(family, size, np.float32, drawn, features_of, tmp_path)
    assert_equal_features(ours, theirs, np.float32)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("sizes", [(5, 3), (3, 7), (14, 4), (4, 4)], ids=str)
def test_the_resampling_of_a_line_is_that_of_pytorch(sizes, antialias):
    num_in, num_out = sizes
    line = torch.eye(num_in, dtype=torch.float64)[None, :, :, None].expand(-1, -1, -1, 8)
    expected = torch.nn.functional.interpolate(
        line, size=(num_out, 8), mode="bicubic", align_corners=False, antialias=antialias
    )[0, :, :, 0].T
    np.testing.assert_allclose(cubic_matrix(num_in, num_out, antialias), expected, atol=1e-12)


WHOLE = {"vit_small": "vit", "deit_tiny": "deit", "dinov2_small": "dinov2"}
WHOLE |= {"dinov2_registers_small": "registers", "dinov3_small": "dinov3"}


@pytest.mark.parametrize("name", WHOLE)
def test_parameters_of_a_whole_network_are_those_of_transformers(name, num_parameters):
    plan = VIT_PLANS[name]
    with torch.device("meta"):
        model, _ = reference(WHOLE[name], plan)
    expected = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(UNREAD))
    assert num_parameters(functools.partial(ViT, plan=plan)) == expected


def test_wrong_plans_are_refused():
    with pytest.raises(ValueError, match="width is 10; 3 heads do not divide it"):
        ViTPlan(10, 2, 3)
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        ViTPlan(12, 2, 2, grid=0)
