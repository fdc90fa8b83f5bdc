from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.errors import UserError
from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.building import build_network, drifa_net
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "param_paths.txt"


@pytest.fixture(scope="module")
def full_network():
    """The paper's network: two 3-channel modalities, heads with 5 and 7 classes."""
    return Functional(
        lambda rngs: drifa_net({"dermoscopy": 3, "pap": 3}, {"cervix": 5, "skin": 7}, rngs=rngs)
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_full_network_has_the_parameters_of_the_authors(full_network):
    assert count(full_network.abstract_params) == 53_865_668
    assert count(full_network.abstract_params) + count(full_network.abstract_statistics) == (
        53_884_868
    )


def test_parameter_paths_and_shapes_are_those_that_checkpoints_hold(full_network):
    """A change here makes every saved run unreadable."""
    trees = {
        "params": full_network.abstract_params,
        "statistics": full_network.abstract_statistics,
    }
    lines = [
        "/".join(part.key for part in path) + f" {tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    ]
    assert lines == GOLDEN.read_text().splitlines()


def test_logits_by_task_and_named_intermediates(small_apply, small_state):
    params, statistics, images = small_state
    (logits, seen), _ = small_apply(params, statistics, images, train=False)
    assert {task: x.shape for task, x in logits.items()} == {"tumour": (3, 4), "stroke": (3, 3)}
    # mri 16x16 and ct 12x20: the stem quarters, the second stage halves.
    shapes = {name: x.shape for name, x in seen.items()}
    assert shapes["stage_0/rra/mri"] == (3, 4, 4, 3) and shapes["stage_0/rra/ct"] == (3, 3, 5, 3)
    assert shapes["stage_1/mifa/mri"] == (3, 2, 2, 6) and shapes["stage_1/mifa/ct"] == (3, 2, 3, 6)
    assert shapes["stage_0/mfa/ct/gate"] == (3, 3) and shapes["stage_1/mifa/gate"] == (3, 6)
    assert shapes["pooled"] == (3, 12)
    assert not any(name.startswith("stage_1/mfa") for name in shapes)


def test_records_do_not_see_their_batch_mates_in_inference(small_apply, small_state):
    params, statistics, images = small_state
    (together, _), _ = small_apply(params, statistics, images, train=False)
    turned = {m: x[::-1] for m, x in images.items()}
    (reverse, _), _ = small_apply(params, statistics, turned, train=False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[::-1], rtol=1e-5, atol=1e-6), together, reverse
    )


def test_dropout_is_drawn_from_the_key_alone(small_apply, small_state):
    params, statistics, images = small_state

    def logits(key):
        return small_apply(params, statistics, images, train=False, dropout_key=key)[0][0]["tumour"]

    np.testing.assert_array_equal(logits(jax.random.key(0)), logits(jax.random.key(0)))
    assert np.any(logits(jax.random.key(0)) != logits(jax.random.key(1)))
    without = small_apply(params, statistics, images, train=False)[0][0]["tumour"]
    assert np.any(logits(jax.random.key(0)) != without)


def test_keys_per_record_make_samples_independent_of_batch_mates(small_apply, small_state):
    params, statistics, images = small_state
    keys = jax.random.split(jax.random.key(0), 3)

    def logits(images, keys):
        return small_apply(params, statistics, images, train=False, dropout_key=keys)[0][0]

    order = np.array([2, 0, 1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[order], b, rtol=1e-5, atol=1e-6),
        logits(images, keys),
        logits({m: x[order] for m, x in images.items()}, keys[order]),
    )


def test_fillers_of_absent_modalities_reach_neither_logits_statistics_nor_gradients(
    small_network, small_state
):
    params, statistics, images = small_state
    present = {
        "mri": jnp.asarray([True, True, True]),
        "ct": jnp.asarray([True, False, True]),
    }

    @jax.jit
    def gradients(ct):
        def loss(params):
            (logits, _), after = small_network.apply(
                params, statistics, images | {"ct": ct}, train=True, present=present
            )
            return sum(jnp.sum(jnp.square(x)) for x in logits.values()), (logits, after)

        return jax.grad(loss, has_aux=True)(params)

    with_nan, with_zero = images["ct"].copy(), images["ct"].copy()
    with_nan[1], with_zero[1] = np.nan, 0.0
    result = gradients(with_nan)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    jax.tree.map(np.testing.assert_array_equal, result, gradients(with_zero))


def test_the_two_halves_make_the_whole(small_network, small_apply, small_state):
    params, statistics, images = small_state
    features, _ = small_network.apply(
        params, statistics, images, train=False, method="before_dropout"
    )
    (logits, _), _ = small_network.apply(
        params, statistics, features, train=False, method="from_dropout"
    )
    (whole, _), _ = small_apply(params, statistics, images, train=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), logits, whole)


