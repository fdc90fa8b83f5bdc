import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file
from transformers import SwinConfig, SwinModel

from drifa_jax.interop.checkpoint_names import SWIN
from drifa_jax.models.backbones.swin import SWIN_PLANS, Swin, SwinPlan


def reference(plan):
    return SwinModel(
        SwinConfig(
            embed_dim=plan.width,
            depths=list(plan.depths),
            num_heads=list(plan.heads),
            window_size=plan.window,
            drop_path_rate=0.0,
            # The other one takes its softmax in float32, whatever the dtype.
            attn_implementation="sdpa",
        )
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_features_equal_those_of_transformers(
    dtype, drawn, features_of, assert_equal_features, tmp_path
):
    plan = SwinPlan((2, 1, 2), (2, 2, 4), 8, window=3)
    model = drawn(reference(plan))
    model.save_pretrained(tmp_path)
    # Maps of 13 x 10, 7 x 5 and 4 x 3: filled to windows and to pairs; the last is not shifted.
    images = np.random.default_rng(0).normal(size=(2, 50, 40, 3))
    build = functools.partial(Swin, plan=plan)
    ours = features_of(build, SWIN, load_file(tmp_path / "model.safetensors"), images, dtype)
    model = model.to(torch.from_numpy(images.astype(dtype)).dtype)
    with torch.no_grad():
        *theirs, last = model.encoder(
            *model.embeddings(torch.from_numpy(images.astype(dtype)).movedim(-1, 1)),
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        ).reshaped_hidden_states
        theirs.append(model.layernorm(last.movedim(1, -1)).movedim(-1, 1))
    assert_equal_features(ours, theirs, dtype)


def test_parameters_of_a_whole_network_are_those_of_transformers(num_parameters):
    plan = SWIN_PLANS["swin_tiny"]
    with torch.device("meta"):
        model = reference(plan)
    expected = sum(p.numel() for p in model.parameters())
    assert num_parameters(functools.partial(Swin, plan=plan)) == expected
