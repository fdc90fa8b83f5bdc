"""Losses of the task heads: per record, masked where a record has no label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from drifa_jax.typing import Labels, Logits


@dataclass(frozen=True)
class TaskLoss:
    """How one task is scored.

    Attributes:
      weight: share of the task in the total; the shares of all tasks add up to 1.
      class_weights: one weight per class (mean 1 over the training records), or empty for none.
      focal_gamma: exponent of the focal loss; 0 is plain cross-entropy.
      label_smoothing: probability mass spread evenly over all classes.
    """

    weight: float = 1.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0


def record_losses(
    logits: Logits, labels: Labels, loss: TaskLoss
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Loss of each record in nats, 0 where it has no label, and which records have one.

    Cross-entropy from logits, in the stable form; the focal loss multiplies it by
    `(1 - p_true) ** gamma` (Lin et al., 2017), which lowers the weight of easy records.

    Args:
      logits: `[b, num_classes]` float32.
      labels: `[b]` int32, negative where the label is missing.
      loss: of the task.
    """
    labelled = labels >= 0
    # Any class does for an unlabelled record; its loss is masked below.
    classes = jnp.where(labelled, labels, jnp.zeros_like(labels))
    targets = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    smooth = optax.smooth_labels(targets, loss.label_smoothing)
    losses = optax.softmax_cross_entropy(logits, smooth)
    if loss.focal_gamma > 0:
        true_probability = jnp.sum(jax.nn.softmax(logits) * targets, axis=-1)
        # The floor keeps the gradient of the power finite for gamma below 1.
        missing = jnp.maximum(1.0 - true_probability, 1e-6)
        losses = losses * missing**loss.focal_gamma
    if loss.class_weights:
        losses = losses * jnp.asarray(loss.class_weights, logits.dtype)[classes]
    return jnp.where(labelled, losses, jnp.zeros_like(losses)), labelled


def total_loss(
    logits: Mapping[str, Logits],
    labels: Mapping[str, Labels],
    losses: Mapping[str, TaskLoss],
) -> tuple[Float[Array, ""], dict[str, dict[str, Array]]]:
    """The weighted sum over tasks of the mean over labelled records, and its ingredients.

    A batch in which no record has a label for a task contributes nothing to it.

    Returns:
      The total, and for each task the sums `loss` and `correct` over labelled records and their
      `count`, which the caller may add over batches before dividing.
    """
    total = jnp.zeros((), jnp.float32)
    sums = {}
    for task, loss in losses.items():
        of_record, labelled = record_losses(logits[task], labels[task], loss)
        count = jnp.sum(labelled, dtype=jnp.float32)
        summed = jnp.sum(of_record)
        total = total + loss.weight * summed / jnp.maximum(count, 1.0)
        correct = labelled & (jnp.argmax(logits[task], axis=-1).astype(jnp.int32) == labels[task])
        sums[task] = {
            "loss": summed,
            "correct": jnp.sum(correct, dtype=jnp.float32),
            "count": count,
        }
    return total, sums


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Weights inversely proportional to class frequency, with mean 1 over the labelled records.

    Args:
      labels: `[n]` int, negative where missing.
      num_classes: a class without a record gets weight 0, since it never occurs.
    """
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return tuple(weights.tolist())
