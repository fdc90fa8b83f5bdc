"""All that is known of a configuration on a slice of TPUs before one is rented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drifa_jax.compile_for.estimate import (
    GIB,
    Estimate,
    bytes_on_a_device,
    collective_sums,
    estimate,
)
from drifa_jax.compile_for.programs import SAMPLED_TOGETHER, Programs, one_process
from drifa_jax.compile_for.slices import Slices
from drifa_jax.config import Config
from drifa_jax.data.dataset import Dataset
from drifa_jax.sharding import DATA_AXIS, Layout, layout_of
from drifa_jax.train.experiment import build_experiment

USABLE = 63 / 64
"""Share of a chip's HBM that libtpu gives to a program."""

BATCH_OF = {"step": "train", "evaluation": "eval"}
"""Program -> the group of the configuration that says how large its batches are."""

MOST_COMPILES = 3
WORTH_A_COMPILE = 1.05
"""Times the largest batch known to fit, from which a larger one is tried."""


@dataclass(frozen=True)
class Report:
    """Estimates of the programs of one configuration.

    Attributes:
      slices: compiled for.
      num_devices: all of them.
      estimates: of the programs compiled, the training step first.
      largest: the largest training batch that fits, and its estimate, where it was looked for.
      advice: what would make it fit, or help, in words.
    """

    slices: Slices
    num_devices: int
    estimates: tuple[Estimate, ...]
    largest: Estimate | None = None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return all(estimate.memory.fits for estimate in self.estimates)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "topology": self.slices.name,
            "slices": self.slices.count,
            "devices": self.num_devices,
            "fits": self.fits,
            "programs": [estimate.to_json() for estimate in self.estimates],
            "largest_batch": None if self.largest is None else self.largest.to_json(),
            "advice": list(self.advice),
        }


