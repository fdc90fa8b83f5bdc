"""The plan as one HTML page: what was found, what it looks like, what was decided and why."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from drifa_jax.console import printable
from drifa_jax.inline_pictures import data_uri
from drifa_jax.plan.config_file import rows
from drifa_jax.plan.decisions import Plan
from drifa_jax.plan.modality import Found
from drifa_jax.plan.survey import ImageHeader
from drifa_jax.whole_files import written_whole

TILE = 96
BY_CLASS = 6
STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --paper: #fffffe; --faint: #5b6370;
  --line: #dfe3e8; --bar: #2563b8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --paper: #15181c;
  --faint: #a3abb6; --line: #343a42; --bar: #7fb0f2 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word }
.tiles img { width: 96px; height: 96px; object-fit: cover; margin: 1px }
.faint { color: var(--faint) }
.wide { overflow-x: auto }
svg { max-width: 100%; height: auto }
text { fill: var(--ink); font-size: 12px }
rect { fill: var(--bar) }
"""


def write_page(
    path: Path,
    plan: Plan,
    found: Sequence[Found],
    headers: Mapping[str, Mapping[str, ImageHeader | None]],
    commands: Sequence[str],
) -> None:
    """Writes the page, which needs no other file and no network."""
    parts = [
        "<h1>The plan</h1>",
        "<p>Research use only. Not a medical device.</p>",
        "<p>Next: " + " or ".join(f"<code>{_text(c)}</code>" for c in commands) + "</p>",
    ]
    if plan.warnings:
        items = "".join(f"<li>{_text(warning)}</li>" for warning in plan.warnings)
        parts.append(f"<h2>Before you believe any figure</h2><ul>{items}</ul>")
    for modality in found:
        parts += _modality(modality, headers.get(modality.name, {}))
    body = "".join(
        f"<tr><td><code>{_breakable(name)}</code></td><td>{_text(value)}</td><td>{_text(reason)}</td></tr>"
        for name, value, reason in rows(plan)
    )
    parts.append(
        "<h2>What was decided, and why</h2><div class=wide><table><tr><th>setting<th>value"
        f"<th>reason</tr>{body}</table></div>"
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>drifa plan</title><style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )
    with written_whole(path) as partial:
        partial.write_text(page)


def _modality(modality: Found, headers: Mapping[str, ImageHeader | None]) -> list[str]:
    total = sum(modality.counts.values())
    groups = f" of {modality.whole}" if modality.groups else ""
    splits = ", ".join(f"{split}: {n}" for split, n in modality.splits.items())
    parts = [
        f"<h2>{_text(modality.name)}</h2><p>{total} records{groups}"
        + (f"; splits of the data: {_text(splits)}" if splits else "")
        + f" <span class=faint>({_text(str(modality.root))})</span></p>",
        _bars(modality.counts, f"Records by class of {modality.task}"),
    ]
    sides = [min(h.width, h.height) for h in headers.values() if h is not None]
    if sides:
        parts.append(_bars(_histogram(sides), "Images by their shorter side in pixels"))
    parts.append(_tiles(modality))
    return parts


def _bars(counts: Mapping[str, int], title: str) -> str:
    """Horizontal bars, with their numbers as text."""
    largest, height = max(counts.values(), default=1) or 1, 24 * len(counts)
    lines = []
    for place, (name, count) in enumerate(counts.items()):
        y, width = 24 * place, 320 * count / largest
        short = name if len(name) < 32 else name[:31] + "…"
        lines.append(
            f'<text x="205" y="{y + 16}" text-anchor="end">{_text(short)}</text>'
            f'<rect x="212" y="{y + 4}" width="{width:.1f}" height="16"/>'
            f'<text x="{218 + width:.1f}" y="{y + 16}">{count}</text>'
        )
    label = f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f'<h3>{_text(title)}</h3><svg role=img aria-label="{_text(label)}" width=600 '
        f'height={height} viewBox="0 0 600 {height}">{"".join(lines)}</svg>'
    )


def _histogram(sides: Sequence[int]) -> dict[str, int]:
    edges = (0, 64, 96, 128, 160, 224, 320, 512, 1024)
    counts = {}
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        inside = sum(side >= low and (high is None or side < high) for side in sides)
        if inside:
            counts[f"{low} to {high - 1}" if high else f"{low} or more"] = inside
    return counts


def _tiles(modality: Found) -> str:
    """A few images of each class, evenly spread."""
    lines = []
    for name, images in modality.examples(BY_CLASS).items():
        pictures = "".join(filter(None, (_picture(modality.root / image) for image in images)))
        if pictures:
            lines.append(f"<tr><th>{_text(name)}</th><td class=tiles>{pictures}</td></tr>")
    if not lines:
        return ""
    table = f"<div class=wide><table>{''.join(lines)}</table></div>"
    return f"<h3>Some images of each class</h3>{table}"


def _picture(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * TILE, 2 * TILE))
            small = image.convert("RGB")
            small.thumbnail((2 * TILE, 2 * TILE))
            written = io.BytesIO()
            small.save(written, "JPEG", quality=80)
    except Exception:  # verify says what is wrong with it
        return ""
    return f'<img alt="" src="{data_uri(written.getvalue(), "jpeg")}">'


def _breakable(name: str) -> str:
    """A dotted name that may be broken where its parts end."""
    return _text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _text(text: str) -> str:
    return html.escape(printable(text), quote=True)
