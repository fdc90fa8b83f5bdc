"""Is the uncertainty of a run worth acting on? Answers on its test split, as Markdown.

    python benchmarks/uncertainty_study.py RUN [RUN...] [--foreign mri=FOLDER] [--figure OUT.png]

Every rule (temperature, sets, referral threshold) is fitted on the validation split and frozen.
Foreign images take the place of one modality in the test records; so do corrupted ones.

Is coverage as promised? Standard errors draw whole groups (patients, near duplicates) of
validation and test records anew, because records of one group are not independent. "Re-split"
mixes the groups of both splits and divides them again at random: there the promise holds by
construction, so that a gap which it closes comes of test records unlike the validation records.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from drifa_jax.compilation import use_compilation_cache
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.decode import decode_file
from drifa_jax.data.pairing import labelled_parts
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.predictor import load
from drifa_jax.predictions.files import MEASURES
from drifa_jax.uncertainty import calibration, conformal, ood, selective

NUM_DRAWS = 300
RANKING = tuple(name for name in MEASURES if name != "margin")  # which grows with certainty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--records", type=int, default=500, help="test records at most")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--foreign", action="append", default=[], metavar="MODALITY=FOLDER")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    use_compilation_cache()
    predictor = load(*options.runs, num_samples=options.samples)
    dataset = open_dataset(predictor.restored.config.data)
    test = Split(predictor, dataset.test, options.records, seed=0)
    print(
        f"{'SYNTHETIC. ' * dataset.synthetic}{test.count} test records, "
        f"{predictor.num_members} member(s) x {predictor.num_samples} samples.\n"
    )
    validation = Split(predictor, dataset.validation, len(dataset.validation), seed=0)
    print_tasks(predictor, test, validation)
    print_foreign(predictor, dataset, test, options.foreign)
    if options.figure:
        draw(predictor, test, options.figure, dataset.synthetic)


@dataclass(frozen=True)
class Labelled:
    """Labelled records of one task: probabilities `[n, k]`, labels and groups `[n]`."""

    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def of(self, groups) -> Labelled:
        """The records of some groups; a group may be named twice."""
        order = np.argsort(self.groups, kind="stable")
        held = self.groups[order]
        starts, ends = (np.searchsorted(held, groups, side) for side in ("left", "right"))
        rows = np.concatenate([order[start:end] for start, end in zip(starts, ends, strict=True)])
        return Labelled(self.probabilities[rows], self.labels[rows], self.groups[rows])

    def drawn_anew(self, draw: np.random.Generator) -> Labelled:
        """As many groups, drawn with replacement."""
        names = np.unique(self.groups)
        return self.of(draw.choice(names, len(names)))

    def divided_with(self, other: Labelled, draw: np.random.Generator):
        """Both together, divided again by groups into parts of about the same sizes."""
        both = Labelled(
            *(np.concatenate(parts) for parts in zip(astuple(self), astuple(other), strict=True))
        )
        names = draw.permutation(np.unique(both.groups))
        count = round(len(names) * len(self.labels) / len(both.labels))
        return both.of(names[:count]), both.of(names[count:])


class Split:
    """Some records of a source, read once, with what the ensemble says of them."""

    def __init__(self, predictor, source, limit: int, seed: int):
        rows = np.random.default_rng(seed).permutation(len(source))[:limit]
        records = [source[int(row)] for row in np.sort(rows)]
        specs = predictor.description.modalities
        self.count = len(records)
        self.ids = [record.record_id for record in records]
        self.pixels = {
            s.name: np.stack([r.images.get(s.name, np.zeros(s.shape, np.uint8)) for r in records])
            for s in specs
        }
        self.present = {s.name: np.array([s.name in r.images for r in records]) for s in specs}
        tasks = predictor.description.tasks
        self.labels = {task: np.array([r.labels.get(task, -1) for r in records]) for task in tasks}
        self.groups = {
            task: np.array(labelled_parts(source, task)[1])[np.sort(rows)] for task in tasks
        }
        self.uncertainty = predictor.uncertainty(self.pixels, self.present, self.ids)

    def labelled(self, task: str) -> Labelled:
        rows = self.labels[task] >= 0
        p = self.uncertainty[task].probabilities
        return Labelled(p[rows], self.labels[task][rows], self.groups[task][rows])

    def known(self, task: str):
        """Uncertainty measures, mean probabilities, labels and errors of labelled records."""
        of, labels = self.uncertainty[task], self.labels[task]
        rows = labels >= 0
        p = of.probabilities[rows]
        return (
            {name: value[rows] for name, value in of.measures().items()},
            p,
            labels[rows],
            p.argmax(1) != labels[rows],
        )


def print_tasks(predictor, test: Split, validation: Split) -> None:
    for task in predictor.description.tasks:
        measures, p, y, wrong = test.known(task)
        rules = predictor.post_processing.tasks[task]
        mended = rules.calibrator(p)
        groups = test.groups[task][test.labels[task] >= 0]
        print(
            f"#### {task}: {len(y)} labelled records in {len(set(groups))} groups, "
            f"error {wrong.mean():.1%}\n"
        )
        print("| does it rank errors? | AUROC | AURC | AUGRC |\n| --- | --- | --- | --- |")
        for name in RANKING:
            auroc = selective.error_detection_auroc(measures[name], wrong)
            print(
                f"| {name.replace('_', ' ')} | {number(auroc)} | "
                f"{selective.aurc(measures[name], wrong):.3f} | "
                f"{selective.augrc(measures[name], wrong):.3f} |"
            )
        referral = selective.refer(measures["predictive_entropy"], wrong, rules.referral)
        table = selective.certainty_table(measures["predictive_entropy"], wrong, rules.referral)
        print(
            f"\nReferral at the frozen threshold: {referral.referred:.1%} of the records go to a "
            f"human; error falls from {referral.error_before:.1%} to "
            f"{number(referral.error_after, '.1%')}, {number(referral.errors_caught, '.0%')} of "
            f"the errors are among them (precision {number(table.precision, '.2f')}, "
            f"specificity {number(table.specificity, '.2f')})."
        )
        before = calibration.calibration_metrics(p, y)
        after = calibration.calibration_metrics(mended, y)
        print("\n| calibration | " + " | ".join(before) + " |\n" + "| --- " * 6 + "|")
        for name, of in (("raw", before), ("temperature", after)):
            print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in of.values()) + " |")
        print(
            f"\nTemperature {rules.calibrator.constants['temperature']:.2f}, fitted on "
            f"{rules.num_validation} validation records.\n"
        )
        print_coverage(validation.labelled(task), test.labelled(task))


def print_coverage(fitted_on: Labelled, tested_on: Labelled) -> None:
    """Coverage of each kind of sets, how sure that figure is, and what exchangeable records get."""
    print("| sets, 90 % promised | coverage | standard error | re-split | mean size |")
    print("| --- | --- | --- | --- | --- |")
    for method in conformal.METHODS:
        sets = _fit(fitted_on, method)(tested_on.probabilities)
        draw = np.random.default_rng(0)
        drawn = [
            _coverage(fitted_on.drawn_anew(draw), tested_on.drawn_anew(draw), method)
            for _ in range(NUM_DRAWS)
        ]
        again = [_coverage(*fitted_on.divided_with(tested_on, draw), method) for _ in drawn]
        print(
            f"| {method.upper()} | {conformal.coverage(sets, tested_on.labels):.3f} | "
            f"{np.std(drawn):.3f} | {np.mean(again):.3f} | {conformal.mean_size(sets):.2f} |"
        )
    print()


def _fit(records: Labelled, method: str):
    extra = {"penalty": 0.05, "free_classes": 1} if method == "raps" else {}
    return conformal.fit_conformal(records.probabilities, records.labels, method=method, **extra)


def _coverage(fitted_on: Labelled, tested_on: Labelled, method: str) -> float:
    return conformal.coverage(_fit(fitted_on, method)(tested_on.probabilities), tested_on.labels)


def print_foreign(predictor, dataset, test: Split, foreign: list[str]) -> None:
    """How well scores tell known test records from those with a foreign or corrupted image."""
    scores = out_of_distribution_scores(predictor, dataset, test)
    known = scores(test.pixels, test.uncertainty)

    def flagged(pixels) -> str:
        """Share that `drifa predict` would show as FOREIGN."""
        if predictor.detector is None:
            return "-"
        scores = predictor.detector(predictor.features(pixels, test.present))
        return f"{scores.flagged.mean():.2f}"

    draw = np.random.default_rng(1)
    names = [spec.name for spec in predictor.description.modalities]
    changed = {}
    for argument in foreign:
        name, _, folder = argument.partition("=")
        spec = {s.name: s for s in predictor.description.modalities}[name]
        paths = find_cases([folder], [name]).images[name]
        paths = [paths[int(i)] for i in draw.permutation(len(paths))[: test.count]]
        images = np.stack([decode_file(path, spec) for path in paths])
        changed[f"{name} is {Path(folder).name}"] = (
            name,
            images[np.arange(test.count) % len(images)],
        )
    for name in names:
        pixels = test.pixels[name].astype(float)
        noisy = np.clip(pixels + draw.normal(0, 60, pixels.shape), 0, 255).astype(np.uint8)
        changed[f"{name} with noise"] = (name, noisy)
        changed[f"{name} black"] = (name, np.zeros_like(test.pixels[name]))
        changed[f"{name} negative"] = (name, 255 - test.pixels[name])
    print("#### Foreign and corrupted images: AUROC (FPR95) of telling them from test records\n")
    print("| images | " + " | ".join(known) + " | shown as FOREIGN |")
    print("| --- " * (len(known) + 2) + "|")
    print("| test records themselves " + "| " * len(known) + f"| {flagged(test.pixels)} |")
    for title, (name, images) in changed.items():
        pixels = {**test.pixels, name: images}
        uncertainty = predictor.uncertainty(pixels, test.present, test.ids)
        cells = [
            f"{ood.detection_auroc(known[k], v):.2f} ({ood.fpr_at_95_tpr(known[k], v):.2f})"
            for k, v in scores(pixels, uncertainty).items()
        ]
        print(f"| {title} | " + " | ".join([*cells, flagged(pixels)]) + " |", flush=True)
    print()


def out_of_distribution_scores(predictor, dataset, test: Split):
    """A function from pixels and uncertainty to scores by name, summed over the tasks."""
    restored = predictor.restored
    first = jax.tree.map(lambda leaf: leaf[0], (restored.params, restored.statistics))
    masks = predictor.description.may_lack_modalities

    @jax.jit
    def one_pass(pixels, present):
        (logits, seen), _ = restored.network.apply(
            *first, scale_pixels(pixels), train=False, present=present if masks else None
        )
        return logits, seen["pooled"]

    def passes(pixels, present):
        parts = []
        for start in range(0, len(next(iter(present.values()))), 50):
            part = slice(start, start + 50)
            parts.append(
                jax.device_get(
                    one_pass(
                        {m: x[part] for m, x in pixels.items()},
                        {m: x[part] for m, x in present.items()},
                    )
                )
            )
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    rows = np.random.default_rng(0).permutation(len(dataset.train))[:500]
    records = [dataset.train[int(row)] for row in rows]
    specs = predictor.description.modalities
    pixels = {
        s.name: np.stack([r.images.get(s.name, np.zeros(s.shape, np.uint8)) for r in records])
        for s in specs
    }
    present = {s.name: np.array([s.name in r.images for r in records]) for s in specs}
    _, features = passes(pixels, present)
    task = next(iter(predictor.description.tasks))
    distance = ood.fit_mahalanobis(features, np.array([r.labels[task] for r in records]))

    def scores(pixels, uncertainty):
        logits, features = passes(pixels, test.present)
        return {
            "max softmax": sum(
                ood.max_softmax_score(u.probabilities) for u in uncertainty.values()
            ),
            "energy": sum(ood.energy_score(x) for x in logits.values()),
            "mutual information": sum(u.mutual_information for u in uncertainty.values()),
            "Mahalanobis": distance(features),
        }

    return scores


def draw(predictor, test: Split, path: Path, synthetic: bool) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(predictor.description.tasks)
    figure, axes = plt.subplots(len(tasks), 2, figsize=(8, 3.4 * len(tasks)), squeeze=False)
    for (left, right), task in zip(axes, tasks, strict=True):
        measures, p, y, wrong = test.known(task)
        for name, shown in (
            ("raw", p),
            ("temperature", predictor.post_processing.tasks[task].calibrator(p)),
        ):
            curve = calibration.reliability(shown, y, num_bins=10, binning="mass")
            left.plot(curve.confidence, curve.accuracy, "o-", label=name)
        left.plot([0, 1], [0, 1], "k:", linewidth=1)
        left.set(xlabel="confidence", ylabel="accuracy", title=f"{task}: reliability")
        left.legend()
        for name in ("predictive_entropy", "mutual_information"):
            curve = selective.risk_coverage(measures[name], wrong)
            right.plot(curve.coverage, curve.risk, label=name.replace("_", " "))
        oracle = selective.risk_coverage(wrong, wrong)
        right.plot([0, *oracle.coverage], [0, *oracle.risk], "k:", linewidth=1, label="oracle")
        right.axhline(wrong.mean(), color="grey", linewidth=0.8)
        right.set(xlabel="share of records answered", ylabel="error", title=f"{task}: referral")
        right.legend()
    if synthetic:
        figure.suptitle("SYNTHETIC data")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    print(f"figure: {path}", file=sys.stderr)


def number(value: float | None, how: str = ".3f") -> str:
    """A figure, or "undefined" where there was nothing to count."""
    return "undefined" if value is None else format(value, how)


if __name__ == "__main__":
    main()
