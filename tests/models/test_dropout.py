import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.dropout import monte_carlo_dropout

KEY = jax.random.key(0)


def ones(*shape):
    return jnp.ones(shape)


def test_equal_keys_drop_equal_elements_and_others_do_not():
    x = ones(2, 8, 8, 3)
    np.testing.assert_array_equal(
        monte_carlo_dropout(x, 0.25, KEY), monte_carlo_dropout(x, 0.25, KEY)
    )
    other = monte_carlo_dropout(x, 0.25, jax.random.key(1))
    assert np.any(monte_carlo_dropout(x, 0.25, KEY) != other)


@pytest.mark.parametrize("rate", [0.25, 0.3], ids=["a byte an element", "any rate"])
def test_the_rate_and_the_mean_are_kept(rate):
    kept = np.asarray(monte_carlo_dropout(ones(4, 64, 64, 8), rate, KEY))
    np.testing.assert_allclose(np.unique(kept), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    # 131072 elements: four standard deviations of the share dropped are below 0.0051.
    assert abs(np.mean(kept == 0.0) - rate) < 4 * np.sqrt(rate * (1 - rate) / kept.size)


@pytest.mark.parametrize("rate", [0.1, 0.3, 1 / 3, 0.999])
def test_any_rate_drops_what_bernoulli_drops(rate):
    kept = monte_carlo_dropout(ones(3, 32, 32, 5), rate, KEY) > 0
    np.testing.assert_array_equal(kept, jax.random.bernoulli(KEY, 1.0 - rate, (3, 32, 32, 5)))


def test_elements_are_dropped_one_by_one_not_channels():
    kept = np.asarray(monte_carlo_dropout(ones(1, 16, 16, 4), 0.25, KEY)) > 0
    assert 0 < kept.mean((0, 1, 2)).min() and kept.mean((0, 1, 2)).max() < 1
    assert 0 < kept.mean(-1).std()


def test_keys_per_record_make_masks_independent_of_batch_mates():
    keys = jax.random.split(KEY, 5)
    x = jax.random.normal(jax.random.key(2), (5, 4, 6, 3))
    together = monte_carlo_dropout(x, 0.25, keys)
    np.testing.assert_array_equal(together[2:4], monte_carlo_dropout(x[2:4], 0.25, keys[2:4]))


@pytest.mark.parametrize(("rate", "key"), [(0.0, KEY), (0.25, None)], ids=["rate 0", "no key"])
def test_without_rate_or_key_nothing_is_dropped(rate, key):
    x = ones(2, 3, 4)
    assert monte_carlo_dropout(x, rate, key) is x


def test_dropped_elements_have_no_gradient():
    x = ones(2, 4, 4, 3)
    gradient = jax.grad(lambda x: jnp.sum(monte_carlo_dropout(x, 0.25, KEY)))(x)
    np.testing.assert_array_equal(gradient, monte_carlo_dropout(x, 0.25, KEY))
