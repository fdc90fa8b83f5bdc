"""What pretrained branches are worth: heads on their frozen features, on held-out groups.

    python benchmarks/pretrained_study.py configs/results.py:brain_lung_pretrained
        --config.data.modalities.mri.root=BRAIN_MRI --config.data.modalities.ct.root=LUNG_CT
    python benchmarks/pretrained_study.py configs/results.py:milk10k_pretrained
        --config.data.modalities.closeup.root=MILK10K
        --config.data.modalities.dermoscopy.root=MILK10K

Each modality of images runs once through its branch (`train.pretrained`) without dropout and
attention, and is pooled over space: what a network of frozen branches hands to its heads. A head,
softmax over standardised features with balanced classes and a penalty that the validation records
choose, is fitted for three splits (`data.split_seed` 0, 1, 2; fold 0 of each). Modalities of the
same people also get a head on all their features side by side, tables included. Intervals are
bootstraps over groups of the test records. Features are kept in --cache, one file a modality.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from pathlib import Path

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from drifa_jax.config_files import load_config
from drifa_jax.data.dataset import modality_names, open_dataset
from drifa_jax.data.pipeline import evaluation_batches
from drifa_jax.interop.pretrained.branches import branch_tensors, stage_maps
from drifa_jax.interop.pretrained.checkpoint import open_checkpoint
from drifa_jax.interop.tensors import unflatten
from drifa_jax.models.pixels import Normalisation, scale_pixels
from drifa_jax.models.pooling import average_pool
from drifa_jax.train.pretrained import pretrained_of, with_checkpoint_pixels

SPLITS = ("train", "validation", "test")
PENALTIES = 10.0 ** np.arange(-5, 1)
RESAMPLES = 2000


def feature_reader(config, name):
    """Images `[b, h, w, c]` uint8 of a modality -> pooled features `[b, f]`."""
    modality = config.data.modalities[name]
    backbone = modality.backbone or config.model.backbone
    where, field = pretrained_of(config)[name]
    tensors, _ = branch_tensors(
        open_checkpoint(where, backbone, field), backbone, modality.channels, config.model, name
    )
    held = re.compile(r".*/(mean|var)")
    params, statistics = (
        unflatten({path: x for path, x in tensors.items() if bool(held.fullmatch(path)) == wanted})
        for wanted in (False, True)
    )
    normalise = Normalisation(modality.mean, modality.std)

    @jax.jit
    def features(params, statistics, pixels):
        x = normalise(scale_pixels({name: pixels})[name])
        maps = stage_maps(backbone, config.model, params, statistics, x)
        return average_pool(list(maps.values())[-1])

    return lambda pixels: np.asarray(features(params, statistics, pixels))


def features_of(config, name, cache: Path):
    """Record id -> features of a modality, read from the cache or computed once."""
    file = cache / f"{name}.npz"
    if not file.exists():
        alone = dataclasses.replace(config.data, only_modalities=(name,))
        dataset, read = open_dataset(alone), feature_reader(config, name)
        ids, rows, started = [], [], time.monotonic()
        for split in SPLITS:
            source = getattr(dataset, split)
            for batch in evaluation_batches(source, batch_size=32):
                found = read(batch["images"][name])
                ids += [source.record_id(int(k)) for k in batch["index"][batch["valid"]]]
                rows.append(found[batch["valid"]])
            print(
                f"{name}, {split}: {len(ids)} records, {time.monotonic() - started:.0f} s",
                flush=True,
            )
        np.savez(file, ids=np.array(ids), features=np.concatenate(rows))
    stored = np.load(file)
    return dict(zip(stored["ids"].tolist(), stored["features"], strict=True))


def rows_of(config, name):
    """Record id -> the numbers of a modality that is a table."""
    dataset = open_dataset(dataclasses.replace(config.data, only_modalities=(name,)))
    found = {}
    for split in SPLITS:
        for record in getattr(dataset, split):
            found[record.record_id] = record.images[name]
    return found


def studied(config, names, tables, seed):
    """One head on the features of some modalities, on one split."""
    data = dataclasses.replace(config.data, only_modalities=names, split_seed=seed)
    dataset = open_dataset(data)
    parts = parts_of(dataset, dataset.train.tasks[0].name, [tables[name] for name in names])
    probabilities, penalty = fit_head(parts)
    _, labels, groups = parts["test"]
    predicted = probabilities.argmax(1)
    row = {
        "modality": "+".join(names),
        "split_seed": seed,
        "records": len(labels),
        "groups": len(np.unique(groups)),
        "inverse_penalty": penalty,
    }
    for label, measure in (("accuracy", accuracy), ("balanced", balanced)):
        row[label] = with_interval(measure, labels, predicted, groups, probabilities.shape[1])
    return row


def parts_of(dataset, task, tables):
    """Split -> features, labels and groups of the labelled records."""
    parts = {}
    for split in SPLITS:
        source = getattr(dataset, split)
        labels = source.labels(task)
        rows = np.flatnonzero(labels >= 0)
        ids = [source.record_id(int(row)) for row in rows]
        x = np.stack([np.concatenate([table[i] for table in tables]) for i in ids])
        parts[split] = (x, labels[rows], np.array([source.group_id(int(row)) for row in rows]))
    return parts


def fit_head(parts):
    """Probabilities of the test records by the head that validation records prefer."""
    scaler = StandardScaler().fit(parts["train"][0])
    x = {split: scaler.transform(part[0]) for split, part in parts.items()}
    y = {split: part[1] for split, part in parts.items()}
    heads = [
        LogisticRegression(C=c, class_weight="balanced", max_iter=500).fit(x["train"], y["train"])
        for c in PENALTIES
    ]
    losses = [
        log_loss(y["validation"], h.predict_proba(x["validation"]), labels=h.classes_)
        for h in heads
    ]
    best = heads[int(np.argmin(losses))]
    return best.predict_proba(x["test"]), float(best.C)


def accuracy(confusion):
    """Share of records on the diagonal of `[..., true, predicted]`."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def balanced(confusion):
    """Mean recall of the classes that occur."""
    occurs = confusion.sum(-1)
    recall = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(occurs, 1)
    return recall.sum(-1) / (occurs > 0).sum(-1)


