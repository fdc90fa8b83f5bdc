"""Ensemble x Monte Carlo dropout: every random mask has a name, and no work is done twice.

    member ─ map ─┬─ before the first dropout, once a record
                  └─ sample ─ map ─ from the first dropout on ─ softmax ─ [e, s, b, k]

The mask of one record under one member in one sample is a pure function of
`(root key, member, record, sample)`. A record's answer therefore does not depend on its batch
mates, its place among them, the size of a pass or the number of devices (but for the rounding
of a convolution that XLA tiles differently for another batch size).

Source: Dhar et al., WACV 2025, section 3.4 and Fig. 1B; Gal and Ghahramani, ICML 2016 (Monte
Carlo dropout); Lakshminarayanan et al., NeurIPS 2017 (deep ensembles).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.rng import stream

ENSEMBLE_AXIS, SAMPLE_AXIS = "ensemble", "data"
"""Mesh axes that members and samples are spread over."""

CPU_PASS_BYTES = 64 * 2**20
"""Memory of one pass on CPU. Not a limit but the fastest: larger passes fall out of the caches
(`benchmarks/mc_dropout.py --passes`)."""

Inputs = Mapping[str, jax.Array]
Samples = dict[str, jax.Array]


class Moments(NamedTuple):
    """What the uncertainty measures need of samples `[e, s, b, k]`, without the axis `s`.

    Attributes:
      num_samples: `[e]`, samples that entered.
      probability_sum: `[e, b, k]`, sum of probabilities.
      square_sum: `[e, b, k]`, sum of squared probabilities.
      entropy_sum: `[e, b]`, sum of the samples' own entropies, in nats.
      votes: `[e, b, k]`, samples whose most probable class it was.
    """

    num_samples: jax.Array
    probability_sum: jax.Array
    square_sum: jax.Array
    entropy_sum: jax.Array
    votes: jax.Array


def record_words(record_ids: Sequence[str]) -> np.ndarray:
    """Record ids as counters for `rng.stream`: `[b, 2]` uint32, the same in every process."""
    digests = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in record_ids]
    return np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), 2)


def sample_key(
    root_key: jax.Array, member: jax.Array, words: jax.Array, sample: jax.Array
) -> jax.Array:
    """Dropout keys `[b]` of one member and sample for the records of `words`, `[b, 2]`."""
    key = stream(root_key, "mc_dropout", member)
    return jax.vmap(lambda word: stream(key, word[0], word[1], sample))(words)


def make_sampler(
    network: Functional,
    *,
    num_samples: int,
    moments: bool = False,
    samples_per_pass: int | None = None,
    pass_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[..., Samples | dict[str, Moments]]:
    """One compiled function from images to the samples of every member.

        >>> import jax, jax.numpy as jnp
        >>> from drifa_jax.models.building import drifa_net
        >>> from drifa_jax.network_options import NetworkOptions
        >>> network = Functional(lambda rngs: drifa_net(
        ...     {"mri": 1}, {"tumour": 4}, options=NetworkOptions(width=2), rngs=rngs))
        >>> params, statistics = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
        >>> sampler = make_sampler(network, num_samples=3)
        >>> samples = sampler(
        ...     params, statistics, {"mri": jnp.ones([1, 16, 16, 1])},
        ...     jax.random.key(1), record_words(["patient 7"]))
        >>> samples["tumour"].shape
        (2, 3, 1, 4)

    Args:
      network: the bridge of a module that offers `before_dropout` and `from_dropout`.
      num_samples: `T`, at least 1.
      moments: whether to return running `Moments` by task instead of samples, which need `T`
        times less memory and serve every measure of `uncertainty.measures` equally.
      samples_per_pass: samples computed together; None chooses by memory.
      pass_bytes: memory of one pass, by which that is chosen; None asks the device.
      mesh: spreads members over its axis "ensemble" and samples over "data"; None for one
        device. See `sampling_mesh`.

    Returns:
      A jitted function of `(params, statistics, images, root_key, words, members=None,
      present=None)`. Parameters and statistics have a leading axis `e`; images are uint8 or
      float; words are `record_words`; `members` `[e]` int32 names the members, 0, 1, ... when
      None, and is part of the key, so that a member alone can answer as in its ensemble;
      `present` is modality -> `[b]` bool. It returns task -> probabilities `[e, s, b, k]`
      float32, or task -> `Moments`.

      Batch norm reads its stored statistics always; dropout is all that is random.

    Raises:
      ValueError: if `num_samples` or `samples_per_pass` is below 1 or the mesh lacks the axes;
        and when called, if there is no member, the key is not of the kind threefry, the mesh
        does not divide the members, or words and images disagree about the number of records.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; Monte Carlo dropout needs at least 1.")
    if samples_per_pass is not None and samples_per_pass < 1:
        raise ValueError(f"samples_per_pass is {samples_per_pass}; it must be at least 1.")
    if mesh is not None and set(mesh.axis_names) != {ENSEMBLE_AXIS, SAMPLE_AXIS}:
        raise ValueError(
            f"The mesh has the axes {mesh.axis_names}; sampling needs "
            f"{(ENSEMBLE_AXIS, SAMPLE_AXIS)} (see sampling_mesh)."
        )
    num_shards = 1 if mesh is None else mesh.shape[SAMPLE_AXIS]
    samples_per_shard = -(-num_samples // num_shards)

    def of_member(member_state, images, root_key, words, present, samples):
        params, statistics, _ = member_state
        features, _ = network.apply(
            params,
            statistics,
            scale_pixels(images),
            train=False,
            present=present,
            method="before_dropout",
        )
        draw = functools.partial(
            _one_sample, network, member_state, features, root_key, words, present
        )
        size = samples_per_pass or choose_samples_per_pass(len(samples), features, pass_bytes)
        if not moments:
            return jax.lax.map(draw, samples, batch_size=size)
        return _running_moments(draw, samples, size, num_samples)

    def of_shard(params, statistics, members, images, root_key, words, present, samples):
        drawn = jax.lax.map(
            lambda state: of_member(state, images, root_key, words, present, samples),
            (params, statistics, members),
        )
        if moments and mesh is not None:
            drawn = jax.lax.psum(drawn, SAMPLE_AXIS)
        return drawn

    if mesh is not None:
        of_members = P(ENSEMBLE_AXIS)
        of_shard = jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(of_members, of_members, of_members, P(), P(), P(), P(), P(SAMPLE_AXIS)),
            out_specs=of_members if moments else P(ENSEMBLE_AXIS, SAMPLE_AXIS),
            check_vma=False,
        )

    @jax.jit
    def sampler(params, statistics, images, root_key, words, members=None, present=None):
        num_members = _check(params, images, root_key, words, mesh)
        if members is None:
            members = jnp.arange(num_members, dtype=jnp.int32)
        # Shards get equally many samples; those beyond `num_samples` are cut off or not counted.
        samples = jnp.arange(samples_per_shard * num_shards, dtype=jnp.int32)
        drawn = of_shard(params, statistics, members, images, root_key, words, present, samples)
        if moments:
            return drawn
        return jax.tree.map(lambda p: p[:, :num_samples], drawn)

    return sampler


