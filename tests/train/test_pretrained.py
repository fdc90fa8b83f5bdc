"""Runs whose branches start from weights trained elsewhere."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.interop.checkpoint_names import EFFICIENTNET, checkpoint_slots
from drifa_jax.interop.pretrained.branches import backbone_shapes
from drifa_jax.interop.tensors import flatten
from drifa_jax.models.backbones.efficientnet import EfficientNet, Group, scaled
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions
from drifa_jax.predict.restored import describe
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.pretrained import with_checkpoint_pixels
from drifa_jax.train.starting_weights import starting_weights

SMALL = "efficientnet_b9"
PLAN = scaled(0.3, 1.0, groups=(Group(3, 1, 1, 16, 1), Group(3, 2, 2, 24, 1)))


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    """A network of the family that is small enough to build in every test."""
    monkeypatch.setitem(BACKBONES, SMALL, partial(EfficientNet, plan=PLAN))


@pytest.fixture
def folder(tmp_path):
    """What Hugging Face's `save_pretrained` writes, with drawn weights."""
    rng = np.random.default_rng(0)
    slots = checkpoint_slots(backbone_shapes(SMALL, 3, NetworkOptions()), EFFICIENTNET, {})
    tensors = {slot.name: rng.uniform(0.5, 1, slot.shape).astype(np.float32) for slot in slots}
    path = tmp_path / "weights"
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "efficientnet"}))
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.5], "size": 32})
    )
    return path


def config_of(folder, **fields):
    sizes = {"height": 16, "width": 16}
    return from_mapping(
        {
            "data": {
                "modalities": {
                    "mri": modality(channels=1, **sizes, **fields),
                    "ct": modality(channels=1, **sizes),
                },
                "phantoms": {"num_train": 8, "num_validation": 4, "num_test": 4},
            },
            "model": {"backbone": SMALL},
            "train": {"batch_size": 4, "pretrained": str(folder)},
        }
    )


def started(config, key):
    experiment = build_experiment(config, open_dataset(config.data))
    return experiment, starting_weights(experiment, key)


def test_branches_come_from_the_file_and_the_rest_is_drawn(folder):
    config, _ = with_checkpoint_pixels(config_of(folder), None)
    experiment, (params, statistics) = started(config, jax.random.key(0))
    drawn, _ = experiment.network.init(jax.random.key(0))
    before, after = flatten(drawn), flatten(params)
    assert {path for path in after if not np.array_equal(after[path], before[path])} >= {
        path for path in after if path.startswith("branches/") and path.endswith("kernel")
    }
    rest = [path for path in after if not path.startswith("branches/")]
    assert rest and all(np.array_equal(after[path], before[path]) for path in rest)
    assert all(leaf.min() >= 0.5 for leaf in jax.tree.leaves(statistics["branches"]))


def test_members_of_an_ensemble_share_branches_and_differ_in_heads(folder):
    config, _ = with_checkpoint_pixels(config_of(folder), None)
    _, (params, _) = started(config, jax.random.split(jax.random.key(0), 2))
    kernel = params["branches"]["mri"]["entry"]["conv"]["kernel"]
    head = jax.tree.leaves(params["heads"])[-1]
    assert np.array_equal(kernel[0], kernel[1]) and not np.array_equal(head[0], head[1])


def test_a_modality_may_start_afresh(folder):
    config, _ = with_checkpoint_pixels(config_of(folder, pretrained="none"), None)
    experiment, (params, _) = started(config, jax.random.key(0))
    drawn, _ = experiment.network.init(jax.random.key(0))
    same = jax.tree.map(np.array_equal, params["branches"], drawn["branches"])
    assert same["mri"]["entry"]["conv"]["kernel"] and not same["ct"]["entry"]["conv"]["kernel"]
    assert config.data.modalities["mri"].mean == ()


def test_mean_and_deviation_are_saved_with_the_run_and_the_network_uses_them(folder):
    config, notes = with_checkpoint_pixels(config_of(folder), None)
    mri = config.data.modalities["mri"]
    # Grey pixels take the mean of the colours' means and deviations.
    np.testing.assert_allclose((*mri.mean, *mri.std), (0.2, 1.25 / 3), rtol=1e-6)
    assert any("trained on 32 x 32 pixels; data.modalities.mri reads 16 x 16" in n for n in notes)
    assert any("ct: the first convolution was adapted to 1 channels" in n for n in notes)
    dataset = open_dataset(config.data)
    reading = describe(config.data, dataset).readings["mri"]
    assert (reading.mean, reading.std) == (mri.mean, mri.std)

    experiment, weights = started(config, jax.random.key(0))
    plain = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            modalities={
                name: dataclasses.replace(m, mean=(), std=())
                for name, m in config.data.modalities.items()
            },
        ),
    )
    unread, _ = started(plain, jax.random.key(0))
    images = {
        name: jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 1)), jnp.float32)
        for name in ("mri", "ct")
    }
    by_hand = {
        name: (x - m.mean[0]) / m.std[0]
        for (name, x), m in zip(images.items(), config.data.modalities.values(), strict=True)
    }
    ours, theirs = (
        jax.jit(of.network.apply, static_argnames="train")(*weights, pixels, train=False)[0][0]
        for of, pixels in ((experiment, images), (unread, by_hand))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_a_run_that_goes_on_needs_no_pretrained_file(folder, tmp_path):
    asked = config_of(folder)
    saved, _ = with_checkpoint_pixels(asked, None)
    folder.rename(tmp_path / "gone")
    assert with_checkpoint_pixels(asked, saved) == (saved, [])
    with pytest.raises(UserError, match=r"train.pretrained is .*there is no such file or folder"):
        with_checkpoint_pixels(asked, None)


def test_values_of_the_configuration_win_and_the_difference_is_said(folder):
    own = {"mean": (0.5,), "std": (0.5,)}
    config, notes = with_checkpoint_pixels(config_of(folder, **own), None)
    assert config.data.modalities["mri"].mean == own["mean"]
    assert any("are kept" in note and "(0.200)" in note for note in notes)
