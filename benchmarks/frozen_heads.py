"""What frozen branches should see: heads on their features, by augmentation and by shape.

    python benchmarks/frozen_heads.py RUN --task dx --augmentation none flip photo
    python benchmarks/frozen_heads.py RUN --task dx --augmentation none --fit stretch

RUN has frozen branches and heads that read every resolution (`drifa run` of a plan). Training
images are augmented anew in each of --epochs, their features read once, and a linear head is
trained on them (AdamW at 3e-4, weight decay 0.1, dropout 0.25, three seeds). Validation records
judge, after the last epoch; test records are not read. --modality names whose features are read.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pipeline import evaluation_batches, training_batches
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.transforms import PRESETS, Augment
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import SPLITS_FOLDER, restore

BATCH, RATE, DECAY, DROPOUT, SEEDS = 32, 3e-4, 0.1, 0.25, 3


def reader(restored):
    """Images and presence of a batch -> modality -> what the heads read, `[b, f]`."""
    params, statistics = (
        jax.tree.map(lambda x: x[0], tree) for tree in (restored.params, restored.statistics)
    )

    @jax.jit
    def read(images, present):
        pixels, during = scale_pixels(images), {"train": False, "present": present}
        return restored.network.apply(
            params, statistics, pixels, method="before_dropout", **during
        )[0]

    return read


def features_of(read, batches, count, task, chosen):
    """Features `[n, f]` and labels `[n]` of labelled records; of `count` batches, or of all."""
    rows, labels = [], []
    for number, batch in enumerate(batches):
        if number == count:
            break
        found = read(batch["images"], batch["present"])
        held = batch["valid"] & (batch["labels"][task] >= 0)
        names = chosen or sorted(found)
        rows.append(np.concatenate([np.asarray(found[name]) for name in names], 1)[held])
        labels.append(batch["labels"][task][held])
    return np.concatenate(rows), np.concatenate(labels)


def judged(train, validation, num_classes, epoch_steps, head_epochs, seed):
    """Balanced accuracy, AUROC and negative log-likelihood of a head on validation records."""
    (x, y), (x_held, y_held) = train, validation
    middle, spread = x.mean(0), x.std(0) + 1e-3
    x, x_held = jnp.asarray((x - middle) / spread), (x_held - middle) / spread
    y, key = jnp.asarray(y), jax.random.key(seed)
    steps = epoch_steps * head_epochs
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, min(100, epoch_steps), steps)
    optimizer = optax.adamw(schedule, weight_decay=DECAY)
    width = x.shape[1]
    kernel = jax.random.truncated_normal(key, -2, 2, (width, num_classes)) / np.sqrt(width)
    head = (kernel, jnp.zeros(num_classes))

    def step(carry, number):
        head, state = carry
        rows = (number * BATCH + jnp.arange(BATCH)) % len(x)
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - DROPOUT, (BATCH, width))

        def loss(head):
            logits = jnp.where(kept, x[rows] / (1 - DROPOUT), 0) @ head[0] + head[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        updates, state = optimizer.update(jax.grad(loss)(head), state, head)
        return (optax.apply_updates(head, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    (kernel, bias), _ = run((head, optimizer.init(head)))
    said = log_softmax(np.asarray(x_held @ kernel + bias, np.float64), axis=1)
    occurring = np.unique(y_held)
    return (
        balanced_accuracy_score(y_held, said.argmax(1)),
        np.mean([roc_auc_score(y_held == k, said[:, k]) for k in occurring]),
        -said[np.arange(len(y_held)), y_held].mean(),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--task", required=True)
    parser.add_argument("--augmentation", nargs="+", default=["none", "flip"], choices=PRESETS)
    parser.add_argument("--fit", help="how other shapes are fitted, instead of the run's own way")
    parser.add_argument("--modality", nargs="*", help="all, where none is named")
    parser.add_argument("--epochs", type=int, default=3, help="that are augmented anew")
    parser.add_argument("--head-epochs", type=int, default=15)
    options = parser.parse_args()
    restored = restore([options.run])
    data = restored.config.data
    if options.fit:
        modalities = {
            name: dataclasses.replace(modality, fit=options.fit)
            for name, modality in data.modalities.items()
        }
        data = dataclasses.replace(data, modalities=modalities)
    dataset = open_dataset(data, restored.runs[0] / SPLITS_FOLDER)
    pictures = [m.name for m in dataset.train.modalities if isinstance(m, ModalitySpec)]
    num_classes = len({t.name: t for t in dataset.train.tasks}[options.task].classes)
    held = evaluation_batches(dataset.validation, batch_size=BATCH)
    read = reader(restored)
    validation = features_of(read, held, None, options.task, options.modality)
    epoch_steps = len(dataset.train) // BATCH
    for name in options.augmentation:
        batches = training_batches(
            dataset.train,
            batch_size=BATCH,
            seed=1,
            transform=Augment(dict.fromkeys(pictures, PRESETS[name])),
        )
        count = epoch_steps * options.epochs
        train = features_of(read, batches, count, options.task, options.modality)
        seeds = [
            judged(train, validation, num_classes, epoch_steps, options.head_epochs, seed)
            for seed in range(SEEDS)
        ]
        balanced, auroc, loss = np.mean(seeds, 0)
        print(f"{name}: balanced {balanced:.3f}, AUROC {auroc:.3f}, loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
