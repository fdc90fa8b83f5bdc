import jax
import jax.numpy as jnp
import numpy as np


def test_init_is_a_pure_function_of_the_key(small_network):
    key = jax.random.key(3)
    first, second = small_network.init(key), small_network.init(key)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = small_network.init(jax.random.key(4))
    kernel = lambda state: state[0]["heads"]["tumour"]["linear"]["kernel"]  # noqa: E731
    assert np.all(kernel(first) != kernel(other))


def test_abstract_state_describes_init(small_network):
    state = small_network.init(jax.random.key(0))
    expected = (small_network.abstract_params, small_network.abstract_statistics)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    assert described == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


def test_member_i_of_an_ensemble_equals_init_of_its_key(small_network):
    keys = jax.random.split(jax.random.key(0), 3)
    members = small_network.init(keys)
    alone = small_network.init(keys[2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b), members, alone)


def test_apply_leaves_its_arguments_alone(small_apply, small_state):
    params, statistics, images = small_state
    before = jax.tree.map(np.copy, (params, statistics))
    _, after = small_apply(params, statistics, images, train=True)
    jax.tree.map(np.testing.assert_array_equal, (params, statistics), before)
    changed = jax.tree.map(lambda a, b: np.any(a != b), after, statistics)
    assert all(jax.tree.leaves(changed))
