"""The plan: every setting that differs from the defaults, each with one line of reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from drifa_jax.config import Config
from drifa_jax.errors import UserError
from drifa_jax.network_options import DROPOUT_AT_HEADS
from drifa_jax.plan.batch import Room, batch_for
from drifa_jax.plan.decisions import Plan
from drifa_jax.plan.duration import (
    FORWARD,
    FORWARD_OF_FROZEN,
    HOURS,
    TRAINED,
    Length,
    in_words,
    length_within,
)
from drifa_jax.plan.modality import (
    ENOUGH_GROUPS,
    FEWEST_GROUPS,
    ONE_PATIENT,
    Answers,
    Found,
    Questions,
    fewest_groups,
    too_small,
)
from drifa_jax.plan.names import RADIOLOGY
from drifa_jax.plan.network import decide_network, freeze, is_pretrained
from drifa_jax.plan.survey import ImageHeader

SIDES = (64, 96, 128, 160, 224)
LARGEST_SIDE = {"cpu": 128, "gpu": 224, "tpu": 224}
STEPS = {"cpu": 600, "gpu": 6000, "tpu": 6000}
"""Training steps that a plan aims at, where the time allows them."""
FEWEST_TO_WAIT = 10
"""Epochs without a better validation loss that end a run; a third of its own where that is more."""
FOLDS_BELOW = 1500
"""Groups below which one test split says too little, so that all records are tested in folds."""


def make_plan(
    found: Sequence[Found],
    headers: Mapping[str, Mapping[str, ImageHeader | None]],
    grey: Mapping[str, bool],
    device: str,
    answers: Answers,
    measure: Callable[[Config, Mapping[str, int]], Room | None] = lambda config, tasks: None,
    hours: float | None = None,
) -> Plan:
    """What follows from the data.

    Args:
      found: the modalities.
      headers: modality -> image -> what its header says; None where it cannot be read.
      grey: modality -> whether its images hold no colour.
      device: cpu, gpu or tpu.
      answers: of the user.
      measure: (configuration, task -> number of classes) -> what its training step may take and
        takes; None where that is not to be known.
      hours: that the run may take; None for what is usual on such a device.

    Raises:
      UserError: where the data cannot be trained on; `Questions` where the user must choose.
    """
    plan = Plan()
    _check(found)
    plan.decide("data.source", "files", "the data given")
    pairing, shared, why = _pairing(found, answers)
    for modality in found:
        task = shared or (modality.task if modality.table else f"{modality.name}_class")
        plan.modalities[modality.name] = {**modality.fields, "task": task}
        plan.reasons |= {
            f"data.modalities.{modality.name}.{name}": reason
            for name, reason in modality.reasons.items()
        }
        plan.warnings += [f"{modality.name}: {fact}" for fact in modality.facts]
    if len(found) > 1:
        plan.decide("data.pairing", pairing, why)
    _splits(plan, found)
    decide_network(plan, found, device)
    _sizes(plan, found, headers, grey, device)
    tasks = {plan.modalities[m.name]["task"]: len(m.counts) for m in found}
    room = measure(plan.config(), tasks)
    _training(plan, found, grey, device, room)
    if room is not None:
        _length(plan, found, room, 3600 * (HOURS[device] if hours is None else hours))
    if is_pretrained(plan):
        _patience(plan)
    return plan


def _check(found: Sequence[Found]) -> None:
    for modality in found:
        counts = modality.counts
        if not counts:
            raise UserError(f"{modality.name}: no record has a label that can be learnt.")
        if len(counts) < 2:
            raise UserError(
                f"{modality.name}: one class only ({', '.join(counts)}), so there is nothing to "
                "tell apart. Give the folder that holds all classes, or a table with labels."
            )
        if modality.groups == 1:
            raise UserError(f"{modality.name}: {ONE_PATIENT}")
        small = {n: g for n, g in modality.groups_of.items() if g < FEWEST_GROUPS and n in counts}
        if small:
            raise UserError(f"{modality.name}: {too_small(small)}")


def _pairing(found: Sequence[Found], answers: Answers) -> tuple[str, str, str]:
    """Pairing, the task that all share or "", and why."""
    if len(found) == 1:
        return "", "", ""
    tables = {modality.table for modality in found}
    if len(tables) == 1 and "" not in tables:
        return "paired", found[0].task, "one row of the table holds all modalities of a record"
    same_classes = len({tuple(modality.counts) for modality in found}) == 1
    ids = [set(modality.images) for modality in found]
    common = set.intersection(*ids)
    share = len(common) / max(1, min(map(len, ids)))
    told = f"{len(common)} of {min(map(len, ids))} names are in all modalities"
    task = "diagnosis" if same_classes else ""
    if answers.pairing:
        return answers.pairing, task, "as you said"
    if share > 0.9 and same_classes:
        return "paired", task, told
    if share > 0.05 and same_classes:
        raise Questions(
            [
                f"do the modalities show the same people? {told}, for example "
                f"{', '.join(sorted(common)[:3])}: --pairing paired (a record may lack a "
                "modality), or --pairing random for strangers"
            ]
        )
    if same_classes:
        return "by_task", task, f"strangers with the same classes ({told}): no pairs are invented"
    return "random", "", f"strangers ({told}): each modality has its own task, partners are drawn"


def _sizes(plan: Plan, found, headers, grey, device: str) -> None:
    side_of: dict[str, int] = {}
    for modality in found:
        known = [h for h in headers.get(modality.name, {}).values() if h is not None]
        broken = sum(h is None for h in headers.get(modality.name, {}).values())
        where = f"data.modalities.{modality.name}"
        if modality.images and not known and headers.get(modality.name):
            raise UserError(
                f"{modality.name}: none of {len(headers[modality.name])} images can be read; "
                f"`drifa data verify --root {modality.root}` names what is wrong with each."
            )
        if broken:
            plan.warnings.append(
                f"{modality.name}: {broken} of {broken + len(known)} headers cannot be read"
            )
        shortest = sorted(min(h.width, h.height) for h in known)
        middle = shortest[len(shortest) // 2] if shortest else 128
        limit = LARGEST_SIDE[device]
        side = max((s for s in SIDES if s <= min(middle, limit)), default=SIDES[0])
        side_of[modality.name] = side
        fields = plan.modalities[modality.name]
        fields["height"] = fields["width"] = side
        told = f"half of the images are at least {middle} px high and wide" if known else "usual"
        plan.reasons[f"{where}.height"] = f"{told}; at most {limit} on this {device.upper()}"
        fields["channels"], plan.reasons[f"{where}.channels"] = _channels(modality, known, grey)
        ratios = sorted(max(h.width, h.height) / min(h.width, h.height) for h in known)
        if ratios and ratios[len(ratios) // 2] > 1.2:
            fields["fit"], plan.reasons[f"{where}.fit"] = _fit(plan)


def _fit(plan: Plan) -> tuple[str, str]:
    if is_pretrained(plan):
        return "stretch", (
            "most images are not square; pretrained branches were seen to look at black bars "
            "(docs/results.md)"
        )
    return "pad", "most images are not square; padding keeps their shape"


def _channels(modality: Found, known, grey: Mapping[str, bool]) -> tuple[int, str]:
    if RADIOLOGY.fullmatch(modality.name.lower()):
        return 1, f"{modality.name} has no colour"
    if not known:
        return 1, "usual"
    if grey.get(modality.name):
        return 1, "no colour in a sample of images"
    return 3, "colour in a sample of images"


def _splits(plan: Plan, found: Sequence[Found]) -> None:
    brought = [modality for modality in found if "test" in modality.splits]
    groups, whole = fewest_groups(found)
    if brought:
        plan.decide("data.validation_fraction", 0.15, "the data bring a test split, which is kept")
    elif groups < FOLDS_BELOW:
        plan.decide(
            "data.num_folds",
            5,
            f"{whole}: a single test split of a fifth says too little, so every record is "
            "tested once, by a network that never saw it",
        )
    else:
        plan.decide("data.test_fraction", 0.2, f"{whole}; the data bring no test split")
    plan.decide(
        "data.duplicates",
        "remove" if brought else "group",
        "training records that are near duplicates of held-out ones are removed"
        if brought
        else "near duplicates share a split",
    )


def _training(plan: Plan, found: Sequence[Found], grey, device: str, room: Room | None) -> None:
    records = max(sum(modality.counts.values()) for modality in found)
    batch, why = batch_for(records, room)
    plan.decide("train.batch_size", batch, why)
    steps = max(1, int(TRAINED * records) // batch)
    epochs = min(100, max(8, -(-STEPS[device] // steps)))
    plan.decide("train.num_epochs", epochs, f"about {epochs * steps} steps of {batch} records")
    plan.decide(
        "train.schedule", "cosine", "falls to zero by the last epoch, whatever their number"
    )
    plan.decide("train.warmup_steps", min(100, steps), "what is new starts gently")
    ratio = max(max(m.counts.values()) / min(m.counts.values()) for m in found)
    if ratio > 1.5 and not is_pretrained(plan):
        plan.decide(
            "train.class_weights",
            "balanced",
            f"the largest class is {ratio:.1f} times the smallest",
        )
    plan.decide("data.augmentation", *_augmentation(found, grey))
    if records * len(found) < 6000:
        plan.decide("data.in_memory", True, "decoded once; the set fits")
    plan.decide("uncertainty.num_mc_samples", 20, "Monte Carlo dropout, one network")
    scarce = {
        name: None
        for modality in found
        for name, groups in modality.groups_of.items()
        if groups < ENOUGH_GROUPS
    }
    if scarce:
        plan.warnings.append(
            f"figures of {', '.join(scarce)} mean little: fewer than {ENOUGH_GROUPS} patients or "
            "images each"
        )


def _length(plan: Plan, found: Sequence[Found], room: Room, seconds: float) -> None:
    """Shortens the training to the time that there is, and says how long it takes."""
    counts = [sum(modality.counts.values()) for modality in found]
    sides = {name: fields["height"] for name, fields in plan.modalities.items()}
    folds = plan.settings.get("data.num_folds", 0)
    wished = Length(plan.settings["train.num_epochs"], max(1, folds), max(sides.values()), 0.0)

    shares_answers = plan.settings.get("model.dropout_at") == DROPOUT_AT_HEADS

    def longest(by_record: float, forward: float) -> Length:
        return length_within(
            seconds,
            wished=wished,
            by_record=by_record,
            forward=forward,
            records=sum(counts) if plan.settings.get("data.pairing") == "by_task" else max(counts),
            batch=plan.settings["train.batch_size"],
            samples=1 if shares_answers else plan.settings["uncertainty.num_mc_samples"],
        )

    length = longest(room.step.seconds, FORWARD)
    if is_pretrained(plan):
        frozen = longest(room.step.seconds * FORWARD, FORWARD_OF_FROZEN)
        gains = (frozen.networks, frozen.side) != (length.networks, length.side)
        if gains or length.seconds > seconds:
            freeze(plan)
            length = frozen
    plan.seconds = length.seconds
    within = f"to end within {in_words(seconds)} on this {room.device.upper()}; --hours H for more"
    if length.epochs < plan.settings["train.num_epochs"]:
        plan.decide("train.num_epochs", length.epochs, f"as many as it takes {within}")
    for name, side in sides.items():
        if side > length.side:
            fields = plan.modalities[name]
            fields["height"] = fields["width"] = length.side
            plan.reasons[f"data.modalities.{name}.height"] = f"small {within}"
    if length.networks < folds:
        del plan.settings["data.num_folds"]
        plan.decide("data.test_fraction", 0.2, f"one split instead of {folds} folds, {within}")
        plan.warnings.append(
            f"one test split instead of {folds} folds {within}: intervals will be wide"
        )
    if length.seconds > 1.2 * seconds:
        plan.warnings.append(
            f"the shortest run worth its name takes {in_words(length.seconds)} on this "
            f"{room.device.upper()}, not {in_words(seconds)}"
        )


def _patience(plan: Plan) -> None:
    epochs = plan.settings["train.num_epochs"]
    patience = max(FEWEST_TO_WAIT, epochs // 3)
    if patience < epochs:
        plan.decide(
            "train.early_stopping_patience",
            patience,
            "epochs without a better validation loss: pretrained branches are often at their best "
            "after a few",
        )


def _augmentation(found: Sequence[Found], grey: Mapping[str, bool]) -> tuple[str, str]:
    called = {modality.name.lower() for modality in found}
    grey = {m.name: grey.get(m.name, True) or RADIOLOGY.fullmatch(m.name.lower()) for m in found}
    if not any(grey.values()):
        return "photo", "colour pictures have no up and down"
    if all("mr" in name or name in ("t1", "t2", "flair", "pre", "post") for name in called):
        return "mri", "MRI: bias fields, Rician noise"
    if called <= {"ct", "xray", "x-ray", "cxr"}:
        return "ct", "CT or X-ray"
    return "paper", "the paper's, for several kinds of images"
