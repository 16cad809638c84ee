"""A run as one page to read: report.html, made of the files in the run's folder alone.

It can be made again at any time, of a run that goes on or has failed too. The page asks nothing of a network: styles,
curves, numbers and pictures are in it. What a run has written is text there, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import manual_backprop as mb
from manual_backprop.errors import InputError
from manual_backprop.training.chronicle import (
    checkpoints_section,
    escaped,
    events_section,
    finite,
    outcome,
    shown,
)
from manual_backprop.training.history import History, disk, flat, in_bytes, number, read
from manual_backprop.training.series import curves

SAMPLES, LETTERS = 24, 4000
PICTURE = 16 << 20  # bytes
PICTURES = {
    "sensitivities.png": "Sensitivities: what flows back to the input, ∂C/∂x, and to the weights, ∂C/∂w",
    "mistakes.png": "Mistakes: the examples that it misread and was surest of",
    "saliency.png": "Saliency: what flows back to the pictures, ∂C/∂x",
    "filters.png": "Filters: w of the first layer, and what flows back to it, ∂C/∂w",
    "through_time.png": "Through time: how much the last step's cost depends on the state of every step before it",
    "beside.png": "Runs beside each other: how far ∂C/∂h reaches back in each",
    "latent.png": "Latent map: where held-out pictures are, and what the decoder makes of the plane",
    "reconstructions.png": "Reconstructions: held-out pictures through the latent variables, and pictures drawn",
    "confusion.png": "Confusion: which class was read as which",
    "curves.png": "Curves, as the run drew them",
}


def write_report(folder: Path | str) -> Path:
    """Makes report.html in a run's folder, in place of an older one, and gives its path.

    Files that are damaged or missing are named in the page. Raises InputError for what is no run's folder, and where
    the page cannot be written.
    """
    history = read(folder)
    file = history.folder / "report.html"
    partial = file.with_name(f".report.html.{os.getpid()}.partial")
    try:
        partial.write_text(page(history), encoding="utf-8", errors="replace")  # half a character of a cut line
        partial.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return file


def page(run: History) -> str:
    """The whole page."""
    unread = list(run.unread)
    data = curves(run)
    sections = [
        ("curves", "Curves", _curves(data)),
        ("flow-of-gradients", "Gradient flow", _flow(data)),
        ("pictures", "Pictures", _pictures(run.folder, unread)),
        ("samples", "Samples", _samples(run.rows)),
        ("events", "What happened", events_section(run)),
        ("checkpoints", "Checkpoints", checkpoints_section(run)),
        ("configuration", "Configuration", _pairs(flat(run.config))),
        ("machine", "Machine and versions", _pairs(flat(run.environment))),
        ("result", "Result", _pairs(flat(run.result))),
    ]
    sections = [section for section in sections if section[2]]
    here = Path(__file__).with_name("report.js")
    script, style = here.read_text("utf-8"), here.with_suffix(".css").read_text("utf-8")
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{own}'"
    title = f"{run.experiment} {run.folder.resolve().name}"
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    parts = "".join(f'<section id="{name}"><h2>{heading}</h2>{body}</section>' for name, heading, body in sections)
    made = datetime.now().astimezone().isoformat(" ", "seconds")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<p class="name">{escaped(run.folder.resolve().name)}</p>
<h1>{escaped(run.experiment)}</h1>
<p class="outcome">{escaped(outcome(run))}</p>
{_figures(run)}
{_unread(unread)}
<nav aria-label="Sections">{links}</nav>
</header>
<main>{parts}</main>
<footer>Made {made} by manual_backprop {mb.__version__} from the files in the run's folder.</footer>
<script type="application/json" id="data">{_json(data)}</script>
<script>{script}</script>
</body>
</html>
"""


# ── What the run came to ─────────────────────────────────────────────────────────────────────────────────────────────


def _figures(run: History) -> str:
    """The numbers to see first."""
    speeds = [event for event in run.events if event["event"] == "speed"]
    middle = lambda key: _median([event[key] for event in speeds if finite(event.get(key))])
    units = next((str(event["unit"]) for event in speeds if event.get("unit")), "units" if speeds else "tokens")
    speed, used = middle("units_per_second"), middle("utilization")
    if speed is None:  # version 0.1 had no events
        speed, used = run.result.get("tokens_per_second"), run.result.get("model_flops_utilization")
    cells = [("steps", number(run.done), f"of {number(run.steps)}" if run.steps else "")]
    for key in ("cost", "held_out_cost", "accuracy"):
        if (value := run.last(key)) is not None:
            cells.append((_name(key) if key != "held_out_cost" else "cost, held out", number(value), ""))
    if finite(run.result.get("entropy")):
        cells.append(("entropy of the source", number(run.result["entropy"]), ""))
    if finite(speed):
        cells.append((f"{units} a second", number(float(speed)), ""))
    if finite(used):
        cells.append(("utilisation (MFU)", f"{100 * used:.0f} %", ""))
    cells.append(("on disk", in_bytes(disk(run.folder)), ""))
    more = lambda text: f" <small>{escaped(text)}</small>" if text else ""
    rows = "".join(f"<div><dt>{escaped(a)}</dt><dd>{escaped(b)}{more(c)}</dd></div>" for a, b, c in cells)
    return f'<dl class="figures">{rows}</dl>'


