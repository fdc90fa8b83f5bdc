"""The weights that training starts from: drawn from a key, or brought along."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.models.functional import BatchStatistics, Parameters
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.pretrained import initial_weights_file, pretrained_tensors, replaced


def starting_weights(experiment: Experiment, key: jax.Array) -> tuple[Parameters, BatchStatistics]:
    """Parameters and batch statistics before the first step.

    Keys `[e]` give an ensemble, whose members start apart unless weights are brought along.

    `train.initial_weights` names a folder that `drifa convert` wrote; its names and shapes must
    be those of the network that the configuration describes. `train.pretrained` fills the
    branches alone: fusion and heads are drawn.

    Raises:
      UserError: when the folder holds no weights or another network's, with the difference.
    """
    folder = experiment.config.train.initial_weights
    if not folder:
        drawn = experiment.network.init(key)
        tensors = pretrained_tensors(experiment.config, experiment.description)
        return tuple(replaced(tree, tensors) for tree in drawn) if tensors else drawn
    # Imported here: only runs that bring weights along need the interop extra.
    from drifa_jax.interop.network_files import assemble, native_slots, read_safetensors
    from drifa_jax.interop.tensors import read_slots

    path = initial_weights_file(folder)
    tensors = read_slots(read_safetensors(path), native_slots(experiment.description), str(path))
    weights = assemble(experiment.description, tensors)
    if key.ndim:
        return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * len(key)), weights)
    return weights


def with_priors(experiment: Experiment, statistics: BatchStatistics) -> BatchStatistics:
    """The statistics in which each head that weighs experts knows the classes' frequencies."""

    def told(task: str, head: BatchStatistics) -> BatchStatistics:
        if "log_prior" not in head:
            return head
        log_prior = np.log(np.asarray(experiment.priors[task])).astype(np.float32)
        like = head["log_prior"]
        return head | {"log_prior": jnp.asarray(np.broadcast_to(log_prior, like.shape))}

    if "heads" not in statistics:
        return statistics
    heads = {task: told(task, head) for task, head in statistics["heads"].items()}
    return statistics | {"heads": heads}
