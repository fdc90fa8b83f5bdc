"""`drifa serve`: a local page and a JSON endpoint for one case, by a network that stays warm."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from drifa_jax.commands.predict import (
    add_predictor_arguments,
    check_predictor_arguments,
    is_export,
    open_predictor,
    split_paths,
)
from drifa_jax.console import RESEARCH_NOTE, say
from drifa_jax.errors import UserError
from drifa_jax.extras import optional
from drifa_jax.serve.options import MIB, Limits

EPILOG = """\
RUN is a run directory, several of them or the folder of a `drifa run --folds` (one deep ensemble),
or a file that `drifa export` wrote. Open the address that is printed: drop the files of one case,
see the answer, its uncertainty and where the network looked. Programs use POST /v1/predict, which
/openapi.json describes. No case is written to disk.
Without --host the server talks to this machine alone. With it, whoever asks must send a token:
that of --token-file or of the variable DRIFA_SERVE_TOKEN, or one that is made and printed once."""

PORT = 8317
LIMITS = Limits()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="RUN", help="see below")
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one ({PORT})")
    parser.add_argument("--host", help="address to listen at, for other machines; needs a token")
    parser.add_argument("--token-file", type=Path, help="holds the token that must come along")
    parser.add_argument(
        "--name", action="append", default=[], help="another name of this server, as in its URL"
    )
    parser.add_argument(
        "--max-upload",
        type=int,
        default=LIMITS.upload_bytes // MIB,
        metavar="MIB",
        help=f"size of one request ({LIMITS.upload_bytes // MIB})",
    )
    parser.add_argument(
        "--queue", type=int, default=LIMITS.queue, help=f"cases that may wait ({LIMITS.queue})"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=LIMITS.batch,
        help=f"cases that are answered together at most ({LIMITS.batch})",
    )
    parser.add_argument(
        "--decoders",
        type=int,
        default=LIMITS.decoders,
        help=f"processes that decode uploads ({LIMITS.decoders})",
    )
    add_predictor_arguments(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    for package in ("starlette", "uvicorn", "python_multipart"):
        optional(package, "drifa serve", "serve")
    limits = _limits(options)
    check_predictor_arguments(options)
    runs, rest = split_paths(options.paths)
    if rest:
        raise UserError(f"{rest[0]} is no run; drifa serve takes runs, and cases in the browser.")
    from drifa_jax.serve.guard import LOOPBACK, Access
    from drifa_jax.serve.server import bound
    from drifa_jax.serve.tokens import find_token

    token, is_new = find_token(options.token_file, needed=options.host not in (None, *LOOPBACK))
    host = options.host or LOOPBACK[0]
    listening = bound(host, options.port)
    access = Access((*LOOPBACK, host, *map(str.lower, options.name)), host not in LOOPBACK, token)
    # Imported late, so that a wrong flag and a port in use are answered before JAX loads.
    from drifa_jax.compilation import use_compilation_cache
    from drifa_jax.serve.app import build_app
    from drifa_jax.serve.server import run as serve
    from drifa_jax.serve.service import Service

    use_compilation_cache()
    predictor, lacks = _opened(runs, options)
    service = Service(predictor, limits, lacks)
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listening.getsockname()[1]}/   {RESEARCH_NOTE}")
    if is_new:
        say(f"Token, told this once: {token}")
    return serve(service, build_app(service, access), listening)


def _limits(options: argparse.Namespace) -> Limits:
    for name, least, most in (
        ("port", 0, 65535),
        ("max_upload", 1, 2**20),
        ("queue", 1, 10_000),
        ("batch", 1, 16),
        ("decoders", 1, 64),
    ):
        value = getattr(options, name)
        if not least <= value <= most:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {value}; it must be from {least} to {most}.")
    if options.batch & (options.batch - 1):
        raise UserError(f"--batch is {options.batch}; it must be a power of two.")
    return dataclasses.replace(
        LIMITS,
        upload_bytes=options.max_upload * MIB,
        queue=options.queue,
        batch=options.batch,
        decoders=options.decoders,
    )


def _opened(runs: list[str], options: argparse.Namespace):
    """What answers; and why without post-processing, where that is so."""
    try:
        return open_predictor(runs, options), "" if not options.no_post_processing else (
            "It was left out by --no-post-processing."
        )
    except UserError as error:
        if options.no_post_processing or is_export(runs[0]):
            raise
        options.no_post_processing = True
        # A run that cannot be opened at all says so here once more.
        predictor = open_predictor(runs, options)
        say(f"NOTE: no post-processing, as it cannot be fitted: {error}")
        return predictor, f"It cannot be fitted: {error}"