def _unread(unread: Sequence[str]) -> str:
    lines = "".join(f"<li>{escaped(line)}</li>" for line in unread)
    return f'<div class="unread" role="note"><p>Not all could be read:</p><ul>{lines}</ul></div>' if lines else ""


# ── Curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _curves(data: dict) -> str:
    if not data["charts"]:
        return '<p class="soft">There are no numbers yet.</p>'
    figures = []
    for place, chart in enumerate(data["charts"]):
        wide = " wide" if place == 0 else ""
        figures.append(f'<figure class="chart{wide}" data-chart="{place}">{_plot(chart["title"])}</figure>')
    thinned = f" {number(data['left_out'])} rows are left out, evenly." if data["left_out"] else ""
    return f"""<noscript><p>The curves are drawn by a script, which is in this page; it is off.</p></noscript>
<div class="controls"><label>Smoothing <input type="range" id="smoothing" min="0" max="1" step="0.01" value="0">
<output for="smoothing">none</output></label>
<button type="button" class="plain" id="whole" hidden>Show all steps</button></div>
<div class="charts">{"".join(figures)}</div>
<p class="note">Values that are read off are those of the files, smoothed or not.{thinned}{_legend(data)}
<span class="screen">Point at a curve, or focus it and press ← → Page Home End; to look closer drag, or press + and −;
0 shows all.</span></p>
<details class="values"><summary>The numbers as a table</summary>
<div class="scroll" tabindex="0" role="region" aria-label="The numbers as a table"></div></details>"""


def _legend(data: dict) -> str:
    """What the marks along the steps are."""
    told = ["▲ is a checkpoint that is kept"] * bool(data["saved"]) + ["a dotted line a resumption"] * bool(
        data["resumed"]
    )
    return f" {', '.join(told).capitalize()}." if told else ""


def _plot(title: str, inside: str = "", scale: bool = True) -> str:
    choice = "".join(f'<button type="button" value="{v}">{v}</button> ' for v in ("linear", "log"))
    buttons = (
        f'<span class="scale" role="group" aria-label="Scale of {escaped(title)}">{choice}</span>' if scale else ""
    )
    return f"""<figcaption><h3>{escaped(title)}</h3>{buttons}<p class="readout"></p></figcaption>
<div class="plot" tabindex="0" role="slider" aria-label="{escaped(title)}" aria-valuenow="0">{inside}</div>"""


def _flow(data: dict) -> str:
    if not data["layers"]:
        return ""
    return f"""<p class="soft">The length of ∂C/∂w of each layer, from the first (above) to the last, over the steps.
<span class="screen">A click on a row, or ↑ ↓ and Enter, draws the layer below, or no longer.</span></p>
<figure id="flow">{_plot("By layer and step", "<canvas></canvas>", scale=False)}</figure>
<figure id="lines">{_plot("Chosen layers")}</figure>"""


# ── Pictures and samples ─────────────────────────────────────────────────────────────────────────────────────────────


def _pictures(folder: Path, unread: list[str]) -> str:
    files = [folder / name for name in PICTURES] + sorted(set(folder.glob("*.png")) - {folder / n for n in PICTURES})
    shown = []
    for file in files:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            unread.append(f"{file.name}: {error.strerror}")
            continue
        if content[:8] != b"\x89PNG\r\n\x1a\n" or content[-8:-4] != b"IEND" or len(content) < 45:
            unread.append(f"{file.name} is no whole PNG; it was left out")
        elif len(content) > PICTURE:
            unread.append(f"{file.name} has {in_bytes(len(content))}; it stays in the folder")
        else:
            width, height = struct.unpack(">II", content[16:24])
            title = escaped(PICTURES.get(file.name, _name(file.stem).capitalize()))
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            image = f'<img src="{source}" width="{width}" height="{height}" alt="{title}">'
            shown.append(f'<figure class="picture"><figcaption><h3>{title}</h3></figcaption>{image}</figure>')
    return "".join(shown)


def _samples(rows: Sequence[dict]) -> str:
    found = [(row["step"], row["sample"]) for row in rows if isinstance(row.get("sample"), str)]
    places = sorted({i * (len(found) - 1) // (SAMPLES - 1) for i in range(SAMPLES)})
    items = []
    for step, text in (found[i] for i in places if found):
        rest = f"\n… {number(len(text) - LETTERS)} more letters" if len(text) > LETTERS else ""
        body = escaped(text.strip("\n")[:LETTERS] + rest)
        items.append(f'<li><span class="at">step {number(step)}</span><pre tabindex="0">{body}</pre></li>')
    told = f'<p class="note">{SAMPLES} of {len(found)}, evenly over the run.</p>' if len(found) > SAMPLES else ""
    return f'{told}<ol class="samples">{"".join(items)}</ol>' if items else ""


# ── Small parts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values as a table; hashes and paths in the letters of code."""
    rows = []
    for name, value in pairs:
        told = number(value) if isinstance(value, float) else shown(value)
        mono = ' class="mono"' if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}|\S*/\S*", value) else ""
        exact = f' title="{escaped(shown(value))}"' if told != shown(value) else ""
        rows.append(f'<tr><th scope="row">{escaped(name)}</th><td{mono}{exact}>{escaped(told)}</td></tr>')
    return f'<div class="two"><table><tbody>{"".join(rows)}</tbody></table></div>' if rows else ""


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _name(name: str) -> str:
    return name.replace("_", " ")
