"""`drifa run`: verify, train, evaluate, explain, report and export, from a config file or paths."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.commands import data, evaluate, explain, export, plan, train
from drifa_jax.config import Config
from drifa_jax.config_files import find_config, load_config
from drifa_jax.console import say
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

MIXES_FLAGS_AND_PATHS = True
TAKES_OVERRIDES = True

EPILOG = """\
WHAT is a config file (FILE.py, FILE.py:VARIANT or a preset), or data as `drifa plan` takes them,
which are planned first. With folds, every record is tested by the one network that never saw it,
and the networks together are an ensemble for `drifa predict` and `drifa export`. Each step that is
done is not done again: the same command goes on where it stopped."""
VERIFIED_FILE = "verified.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    plan.add_arguments(parser)
    parser.add_argument("--workdir", type=Path, help="directory of the run (default: runs/NAME)")
    parser.add_argument(
        "--folds", type=int, help="of a cross-validation (default: data.num_folds of the config)"
    )
    parser.add_argument(
        "--only-fold", type=int, help="train this fold alone, on one of several machines"
    )
    parser.epilog = EPILOG


@dataclass(frozen=True)
class Step:
    """One step: what it is, the file that shows it is done, and how it is done."""

    name: str
    done: Path
    run: Callable[[], int]


def run(options: argparse.Namespace) -> int:
    """Runs every step that is left; the exit code of the first that fails."""
    path = _planned(options)
    config = load_config(path, options.overrides)
    folds = config.data.num_folds if options.folds is None else options.folds
    if folds == 1 or folds < 0:
        raise UserError(f"--folds is {folds}; give 2 or more, or 0 for a single test split.")
    if options.only_fold is not None and not 0 <= options.only_fold < folds:
        raise UserError(f"--only-fold is {options.only_fold}; there are {folds} folds, from 0.")
    config = _with(config, num_folds=folds, fold=0)
    workdir = options.workdir or Path("runs") / train.run_name(path)
    verify = functools.partial(_verify, path, options.overrides, folds)
    steps = _steps(config, workdir, folds, options.only_fold, verify)
    if (code := run_steps(steps)) == 0 and options.only_fold is None:
        say(
            f"Report: {workdir / 'evaluation' / 'report.html'}\n"
            f"Predict: drifa predict {workdir} IMAGES..."
        )
    return code


def run_steps(steps: Sequence[Step]) -> int:
    """Runs the steps that are not done, in their order; the exit code of the first that fails."""
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.name}"
        if step.done.exists():
            say(f"{title}: done before ({step.done})")
            continue
        say(title)
        if code := step.run():
            return code
    return 0


def _planned(options: argparse.Namespace) -> str:
    """The config file given, or the one that is planned from the paths given."""
    first = options.paths[0]
    file = first.partition(":")[0]
    if len(options.paths) == 1 and (file.endswith(".py") or not Path(first).exists()):
        if "=" not in first:
            find_config(file)
            return first
    command = plan.command_line(options)
    if options.out.exists() and command in options.out.read_text():
        say(f"Planned before: {options.out}")
    else:
        plan.run(options)
    return str(options.out)


def _with(config: Config, **data: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def _steps(
    config: Config,
    workdir: Path,
    folds: int,
    only_fold: int | None,
    verify: Callable[[Path], int],
) -> list[Step]:
    verified = workdir.with_name(f"{workdir.name}-{VERIFIED_FILE}")
    steps = [Step("verify", verified, lambda: verify(verified))]
    if folds:
        runs = [workdir / f"fold-{fold}" for fold in range(folds)]
        chosen = range(folds) if only_fold is None else [only_fold]
        trained = [(f"train fold {fold} of {folds}", fold, runs[fold]) for fold in chosen]
    else:
        runs, trained = [workdir], [("train", 0, workdir)]
    for name, fold, run in trained:
        one_fold = _with(config, fold=fold)
        steps.append(
            Step(
                name,
                run / "metrics.json",
                lambda one_fold=one_fold, run=run: train.train_and_test(one_fold, run),
            )
        )
    if only_fold is not None:
        return steps
    evaluation, explanations = workdir / "evaluation", workdir / "explanations"
    portable = workdir / f"{workdir.name}.drifa"
    every = [str(run) for run in runs]
    return [
        *steps,
        Step(
            "evaluate and report",
            evaluation,
            lambda: _call(evaluate, [*every, "--out", str(evaluation)]),
        ),
        Step(
            "explain",
            explanations,
            lambda: _call(explain, [every[0], "--out", str(explanations)]),
        ),
        Step("export", portable, lambda: _call(export, [*every, str(portable)])),
    ]


def _call(command, arguments: Sequence[str], **options: Any) -> int:
    """Another command, as its own command line would call it; options that no flag has besides."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(arguments), argparse.Namespace(**options)))


class _Unfit(Exception):
    """Data in which an error was found; its argument is the exit code."""


def _verify(path: str, overrides: Sequence[tuple[str, str]], folds: int, verified: Path) -> int:
    """`drifa data verify` on the first fold; what it found is kept where it found no error.

    The file is there when all is well and never before: members of an array verify at once.
    """
    verified.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(verified) as partial:
            code = _call(
                data,
                ["verify", "--config", path, "--json", str(partial)],
                overrides=[*overrides, ("data.num_folds", str(folds))],
            )
            if code:
                raise _Unfit(code)
    except _Unfit as unfit:
        return unfit.args[0]
    return 0
