"""Parameters trained by their roles: frozen branches, scaled rates, decay of kernels alone."""

from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

from drifa_jax.config import TrainConfig
from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions
from drifa_jax.rng import stream
from drifa_jax.sharding import layout_of
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.losses import total_loss
from drifa_jax.train.parameter_groups import parameter_groups
from drifa_jax.train.program import Program
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step
from tests.train import toy

KEY = jax.random.key(3)


def experiment_of(optimizer=None, **train):
    config = toy.toy_config(
        model={"backbone": "toy", "readout": "toy", "stage_mfa_parts": ()}, train=train
    )
    built = build_experiment(config, open_dataset(config.data))
    return built if optimizer is None else dataclasses.replace(built, optimizer=optimizer)


def batch_of(experiment):
    source, records = experiment.dataset.train, range(8)
    return {
        "images": {m: np.stack([source[i].images[m] for i in records]) for m in ("mri", "ct")},
        "labels": {
            task: np.array([source[i].labels[task] for i in records], np.int32)
            for task in experiment.losses
        },
    }


def first_step(experiment):
    """The state before one step and after it."""
    weights = experiment.network.init(jax.random.key(0))
    before = initial_state(*weights, experiment.optimizer, 1, experiment.groups)
    step = make_train_step(
        experiment.network, experiment.optimizer, experiment.losses, groups=experiment.groups
    )
    return before, jax.jit(step)(before, batch_of(experiment), KEY)[0]


@pytest.fixture(scope="module")
def frozen():
    return experiment_of(optax.sgd(0.1), frozen=["mri"])


def test_a_frozen_branch_keeps_weights_and_statistics_and_the_rest_is_trained(frozen):
    before, after = first_step(frozen)
    for kind in ("params", "statistics"):
        ours, theirs = getattr(before, kind)["branches"], getattr(after, kind)["branches"]
        chex.assert_trees_all_equal(ours["mri"], theirs["mri"])
        moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), ours["ct"], theirs["ct"])
        assert all(jax.tree.leaves(moved))
    for name in ("fusion", "heads"):
        moved = jax.tree.map(
            lambda a, b: np.any(np.asarray(a) != b), before.params[name], after.params[name]
        )
        assert all(jax.tree.leaves(moved)), name


def test_what_is_trained_follows_the_gradient_of_the_whole_network(frozen):
    """Also through what the frozen branch makes of what is trained before it."""
    before, after = first_step(frozen)
    batch = batch_of(frozen)

    def loss(params):
        (logits, _), _ = frozen.network.apply(
            params,
            before.statistics,
            scale_pixels(batch["images"]),
            train={"mri": False, "ct": True},
            dropout_key=stream(KEY, "dropout", before.step),
        )
        return total_loss(logits, batch["labels"], frozen.losses, None)[0]

    gradients = jax.jit(jax.grad(loss))(before.params)
    gradients["branches"]["mri"] = jax.tree.map(np.zeros_like, gradients["branches"]["mri"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradients)
    # Two programs round differently.
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_have_no_moments():
    def num_moments(experiment):
        state = jax.eval_shape(
            experiment.optimizer.init, experiment.groups.trained(experiment.network.abstract_params)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32)

    ours, all_of_them = experiment_of(frozen=["branches"]), experiment_of()
    branches = all_of_them.network.abstract_params["branches"]
    size = sum(leaf.size for leaf in jax.tree.leaves(branches))
    assert num_moments(ours) == num_moments(all_of_them) - 2 * size


def test_frozen_branches_cost_no_backward_pass():
    """Under a fusion after their last stage; the gradients of the rest are all that is left."""

    def flops(experiment):
        program = Program(experiment, layout_of(experiment.config))
        return program.flops_of(layout_of(experiment.config).place_batch(batch_of(experiment)))

    # Two passes of three are backward ones: of the convolution, by its kernel alone.
    saved = flops(experiment_of()) - flops(experiment_of(frozen=["branches"]))
    assert saved > 2 * 2 * 8 * 64 * 36 * 0.9


def test_all_branches_are_those_that_can_have_learnt_before_so_tables_are_trained():
    description = NetworkDescription(
        {"mri": ModalityDescription(1), "mri_table": ModalityDescription(4, "table")},
        {"tumour": 2},
        NetworkOptions(width=2, backbone="resnet10"),
    )
    named = {
        frozen: parameter_groups(description, TrainConfig(frozen=frozen)).frozen
        for frozen in (("branches",), ("branches", "mri_table"), ("mri_table",))
    }
    assert list(named.values()) == [{"mri"}, {"mri", "mri_table"}, {"mri_table"}]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["xray"], r"train\.frozen names 'xray'; give modalities, of mri, ct, or 'branches'"),
        ([""], r"train\.frozen names ''"),
    ],
)
def test_a_frozen_name_that_is_no_modality_is_an_error(frozen, message):
    with pytest.raises(UserError, match=message):
        experiment_of(frozen=frozen)


