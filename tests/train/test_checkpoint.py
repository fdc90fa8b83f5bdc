"""Checkpoints hold a state exactly, and refuse another network's."""

from __future__ import annotations

import gc
import json
import random
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax import sharding
from drifa_jax.digests import sealed
from drifa_jax.errors import UserError
from drifa_jax.train import checkpoint as checkpoint_module
from drifa_jax.train import checkpoint_items, packing
from drifa_jax.train.checkpoint import Checkpoints, best_model, best_steps
from drifa_jax.train.state import Model, TrainState


def state_of(step: int, width: int = 3) -> TrainState:
    """A state with small arrays of two dtypes and one that is stored on its own."""
    generator = np.random.default_rng(step)
    large = generator.normal(size=(sharding.LARGE // 256, 256)).astype(np.float32)
    return TrainState(
        step=jnp.int32(step),
        params={"head": {"bias": jnp.arange(width, dtype=jnp.float32)}, "kernel": jnp.array(large)},
        statistics={"mean": jnp.float32(generator.normal())},
        optimizer_state=(jnp.int32(step), {"mu": jnp.ones((2, width))}),
        learning_rate_scale=jnp.float32(0.2),
    )


def model_of(state: TrainState) -> Model:
    return Model(state.step, state.params, state.statistics)


def assert_model(model: Model, state: TrainState) -> None:
    chex.assert_trees_all_equal(
        (model.step, model.params, model.statistics), (state.step, state.params, state.statistics)
    )


TEMPLATE = jax.eval_shape(lambda: state_of(0))


def read_best(directory, template=TEMPLATE) -> Model:
    return best_model(directory, lambda description: model_of(template))


def test_packing_keeps_every_bit():
    state = state_of(7)
    stored = packing.packed(state, 0)
    assert set(stored["large"]) == {"params/kernel"}
    assert set(stored["small"]) == {"float32", "int32"}
    back = packing.unpacked(stored, packing.entries(state, 0), state, 0)
    chex.assert_trees_all_equal(back, state)


def test_any_flipped_bit_changes_the_checksum():
    def checksum(array):
        return packing.checksums({"large": {"kernel": array}, "small": {}})["large/kernel"]

    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    known = checksum(values)
    assert checksum(jnp.asarray(values)) == known
    for bit in range(8 * values.nbytes):
        flipped = np.frombuffer(values.tobytes(), np.uint8).copy()
        flipped[bit // 8] ^= 1 << bit % 8
        assert checksum(flipped.view(np.float32).reshape(values.shape)) != known


def test_newest_and_best_are_found_again_with_their_progress(tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.7}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state_of(step), {"epoch": step}, loss)
        checkpoints.save(state_of(6), {"epoch": 5})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        newest, progress = checkpoints.newest(TEMPLATE)
        best = checkpoints.best(TEMPLATE)
    chex.assert_trees_all_equal(newest, state_of(6))
    assert_model(best, state_of(2))
    assert_model(read_best(tmp_path / "checkpoints"), state_of(2))
    assert progress == {"epoch": 5}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_state_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = state_of(3)
        checkpoints.save(state, {}, 1.0)
        jax.block_until_ready(overwrite(state))
        restored, _ = checkpoints.newest(TEMPLATE)
    chex.assert_trees_all_equal(restored, state_of(3))


def test_checkpoint_of_another_network_is_refused_with_the_difference(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state_of(1), {}, 1.0)
        with pytest.raises(
            UserError, match=r"- params/head/bias \[3\](.|\n)*\+ params/head/bias \[4\]"
        ):
            checkpoints.best(jax.eval_shape(lambda: state_of(0, width=4)))


def test_directory_without_an_epoch_has_no_best(tmp_path):
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(UserError, match="no checkpoint of a completed epoch"),
    ):
        checkpoints.best(TEMPLATE)


def stacked(*states: TrainState) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def test_best_epoch_is_kept_for_each_member(tmp_path):
    losses = {1: (0.9, 0.2), 2: (0.3, 0.5), 3: (0.4, 0.6), 4: (0.5, float("inf")), 5: (0.6, 0.7)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, of_members in losses.items():
            checkpoints.save(stacked(state_of(step), state_of(step)), {}, of_members)
    template = jax.eval_shape(lambda: stacked(state_of(0), state_of(0)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        best = checkpoints.best(template)
    assert best.step.tolist() == [2, 1]
    assert_model(best, stacked(state_of(2), state_of(1)))
    assert read_best(tmp_path / "checkpoints", template).identity == best.identity
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "4", "5"]


def test_first_of_equal_losses_is_the_best():
    assert best_steps({3: [0.5], 1: [0.5], 2: None}) == [1]
    assert best_steps({2: None}) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of steps 1 and 2, the second better; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, description={"tasks": ["a"]}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_of(step), {"epoch": step}, 1.0 / step)
    return folder


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_identity_changes_with_weights_and_description_alone(written, tmp_path):
    def identity(state, description, loss=1.0):
        folder = tmp_path / "checkpoints"
        with Checkpoints(folder, description=description) as checkpoints:
            checkpoints.save(state, {}, loss)
            model = checkpoints.best(TEMPLATE)
        shutil.rmtree(folder)
        return model.identity

    known = read_best(written)
    assert known.description == {"tasks": ["a"]}
    assert identity(state_of(2), {"tasks": ["a"]}, 7.0) == known.identity
    assert identity(state_of(2), {"tasks": ["b"]}) != known.identity
    other = jax.tree.map(lambda leaf: leaf * 2, state_of(2).statistics)
    changed = state_of(2).__class__(**{**vars(state_of(2)), "statistics": other})
    assert identity(changed, {"tasks": ["a"]}) != known.identity


def test_reading_changes_nothing_not_even_a_checkpoint_that_is_being_written(written, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    (folder / "3.orbax-checkpoint-tmp" / "part").write_text("half")
    before = contents(tmp_path)
    read_best(folder)
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(2))
def test_no_flipped_bit_of_a_checkpoint_changes_what_is_read(seed, written, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "DELETION_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_items, "STRAGGLER_SECONDS", 0.1)
    gc.freeze()  # Each damage has the garbage collected, among all that earlier tests left.
    draw = random.Random(seed)
    folder = tmp_path / "checkpoints"
    noticed = 0
    for _ in range(30):
        shutil.rmtree(tmp_path)
        shutil.copytree(written, folder)
        path = draw.choice(
            [p for p in (folder / "2").rglob("*") if p.is_file() and p.stat().st_size]
        )
        damaged = bytearray(path.read_bytes())
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_model(read_best(folder), state_of(2))
        except UserError as error:
            noticed += 1
            assert str(folder / "2") in str(error)
        with Checkpoints(folder) as checkpoints:
            state, progress = checkpoints.newest(TEMPLATE)
        # The one before only where the newest was moved aside.
        step = 1 if (tmp_path / "damaged_checkpoints" / "2").exists() else 2
        chex.assert_trees_all_equal(state, state_of(step))
        assert progress == {"epoch": step}
    assert noticed


@pytest.mark.parametrize("text", ("", "{}", '{"validation_loss": [0.0]}', None))
def test_best_epoch_is_never_guessed_where_its_loss_cannot_be_read(text, written, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    (path,) = (p for p in (folder / "2" / "model_index").iterdir() if p.name == "metadata")
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(
        UserError, match=r"checkpoint .*checkpoints/2 cannot be read: its model_index"
    ):
        read_best(folder)


def test_damaged_best_model_is_replaced_with_a_word_when_training_ends(written, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    shutil.rmtree(folder / "2" / "model")
    with Checkpoints(folder) as checkpoints:
        assert_model(checkpoints.best(TEMPLATE), state_of(1))
    assert "Checkpoint 2 cannot be read" in caplog.text


def test_checkpoint_of_a_later_release_says_so(written, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    path = folder / "2" / "model_index" / "metadata"
    index = json.loads(path.read_text()) | {"format": 3}
    del index["digest"]
    path.write_text(json.dumps(sealed(index)))
    with pytest.raises(UserError, match="later release"):
        read_best(folder)
