"""Losses of the task heads: per record, masked where a record has no label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from drifa_jax.typing import Labels, Logits, Present


@dataclass(frozen=True)
class TaskLoss:
    """How one task is scored.

    Attributes:
      weight: share of the task in the total; the shares of all tasks add up to 1.
      class_weights: one weight per class (mean 1 over the training records), or empty for none.
      focal_gamma: exponent of the focal loss; 0 is plain cross-entropy.
      label_smoothing: probability mass spread evenly over all classes.
      expert_weights: of a readout that combines experts, pairs of an expert and its share in
        the loss; the shares add up to 1.
      product_weight: of the loss of what they say together, beyond their temperatures.
    """

    weight: float = 1.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    expert_weights: tuple[tuple[str, float], ...] = ()
    product_weight: float = 0.0


def record_losses(
    logits: Logits, targets: Float[Array, "b k"], loss: TaskLoss
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Loss of each record in nats, 0 where it has no label, and which records have one.

    Cross-entropy from logits, in the stable form; the focal loss multiplies it by
    `(1 - p_true) ** gamma` (Lin et al., 2017), which lowers the weight of easy records.

    Args:
      logits: `[b, num_classes]` float32.
      targets: probability of each class, one-hot unless records were mixed; all zero where the
        label is missing.
      loss: of the task.
    """
    labelled = jnp.sum(targets, axis=-1) > 0
    losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, loss.label_smoothing))
    if loss.focal_gamma > 0:
        true_probability = jnp.sum(jax.nn.softmax(logits) * targets, axis=-1)
        # The floor keeps the gradient of the power finite for gamma below 1.
        missing = jnp.maximum(1.0 - true_probability, 1e-6)
        losses = losses * missing**loss.focal_gamma
    if loss.class_weights:
        losses = losses * (targets @ jnp.asarray(loss.class_weights, targets.dtype))
    return jnp.where(labelled, losses, jnp.zeros_like(losses)), labelled


def total_loss(
    logits: Mapping[str, Logits],
    labels: Mapping[str, Labels],
    losses: Mapping[str, TaskLoss],
    targets: Mapping[str, Float[Array, "b k"]] | None = None,
    *,
    seen: Mapping[str, Array] | None = None,
    present: Mapping[str, Present] | None = None,
) -> tuple[Float[Array, ""], dict[str, dict[str, Array]]]:
    """The weighted sum over tasks of the mean over labelled records, and its ingredients.

    A batch in which no record has a label for a task contributes nothing to it.

    Args:
      logits: task -> `[b, num_classes]`.
      labels: task -> `[b]` int32, negative where missing.
      losses: task -> how it is scored.
      targets: task -> class probabilities of mixed records; None takes the labels.
      seen: the network's intermediates, of which those of experts are charged (see
        `expert_loss`); None charges the logits, as validation does.
      present: modality -> `[b]` bool; an expert is charged for records with its modality.

    Returns:
      The total, and for each task the sums `loss` and `correct` over labelled records and their
      `count`, which the caller may add over batches before dividing.
    """
    total = jnp.zeros((), jnp.float32)
    sums = {}
    for task, loss in losses.items():
        # `one_hot` gives zeros for a missing label.
        wanted = (
            jax.nn.one_hot(labels[task], logits[task].shape[-1], dtype=logits[task].dtype)
            if targets is None
            else targets[task]
        )
        of_record, labelled = record_losses(logits[task], wanted, loss)
        count = jnp.sum(labelled, dtype=jnp.float32)
        summed = jnp.sum(of_record)
        charged = summed / jnp.maximum(count, 1.0)
        if seen is not None and loss.expert_weights:
            charged = loss.product_weight * charged + expert_loss(
                task, seen, wanted, loss, present or {}
            )
        total = total + loss.weight * charged
        correct = labelled & (jnp.argmax(logits[task], axis=-1).astype(jnp.int32) == labels[task])
        sums[task] = {
            "loss": summed,
            "correct": jnp.sum(correct, dtype=jnp.float32),
            "count": count,
        }
    return total, sums


def expert_loss(
    task: str,
    seen: Mapping[str, Array],
    targets: Float[Array, "b k"],
    loss: TaskLoss,
    present: Mapping[str, Present],
) -> Float[Array, ""]:
    """The weighted mean of the experts' own losses, and that of what they say together.

    Each expert learns for itself, as if it were alone; the loss of their product reaches the
    temperatures alone, so that no expert leans on another.

    Args:
      task: whose experts.
      seen: the network's intermediates, with `experts/<task>/<expert>` and `tempered/<task>`.
      targets: as in `record_losses`.
      loss: of the task.
      present: modality -> `[b]` bool; none for those that every record holds.
    """
    losses, labelled = record_losses(seen[f"tempered/{task}"], targets, loss)
    total = jnp.sum(losses) / jnp.maximum(jnp.sum(labelled, dtype=jnp.float32), 1.0)
    for expert, weight in loss.expert_weights:
        losses, counted = record_losses(seen[f"experts/{task}/{expert}"], targets, loss)
        if expert in present:
            counted = counted & present[expert]
            losses = jnp.where(present[expert], losses, jnp.zeros_like(losses))
        count = jnp.maximum(jnp.sum(counted, dtype=jnp.float32), 1.0)
        total = total + weight * jnp.sum(losses) / count
    return total


def class_prior(
    labels: np.ndarray,
    num_classes: int,
    class_weights: Sequence[float] = (),
    drawn: np.ndarray | None = None,
) -> tuple[float, ...]:
    """How probable each class is before anything is seen, to a network trained on these labels.

    Laplace's rule of succession, which leaves no class impossible, then the class weights of the
    loss, under which a network learns the frequencies that they stand for.

    Args:
      labels: `[n]` int, negative where missing.
      num_classes: k.
      class_weights: as in `TaskLoss`; empty for none. A class of weight 0 keeps its frequency.
      drawn: `[n]`, how often each record is drawn, in any unit; None draws all equally often.
    """
    labelled = labels >= 0
    drawn = np.ones(len(labels)) if drawn is None else drawn * (len(labels) / drawn.sum())
    counts = np.bincount(labels[labelled], drawn[labelled], num_classes) + 1.0
    if class_weights:
        weights = np.asarray(class_weights)
        counts = counts * np.where(weights > 0, weights, 1.0)
    return tuple((counts / counts.sum()).tolist())


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
