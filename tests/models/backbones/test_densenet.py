import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from drifa_jax.interop.checkpoint_names import DENSENET
from drifa_jax.models.backbones.densenet import DENSENET_PLANS, DenseNet, DenseNetPlan
from tests.reference.densenet import Reference


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_features_equal_those_of_the_reference(dtype, drawn, features_of, assert_equal_features):
    # Eleven layers: their order must be that of numbers, not of names.
    plan = DenseNetPlan((2, 11, 1), 4, 6)
    model = drawn(Reference(plan))
    images = np.random.default_rng(0).normal(size=(2, 44, 56, 3))
    ours = features_of(
        functools.partial(DenseNet, plan=plan),
        DENSENET,
        model.state_dict(),
        images,
        dtype,
        padding="symmetric",
        batch_norm_epsilon=1e-5,
    )
    model = model.to(torch.from_numpy(images.astype(dtype)).dtype)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.astype(dtype)).movedim(-1, 1))
    assert_equal_features(ours, theirs, dtype)


def test_parameters_are_those_of_the_reference_and_of_the_paper(num_parameters):
    plan = DENSENET_PLANS["densenet121"]
    with torch.device("meta"):
        expected = sum(p.numel() for p in Reference(plan).parameters())
    assert num_parameters(functools.partial(DenseNet, plan=plan)) == expected == 6_953_856
