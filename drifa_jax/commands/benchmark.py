"""`drifa benchmark`: which way to fuse wins, on published folds of truly paired records."""

from __future__ import annotations

import argparse
from pathlib import Path

from drifa_jax.console import say
from drifa_jax.errors import UserError

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("suite", help="paired-v1, or the config of a set, FILE.py:VARIANT")
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="SET=FOLDER",
        help="where a set lies; once for each (a config may name its own)",
    )
    parser.add_argument(
        "--join",
        action="append",
        default=[],
        metavar="SET=FOLDER",
        help="write the paired tables of a set into its publisher's folder, and stop",
    )
    parser.add_argument(
        "--preset",
        choices=("frozen",),
        default="frozen",
        help="how branches are used: frozen, their features computed once (the only one yet)",
    )
    parser.add_argument("--workdir", type=Path, help="default: runs/benchmark-SUITE")
    parser.add_argument("--seeds", default="0,1,2", help="by commas (default: %(default)s)")
    parser.add_argument("--methods", default="", help="names by commas (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="list sets and methods and stop")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; write the table of what is there"
    )
    parser.epilog = (
        "Branches are frozen and their features computed once. Any field of all sets' "
        "configurations can be changed: --config.train.num_epochs=5. The same command again goes "
        "on where an interrupted one stopped. See docs/benchmark.md."
    )


def run(options: argparse.Namespace) -> int:
    """Trains and tests all methods; writes the tables; 1 if anything is missing in them."""
    from drifa_jax.benchmark.suites import find_suite

    suite = find_suite(options.suite)
    if options.join:
        return _join(options.join, [s.name for s in suite])
    roots = _roots("--root", options.root, [s.name for s in suite])
    names = tuple(name for name in options.methods.split(",") if name)
    if options.list:
        return _list(suite, roots, options)
    seeds = _seeds(options.seeds)

    import absl.logging

    from drifa_jax.benchmark import running, suite_document
    from drifa_jax.compilation import use_compilation_cache

    absl.logging.set_verbosity(absl.logging.ERROR)
    use_compilation_cache()
    stem = "-".join(Path(options.suite).stem.split()) if ".py" in options.suite else options.suite
    workdir = options.workdir or Path("runs") / f"benchmark-{stem}"
    say(f"Research use only. {len(suite)} sets, {len(seeds)} seeds, in {workdir}")
    results, interrupted = [], False
    for benchmark_set in suite:
        result = running.SetResult(benchmark_set.name)
        results.append(result)
        if interrupted:
            result.problem = "interrupted before it"
            continue
        try:
            config = benchmark_set.load(roots.get(benchmark_set.name, ""), options.overrides)
            train = not options.table_only
            running.run_set(result, benchmark_set, config, seeds, names, workdir, say, train=train)
        except UserError as error:
            result.problem = str(error)
            say(f"{benchmark_set.name} FAILED: {error}")
        except KeyboardInterrupt:
            interrupted = True
            result.problem = "interrupted"
            say("interrupted; the same command again goes on from here")
    document = suite_document.document(options.suite, results, seeds)
    for line in suite_document.write(document, workdir):
        say(line)
    return 130 if interrupted else 1 if document["not_finished"] else 0


def _list(suite, roots, options) -> int:
    from drifa_jax.benchmark.methods import methods
    from drifa_jax.data.dataset import modality_names

    for benchmark_set in suite:
        config = benchmark_set.load(roots.get(benchmark_set.name, ""), options.overrides)
        print(f"{benchmark_set.name}: {', '.join(modality_names(config.data))}")
    for method in methods(()):
        print(f"  {method.name:22} {method.meaning}")
    print(f"  {'only_<modality>':22} each modality alone")
    return 0


def _join(pairs: list[str], known: list[str]) -> int:
    from drifa_jax.benchmark.publishers import join

    for name, folder in _roots("--join", pairs, known).items():
        for path in join(name, Path(folder)):
            print(path)
    return 0


def _roots(flag: str, pairs: list[str], known: list[str]) -> dict[str, str]:
    roots = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or name not in known:
            raise UserError(f"{flag} {pair!r}: write SET=FOLDER, SET one of {', '.join(known)}.")
        if not Path(folder).is_dir():
            raise UserError(f"{flag} {pair!r}: there is no folder {folder!r}.")
        roots[name] = folder
    return roots


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r}: give whole numbers by commas, such as 0,1,2.") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: give different numbers of 0 or more.")
    return seeds