def with_interval(measure, labels, predicted, groups, num_classes):
    """A measure and its 95% bootstrap interval over groups."""
    names, of_group = np.unique(groups, return_inverse=True)
    confusions = np.zeros((len(names), num_classes, num_classes))
    np.add.at(confusions, (of_group, labels, predicted), 1)
    drawn = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES
    )
    values = measure(np.tensordot(drawn, confusions, 1))
    return [float(x) for x in (measure(confusions.sum(0)), *np.quantile(values, (0.025, 0.975)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--cache", type=Path, default=Path("runs/pretrained_study"))
    parser.add_argument("--seeds", type=int, default=3)
    options, rest = parser.parse_known_args()
    overrides = [tuple(a.removeprefix("--config.").split("=", 1)) for a in rest]
    config, notes = with_checkpoint_pixels(load_config(options.config, overrides), None)
    print(*notes, sep="\n")
    options.cache.mkdir(parents=True, exist_ok=True)
    tables = {name: features_of(config, name, options.cache) for name in pretrained_of(config)}
    chosen = [(name,) for name in tables]
    if config.data.pairing == "paired":
        rows = [name for name in modality_names(config.data) if name not in tables]
        tables |= {name: rows_of(config, name) for name in rows}
        chosen = [(name,) for name in tables] + [tuple(tables)]
    results = []
    for names in chosen:
        for seed in range(options.seeds):
            row = studied(config, names, tables, seed)
            results.append(row)
            print(json.dumps(row), flush=True)
    (options.cache / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