def compile_for(
    config: Config,
    dataset: Dataset,
    slices: Slices,
    *,
    only: Sequence[str] = ("step", "evaluation", "sampler"),
    search: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compiles the programs of a configuration for slices.

    Args:
      config: of the run.
      dataset: its data; only sizes are read, and one record.
      slices: to compile for.
      only: programs to compile.
      search: whether the largest batch that fits is looked for, which compiles the training step
        once or twice more.
      say: prints a line of progress.

    Raises:
      UserError: where the configuration does not fit its data or the slices.
    """
    devices = slices.devices()
    layout = layout_of(config, devices, [BATCH_OF[name] for name in only if name in BATCH_OF])
    experiment = build_experiment(config, dataset)
    limit = int(slices.tpu.memory_gib * GIB * USABLE)
    programs = Programs(experiment, layout, limit)
    state = programs.template
    held = {
        "parameters": bytes_on_a_device(state.params),
        "moments": bytes_on_a_device(state.optimizer_state),
    }

    def training(num_records: int) -> Estimate:
        batch = {"batch": bytes_on_a_device(programs.batch_shapes(num_records))}
        say(f"compiling the training step for {num_records} records on {len(devices)} devices")
        return estimate(
            "training step",
            lambda: programs.training_step(num_records),
            num_records,
            slices,
            len(devices),
            held | batch,
        )

    found = []
    size = config.train.batch_size
    if "step" in only:
        found.append(training(size))
    if "evaluation" in only:
        num_records = config.eval.batch_size
        say(f"compiling the evaluation step for {num_records} records")
        found.append(
            estimate(
                "evaluation step",
                lambda: programs.evaluation_step(num_records),
                num_records,
                slices,
                len(devices),
                {"parameters": held["parameters"]},
            )
        )
    if "sampler" in only:
        say("compiling the Monte Carlo sampler for one host")
        found.append(
            estimate(
                "Monte Carlo sampler",
                programs.sampler,
                SAMPLED_TOGETHER,
                slices,
                len(one_process(devices)),
            )
        )
    largest = None
    if search and "step" in only:
        parts = layout.mesh.shape[DATA_AXIS]
        largest = largest_batch(found[0], held, parts, limit, training)
    advice = tuple(_advice(config, layout, found, held, largest, limit))
    return Report(slices, len(devices), tuple(found), largest, advice)


def largest_batch(
    first: Estimate,
    held: dict[str, int],
    parts: int,
    limit: int,
    compile_step: Callable[[int], Estimate],
) -> Estimate | None:
    """The largest batch that was compiled and fits; None where not even the smallest does.

    Memory grows linearly with the batch. Besides what is held, the gradients do not depend on it,
    as many bytes as the parameters; two batches compiled give the growth without that guess.

    Args:
      first: of the batch that was asked for.
      held: kind -> bytes that do not depend on the batch.
      parts: the batch is a multiple of it.
      limit: bytes that a program may use.
      compile_step: compiles the step for a batch.
    """
    known = {0: sum(held.values()) + held["parameters"], first.num_records: first.memory.total}
    best = first if first.memory.fits else None
    for _ in range(MOST_COMPILES):
        lower, upper = sorted(known)[-2:]
        growth = (known[upper] - known[lower]) / (upper - lower)
        if growth <= 0:
            break
        guess = int((limit - known[lower]) / growth + lower) // parts * parts
        worth_it = max(parts, 0 if best is None else WORTH_A_COMPILE * best.num_records)
        if guess < worth_it or guess in known:
            break
        tried = compile_step(guess)
        known[guess] = tried.memory.total
        if tried.memory.fits:
            best = tried
    return best


def _advice(config, layout: Layout, found, held, largest, limit) -> list[str]:
    """What would make the programs fit, the cheapest change first."""
    lacking = [estimate for estimate in found if not estimate.memory.fits]
    if not lacking:
        return []
    over = max(estimate.memory.total - estimate.memory.limit for estimate in lacking) / GIB
    lines = [f"{over:.2f} GiB a chip are lacking"]
    if config.model.compute_dtype == "float32":
        lines.append("--config.model.compute_dtype=bfloat16 halves the activations")
    parts = layout.mesh.shape[DATA_AXIS]
    if not layout.cuts_state and replace(layout, shard_state=True).cuts_state:
        saved = sum(held.values()) * (1 - 1 / parts) / GIB
        if saved >= 0.01:
            lines.append(f"--config.mesh.shard_state=true (FSDP) saves up to {saved:.2f} GiB")
    step = found[0]
    if not config.train.rematerialise and not step.memory.fits:
        lines.append(
            "--config.train.rematerialise=true computes activations again instead of keeping them"
        )
    if largest is not None:
        lines.append(f"--config.train.batch_size={largest.num_records} fits")
    elif not step.memory.fits:
        fixed = sum(held.values()) + held["parameters"]
        growth = (step.memory.total - fixed) / step.num_records
        guess = int((limit - fixed) / growth) // parts * parts if growth > 0 else 0
        if guess >= parts:
            lines.append(f"--config.train.batch_size={guess} may fit")
    if lacking and step.memory.fits:
        lines.append("a smaller --config.eval.batch_size, or fewer --config.uncertainty samples")
    lines.append("a slice of more chips takes fewer records on each")
    return lines


def in_words(report: Report) -> list[str]:
    """The report, line by line."""
    lines = [
        f"{report.slices.name} x {report.slices.count}: {report.num_devices} devices, "
        f"{report.slices.tpu.memory_gib:g} GiB each"
    ]
    for program in report.estimates:
        lines += _program_in_words(program)
    if report.largest is not None:
        lines.append(
            f"largest batch that fits: {report.largest.num_records} "
            f"({report.largest.memory.total / GIB:.2f} GiB a chip, compiled)"
        )
    verdict = "fits" if report.fits else "DOES NOT FIT"
    return [*lines, f"{verdict}{''.join(f'; {line}' for line in report.advice)}"]


def _program_in_words(program: Estimate) -> list[str]:
    memory, work = program.memory, program.work
    head = f"{program.name}, {program.num_records} records: "
    if not memory.fits:
        return [
            head + f"does not fit: {memory.total / GIB:.2f} of {memory.limit / GIB:.2f} GiB a chip "
            f"(compiled for {program.seconds:.0f} s)",
        ]
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in memory.kinds.items())
    bounds = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in program.bounds.items())
    sums = collective_sums(work)
    exchanged = ", ".join(
        f"{s['count']} {kind} of {s['bytes'] / 1e6:.1f} MB" for kind, s in sums.items()
    )
    return [
        head + f"{memory.total / GIB:.2f} GiB a chip ({kinds})",
        f"  a chip: {work.flops / 1e12:.3f} TFLOP, {work.hbm_bytes / 1e9:.2f} GB through "
        f"HBM, {work.vmem_bytes / 1e9:.2f} through VMEM; collectives: {exchanged or 'none'}",
        f"  at least {1e3 * max(program.bounds.values()):.2f} ms, bound by "
        f"{program.bottleneck} ({bounds})",
        f"  {work.num_fusions} fusions, program {program.program_bytes / 2**20:.0f} MiB, compiled "
        f"in {program.seconds:.0f} s",
    ]
