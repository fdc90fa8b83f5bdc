"""`drifa compile`: compiles for a slice of TPUs that nobody has rented yet."""

from __future__ import annotations

import argparse
import json

from drifa_jax.config_files import load_config
from drifa_jax.console import say
from drifa_jax.errors import UserError

TAKES_OVERRIDES = True
PROGRAMS = ("step", "evaluation", "sampler")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("config", help="FILE.py or FILE.py:VARIANT, e.g. configs/brain.py")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="v5e-16, v4-8, v6e-256, v5e:4x4..."
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="equal slices together")
    parser.add_argument(
        "--only", choices=PROGRAMS, action="append", help="one program (default: all three)"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="do not look for the largest batch that fits"
    )
    parser.add_argument(
        "--price", type=float, help="of a chip for an hour: says what the run costs at least"
    )
    parser.add_argument(
        "--records",
        type=int,
        help="that train, for --price (default: those of the data)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.epilog = (
        "Needs libtpu and no TPU. Any field of the configuration can be changed: "
        "--config.train.batch_size=1024. Exit code 1 where a program does not fit."
    )


def run(options: argparse.Namespace) -> int:
    """Compiles, prints, and says by the exit code whether all fits."""
    from drifa_jax.compile_for.slices import check_libtpu, prepare_environment, slices_named

    slices = slices_named(options.topology, options.slices)
    if options.price is not None and "step" not in (options.only or PROGRAMS):
        raise UserError("--price needs the training step among --only.")
    check_libtpu()
    config = load_config(options.config, options.overrides)
    prepare_environment()
    from drifa_jax.compile_for.cost import cost
    from drifa_jax.compile_for.report import compile_for, in_words
    from drifa_jax.compile_for.stand_in import open_or_stand_in

    dataset, note = open_or_stand_in(config.data, config.train.batch_size)
    if note:
        say(f"NOTE: {note}")
    if note and options.price is not None and options.records is None:
        raise UserError("--price: the data are not here; say by --records how many train.")
    report = compile_for(
        config,
        dataset,
        slices,
        only=options.only or PROGRAMS,
        search=not options.no_search,
        say=say,
    )
    least = None
    if options.price is not None:
        num_records = options.records or len(dataset.train)
        step = report.estimates[0]
        least = cost(step, slices, num_records, config.train.num_epochs, options.price)
    if options.json:
        priced = {} if least is None else {"cost": least.to_json()}
        print(json.dumps(report.to_json() | priced, indent=2))
    else:
        print("\n".join(in_words(report) + ([] if least is None else [least.in_words()])))
    return 0 if report.fits else 1