def updates(experiment, gradient):
    """What one step of the optimiser adds to parameters that are all one."""
    ones = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), experiment.network.abstract_params
    )
    trained = experiment.groups.trained(ones)
    gradients = jax.tree.map(lambda leaf: np.full_like(leaf, gradient), trained)
    optimizer = experiment.optimizer
    return jax.jit(optimizer.update)(gradients, optimizer.init(trained), trained)[0]


def constant_of(tree):
    (value,) = {float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(tree)}
    assert all(np.all(np.asarray(leaf) == np.float32(value)) for leaf in jax.tree.leaves(tree))
    return value


def tiny(backbone, model=None, **train):
    """An experiment whose network is only looked at and never run."""
    config = toy.toy_config(model={"backbone": backbone, **(model or {})}, train=train)
    return build_experiment(config, open_dataset(config.data))


def test_rates_fall_from_the_heads_to_the_pixels_and_attention_has_its_own():
    scales = {"backbone": 0.5, "attention": 2.0, "heads": 3.0}
    experiment = tiny("resnet10", {"width": 2}, rate_scales=scales, layer_decay=0.8, frozen=["ct"])
    # Adam's first step is the learning rate, 0.01, against the gradient.
    steps = updates(experiment, -1.0)
    branch = steps["branches"]["mri"]
    assert jax.tree.leaves(steps["branches"]["ct"]) == []
    for layer, above in (("stage_3", 1), ("stage_2", 2), ("stage_0", 4)):
        step = constant_of(branch["stages"][layer]["conv1"])
        assert step == pytest.approx(0.01 * 0.5 * 0.8**above, rel=1e-5)
    assert constant_of(branch["stem"]["norm"]) == pytest.approx(0.01 * 0.5 * 0.8**5, rel=1e-5)
    assert constant_of(branch["stem"]["mfa"]) == pytest.approx(0.02, rel=1e-5)
    assert constant_of(steps["fusion"]) == pytest.approx(0.02, rel=1e-5)
    assert constant_of(steps["heads"]) == pytest.approx(0.03, rel=1e-5)


def test_weight_decay_pulls_kernels_alone():
    steps = updates(tiny("deit_tiny", weight_decay=0.1), 0.0)["branches"]["mri"]
    for name in ("class_token", "distillation_token", "positions", "norm"):
        assert constant_of(steps[name]) == 0.0, name
    block = steps["blocks"]["block_0"]
    for name in ("norm1", "norm2"):
        assert constant_of(block[name]) == 0.0
    assert constant_of(block["expand"]["bias"]) == 0.0
    pulled = (steps["patches"]["kernel"], block["expand"]["kernel"])
    # The learning rate times the decay.
    assert constant_of(pulled) == pytest.approx(-0.01 * 0.1, rel=1e-5)


def test_layers_that_a_backbone_does_not_declare_cannot_decay():
    with pytest.raises(UserError, match=r"train\.layer_decay is 0\.8.* mri \(toy\).*Leave it at 1"):
        experiment_of(layer_decay=0.8, frozen=["ct"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_decay", 0.0),
        ("layer_decay", 1.5),
        ("stochastic_depth", 1.0),
        ("rate_scales", {"backbone": 0.0}),
        ("rate_scales", {"heads": -1.0}),
    ],
)
def test_scales_out_of_range_name_their_field(field, value):
    with pytest.raises(UserError, match=rf"train\.{field}[.a-z]* is -?\d\.\d; it must be"):
        toy.toy_config(train={field: value})


def test_stochastic_depth_needs_a_branch_in_training_that_can_skip():
    with pytest.raises(UserError, match=r"train\.stochastic_depth is 0\.1, but no branch"):
        experiment_of(stochastic_depth=0.1)
    with pytest.raises(UserError, match=r"train\.stochastic_depth is 0\.1"):
        tiny("deit_tiny", stochastic_depth=0.1, frozen=["branches"])


def test_stochastic_depth_is_drawn_in_training_from_the_step_and_never_in_evaluation(monkeypatch):
    seen = []

    class Skipping(toy.ToyBackbone):
        num_blocks = 2

        def stage(self, number, x, *, train, present, depth=None):
            seen.append((train, depth))
            return x if depth is None else x * jax.random.uniform(depth.key)

    monkeypatch.setitem(BACKBONES, "toy", Skipping)
    experiment = experiment_of(stochastic_depth=0.25, frozen=["ct"])
    network, state = experiment.network, first_step(experiment)[0]
    step = make_train_step(
        network,
        experiment.optimizer,
        experiment.losses,
        groups=experiment.groups,
        stochastic_depth=0.25,
    )
    seen.clear()
    sums = [
        jax.jit(step)(dataclasses.replace(state, step=np.int32(number)), batch_of(experiment), KEY)
        for number in (0, 0, 1)
    ]
    assert [(train, depth and depth.rate) for train, depth in seen[:2]] == [
        (True, 0.25),
        (False, None),
    ]
    totals = [float(of_step[1]["total"]) for of_step in sums]
    assert totals[0] == totals[1] != totals[2]
    seen.clear()
    images = scale_pixels(batch_of(experiment)["images"])
    for key in (None, KEY):
        network.apply(state.params, state.statistics, images, train=False, dropout_key=key)
    assert {depth for _, depth in seen} == {None}