class Patches(nnx.Module):
    """A foreign backbone: two stages of plain layers, of the shape that `Backbone` asks for."""

    plan = (Stage("embed", 4, 4, True), Stage("widen", 6, 4, False))

    def __init__(self, rngs):
        self.embed = nnx.Linear(16, 4, rngs=rngs)
        self.widen = nnx.Linear(4, 6, rngs=rngs)

    def stem(self, images, *, train, present):
        b, h, w, c = images.shape
        tokens = images.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
        return tokens.reshape(b, (h // 4) * (w // 4), 16 * c)

    def stage(self, number, x, *, train, present):
        return jnp.tanh((self.embed, self.widen)[number](x))


def test_drifa_plugs_into_a_foreign_backbone():
    net = Functional(
        lambda rngs: DRIFANet({"a": Patches(rngs), "b": Patches(rngs)}, {"grade": 3}, rngs=rngs)
    )
    params, statistics = net.init(jax.random.key(0))
    images = {m: jax.random.normal(jax.random.key(1), (2, 8, 8, 1)) for m in "ab"}

    def loss(params):
        (logits, seen), _ = net.apply(params, statistics, images, train=True)
        assert seen["stage_1/mifa/a"].shape == (2, 4, 6)
        return jnp.sum(jnp.square(logits["grade"]))

    gradients = jax.grad(loss)(params)
    assert all(np.any(g != 0) for g in jax.tree.leaves(gradients["branches"]["a"]["embed"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"dropout_rate": 1.0}, r"dropout_rate is 1.0; it must be in \[0, 1\)"),
        ({"dropout_at": "gates"}, "dropout_at is 'gates'; choose one of stages, heads"),
        ({"mfa_parts": ("mgifa",)}, r"mfa_parts names \['mgifa'\]; choose among"),
        ({"mifa_parts": ("hifa",)}, r"mifa_parts names \['hifa'\]; choose among"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NetworkOptions(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, r"model.backbone is 'vgg'; choose one of .*'resnet18', 'resnet34'"),
        ({"fusion": "sum"}, r"model.fusion is 'sum'; choose one of .*'drifa'"),
        ({"readout": "vote"}, r"model.readout is 'vote'; choose one of .*'average', 'concatenate'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unknown_names_are_refused_with_those_that_exist(change, message):
    description = NetworkDescription({"mri": 1}, {"grade": 2}, NetworkOptions(width=2, **change))
    with pytest.raises(UserError, match=message):
        build_network(description)


def test_a_network_without_modalities_or_tasks_is_refused():
    with pytest.raises(ValueError, match="at least one modality"):
        drifa_net({}, {"grade": 2}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least one task"):
        DRIFANet({"a": Patches(nnx.Rngs(0))}, {}, rngs=nnx.Rngs(0))


def test_a_width_that_no_backbone_takes_is_refused():
    options = NetworkOptions(width=16, backbone="convnext_atto")
    with pytest.raises(UserError, match=r"model.width is 16, but .* set model.width to 64"):
        build_network(NetworkDescription({"mri": 1}, {"grade": 2}, options))
    other = ModalityDescription(1, backbone="resnet10")
    build_network(NetworkDescription({"mri": 1, "ct": other}, {"grade": 2}, options))


def test_wrong_modalities_are_refused(small_network, small_state):
    params, statistics, images = small_state
    with pytest.raises(ValueError, match=r"reads the modalities \['ct', 'mri'\] but got \['mri'\]"):
        small_network.apply(params, statistics, {"mri": images["mri"]}, train=False)
