"""`drifa monitor`: a deployment over time against the validation records of its run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, printable, say
from drifa_jax.errors import UserError

ALARM = 3
"""Exit code where something is beyond its limits."""
LENGTHS = ("day", "week", "month", "quarter", "year")

EPILOG = """\
PREDICTIONS are Parquet files of `drifa predict RUN CASES --parquet FILE`, or folders of them. Each
argument is one period, in the order given, unless --time names the column with each record's date
(of the predictions, or of the table --records with record_id and whatever is known: date, site,
scanner, group_id). --labels is a table with record_id and a column for each task, which may come
later and lack records. Several run directories before the predictions are one deep ensemble.
The first time, the validation records of the run are predicted from its data and kept in the run.
Exit code 0 without an alarm, 3 with one, 1 where something is wrong with what was given."""

MIXES_FLAGS_AND_PATHS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="RUN [RUN...] PREDICTIONS", help="see below")
    parser.add_argument("--labels", type=Path, metavar="TABLE", help="labels that came later")
    parser.add_argument(
        "--records", type=Path, metavar="TABLE", help="what else is known of records"
    )
    parser.add_argument("--time", metavar="COLUMN", help="column with the date of each record")
    parser.add_argument("--every", choices=LENGTHS, default="month", help="period (default: month)")
    parser.add_argument(
        "--by", metavar="COLUMN,...", help="show apart by (default: site, scanner, ... if known)"
    )
    parser.add_argument("--out", type=Path, help="folder of the page (default: RUN/monitoring)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--rate", type=float, default=0.05, help="of pages with a false alarm (default: 0.05)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the simulated histories")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Judges all periods and writes the page."""
    # Of probabilities nearer to the ends the histories that are drawn say too little.
    if not 0.005 <= options.rate <= 0.5:
        raise UserError(f"--rate is {options.rate}; it must be from 0.005 to 0.5.")
    from drifa_jax.commands.predict import is_export, split_paths

    runs, others = split_paths(options.paths)
    if is_export(runs[0]):
        raise UserError(
            f"{runs[0]}: an exported file has no validation records to hold anything against; "
            "name the run that it was made of."
        )
    files = [Path(path) for path in others]
    if not files:
        raise UserError(f"Give predictions of {runs[0]}, by `drifa predict --parquet`.")
    out = options.out or Path(runs[0]) / "monitoring"
    # Imported late, so that a wrong flag is answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.evaluate.folders import check_replaceable
    from drifa_jax.monitor.monitoring import monitor
    from drifa_jax.monitor.page import JSON_FILE, PAGE_FILE, verdict, write_monitoring
    from drifa_jax.monitor.reference import reference_of
    from drifa_jax.monitor.tables import check_run, monitored, read_tables, with_post_processing

    check_replaceable(out, JSON_FILE)
    tables = read_tables(files)
    first = tables[0][1].provenance
    use_compilation_cache()
    reference = reference_of(runs, first.num_samples, first.seed, say)
    for _, part in tables:
        check_run(part, reference.predictions, runs[0])
    made = [(name, with_post_processing(part, reference.fitted)) for name, part in tables]
    found = monitor(
        reference,
        monitored(
            made,
            records=options.records,
            labels=options.labels,
            time=options.time,
            every=options.every,
        ),
        columns=options.by.split(",") if options.by else None,
        rate=options.rate,
        seed=options.seed,
    )
    write_monitoring(found, out)
    if options.json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        print(printable(verdict(found)))
        for series, period, statistic in found.alarms[:10]:
            judged, measure = found.family.series[series], found.statistics[statistic]
            told = f"{measure.title} {judged.mean[period, statistic]:.3g}"
            told += f" (validation {judged.reference[statistic]:.3g} ± "
            told += f"{judged.reach[period, statistic]:.2g})"
            place, when = found.places[series].name, found.monitored.periods[period]
            print(printable(f"  {when}, {place}: {told}"))
    for note in found.notes:
        say(f"NOTE: {note}")
    say(f"Page: {out / PAGE_FILE}. {RESEARCH_NOTE}")
    return ALARM if found.alarms else 0