def sampling_mesh(num_members: int, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh that spreads `num_members` members and their samples over all devices.

    Members are spread as far as they divide the devices, samples over what is left. None where
    there is one device only.
    """
    devices = list(jax.devices() if devices is None else devices)
    if num_members < 1:
        raise ValueError(f"num_members is {num_members}; an ensemble has at least 1.")
    if len(devices) == 1:
        return None
    across = math.gcd(num_members, len(devices))
    return jax.make_mesh(
        (across, len(devices) // across),
        (ENSEMBLE_AXIS, SAMPLE_AXIS),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def choose_samples_per_pass(
    num_samples: int, features: Mapping[str, jax.Array], budget_bytes: int | None = None
) -> int:
    """How many samples to compute together, so that a pass stays within `budget_bytes`.

    A pass holds about eight arrays of the size of the first features (the four maps of HIFA,
    that of CLIA, and the convolutions' workspace).

    Args:
      num_samples: samples to compute in all.
      features: what `before_dropout` returned; only shapes are read.
      budget_bytes: None for a quarter of the accelerator's memory, or `CPU_PASS_BYTES`.
    """
    if budget_bytes is None:
        budget_bytes = _device_budget()
    bytes_per_sample = 8 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(features))
    return int(min(max(budget_bytes // bytes_per_sample, 1), num_samples))


def _device_budget() -> int:
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats["bytes_limit"] // 4 if stats else CPU_PASS_BYTES


def _one_sample(
    network: Functional,
    member_state: tuple[Parameters, BatchStatistics, jax.Array],
    features: Inputs,
    root_key: jax.Array,
    words: jax.Array,
    present: Inputs | None,
    sample: jax.Array,
) -> Samples:
    """Probabilities `[b, k]` by task of one member in one sample."""
    params, statistics, member = member_state
    (logits, _), _ = network.apply(
        params,
        statistics,
        features,
        train=False,
        dropout_key=sample_key(root_key, member, words, sample),
        present=present,
        method="from_dropout",
    )
    return {task: jax.nn.softmax(x.astype(jnp.float32)) for task, x in logits.items()}


def _running_moments(draw, samples, size, num_samples) -> dict[str, Moments]:
    """Moments by task over `samples`, `size` at a time; those from `num_samples` on count 0."""
    padded = jnp.pad(samples, (0, -len(samples) % size), constant_values=num_samples)

    def of_chunk(chunk):
        counted = (chunk < num_samples).astype(jnp.float32)
        return {task: _moments(p, counted) for task, p in jax.vmap(draw)(chunk).items()}

    chunks = padded.reshape(-1, size)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_chunk, chunks[0]))
    return jax.lax.scan(
        lambda total, chunk: (jax.tree.map(jnp.add, total, of_chunk(chunk)), None), zero, chunks
    )[0]


def _moments(p: jax.Array, counted: jax.Array) -> Moments:
    """Moments of probabilities `[s, b, k]`, sample `s` weighing `counted[s]`."""
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), -1)
    vote = jax.nn.one_hot(jnp.argmax(p, -1), p.shape[-1], dtype=p.dtype)
    add = functools.partial(jnp.tensordot, counted, axes=1)
    return Moments(jnp.sum(counted), add(p), add(p * p), add(entropy), add(vote))


def _check(
    params: Parameters, images: Inputs, root_key: jax.Array, words: jax.Array, mesh: Mesh | None
) -> int:
    num_members = jax.tree.leaves(params)[0].shape[0]
    if num_members < 1:
        raise ValueError("There is no ensemble member: parameters need a leading axis e >= 1.")
    if jax.random.key_impl(root_key) != "threefry2x32":
        # Under `vmap` a key of "rbg" draws numbers that depend on the other keys.
        raise ValueError(
            f"The root key is of the kind {jax.random.key_impl(root_key)!r}; masks that do not "
            "depend on batch mates need jax.random.key(seed, impl='threefry2x32')."
        )
    if mesh is not None and num_members % mesh.shape[ENSEMBLE_AXIS]:
        raise ValueError(
            f"{num_members} members do not divide over the mesh's {mesh.shape[ENSEMBLE_AXIS]} "
            "rows; sampling_mesh makes one that fits."
        )
    sizes = {m: x.shape[0] for m, x in images.items()}
    if set(sizes.values()) != {words.shape[0]}:
        raise ValueError(
            f"The images hold {sizes} records but record_words names {words.shape[0]}."
        )
    return num_members
