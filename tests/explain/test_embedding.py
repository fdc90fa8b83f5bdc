import numpy as np
import pytest

from drifa_jax.explain.embedding import embed, fused_features


def test_fused_features_are_those_that_the_heads_read(restored, records):
    features = fused_features(restored, records[0])
    assert features.shape == (2, 16, 2 * 8)
    head = restored.params["heads"]["lesion"]["linear"]
    logits = features[0] @ head["kernel"][0] + head["bias"][0]
    assert np.mean(logits.argmax(-1) == records[1]) >= 0.9


def test_neighbours_stay_neighbours_and_a_seed_gives_one_picture():
    draw = np.random.default_rng(0)
    features = np.concatenate([draw.normal(c, 0.1, (30, 5)) for c in (0, 4, 8)])
    # Channels of very different scale and a constant one.
    features = np.concatenate([features * [1, 1e3, 1, 1, 1], np.ones((90, 1))], axis=1)
    place = embed(features)
    np.testing.assert_array_equal(place, embed(features))
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert np.mean(distance.argmin(1) // 30 == np.arange(90) // 30) == 1


def test_few_records_and_broken_features_are_refused():
    assert embed(np.eye(4)).shape == (4, 2)
    with pytest.raises(ValueError, match="give 4 records or more"):
        embed(np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        embed(np.full((5, 2), np.nan))
