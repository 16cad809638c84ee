"""What happened to a run, and which checkpoints it keeps: two sections of its report.

A session is what one process did: it begins with "started" or "resumed", and ends with "stopped", "failed" or
"finished"; one without an end was killed, unless it is going on.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from manual_backprop.training.history import BEGIN, END, History, disk, in_bytes, number

HASH = r"\b([0-9a-f]{12})[0-9a-f]{28,}"
WHY = ("why", "by", "text", "reason")  # fields whose value says enough


def sessions(events: Iterable[dict]) -> list[list[dict]]:
    """The events of each process, in order."""
    found: list[list[dict]] = []
    for event in events:
        if event["event"] in BEGIN or not found:
            found.append([])
        found[-1].append(event)
    return found


def ended(session: Sequence[dict]) -> dict | None:
    """The event that ended it."""
    return next((event for event in reversed(session) if event["event"] in END), None)


def outcome(run: History) -> str:
    """One sentence: how far it came, and how it ended."""
    all_sessions, at = sessions(run.events), f"step {number(run.done)}{f' of {number(run.steps)}' if run.steps else ''}"
    last = (ended(all_sessions[-1]) if all_sessions else None) or {}
    why = next((f": {last[key]}" for key in WHY if last.get(key)), "")
    times = [[event["at"] for event in session if event["at"]] for session in all_sessions]
    work = sum((max(t) - min(t) for t in times if t), timedelta())
    spent = f", after {span(work)} of work" if work else ""
    spent += f" in {len(all_sessions)} sessions" if len(all_sessions) > 1 else ""
    how_far = f"all {number(run.steps)} steps" if run.done == run.steps else f"at {at}"
    return {
        "finished": f"Finished {how_far}{spent}.",
        "stopped": f"Stopped at {at}{spent}{why}.",
        "running": f"Running: at {at} when this page was made{spent}.",
    }.get(run.state, f"Unfinished: last heard of at {at}{spent}.")


def events_section(run: History) -> str:
    """A strip of time, and a table. Empty where there are no events."""
    if not run.events:
        return ""
    found = sessions(run.events)
    first = next((event["at"] for event in run.events if event["at"]), None)
    body = []
    for place, session in enumerate(found):
        saves: list[dict] = []
        for event in [*session, None]:
            if event and event["event"] in ("saved", "speed"):
                saves += [event] if event["event"] == "saved" else []
                continue
            if saves:
                body.append(_saves(saves, first))
                saves = []
            if event:
                body.append(_row(event["at"], first, event["event"], event.get("step") or None, _details(event)))
        going_on = place == len(found) - 1 and run.state == "running"
        if not ended(session) and not going_on:
            steps = [event["step"] for event in session if "step" in event]
            said = "without a last word" + (f", after step {number(max(steps))}" if steps else "")
            body.append(_row(None, first, "killed", None, escaped(said)))
    head = "".join(f'<th scope="col"{k}>{t}</th>' for t, k in
                   (("time", ""), ("since the start", N), ("event", ""), ("step", N), ("", "")))  # fmt: skip
    listed = f'<div class="scroll" tabindex="0" role="region" aria-label="Events"><table><thead><tr>{head}</tr></thead>'
    return f"{_strip(run, found)}{listed}<tbody>{''.join(body)}</tbody></table></div>"


def checkpoints_section(run: History) -> str:
    """A row a checkpoint: step, when and how long it was saved, size, and whether its manifest is there."""
    saved = {event["step"]: event for event in run.events if event["event"] == "saved" and "step" in event}
    rows = []
    for step, folder in kept(run.folder):
        event = saved.get(step, {})
        seconds = event.get("seconds")
        took = f"{number(float(seconds))} s" if finite(seconds) else ""
        try:
            whole = (folder / "manifest.json").stat().st_size > 0
        except OSError:
            whole = False
        manifest = "there" if whole else '<span class="alarm">missing: it cannot be used</span>'
        when = clock(event.get("at"))
        cells = (
            (number(step), N),
            (when, ' class="when"'),
            (took, N),
            (in_bytes(disk(folder)), N),
            (manifest, ' class="when"'),
        )
        rows.append(f"<tr>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in cells)}</tr>")
    try:
        other = [path.name for path in sorted((run.folder / "checkpoints").iterdir()) if not _is_step(path.name)]
    except OSError:
        other = []
    told = f"{len(saved)} were saved. " if saved else ""
    told += f"Also there, and not used: {', '.join(other)}. " if other else ""
    told += "The files are not verified here; a resumption does that." if rows else ""
    note = f'<p class="note">{escaped(told)}</p>' if told else ""
    if not rows:
        return note
    head = "".join(f'<th scope="col"{k}>{t}</th>' for t, k in
                   (("step", N), ("saved", ""), ("in", N), ("size", N), ("manifest", "")))  # fmt: skip
    listed = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Checkpoints">{listed}</div>{note}'


def kept(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each checkpoint there is, whole or not."""
    try:
        found = [path for path in (folder / "checkpoints").iterdir() if _is_step(path.name) and path.is_dir()]
    except OSError:
        return []
    return sorted((int(path.name), path) for path in found)


# ── Words ────────────────────────────────────────────────────────────────────────────────────────────────────────────

N = ' class="n"'


def escaped(value: Any) -> str:
    """What a run has written, as text of the page."""
    return html.escape(str(value))


def shown(value: Any) -> str:
    """A value of a configuration or of an event."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def span(time: timedelta) -> str:
    """2 h 5 min"""
    seconds = abs(time.total_seconds())
    if seconds < 99.5:
        return f"{number(round(seconds, 1))} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    (large, size), (small, least) = next(
        pair for pair in itertools.pairwise(units) if seconds >= pair[0][1] or pair[1][1] == 1
    )
    whole, rest = divmod(round(seconds / least), size // least)
    return f"{whole} {large}{f' {rest} {small}' if rest else ''}"


def clock(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 16


def _row(at: datetime | None, first: datetime | None, event: str, step: int | None, details: str) -> str:
    since = span(at - first) if at and first else ""
    alarm = " alarm" if event in ("killed", "failed", "skipped", "warning") else ""
    cells = f'<td class="when">{clock(at)}</td><td{N}>{since}</td><td class="when{alarm}">{escaped(event)}</td>'
    return f'<tr>{cells}<td{N}>{"" if step is None else number(step)}</td><td class="wide">{details}</td></tr>'


def _saves(saves: Sequence[dict], first: datetime | None) -> str:
    if len(saves) == 1:
        return _row(saves[0]["at"], first, "saved", saves[0].get("step"), _details(saves[0]))
    steps = [event["step"] for event in saves if "step" in event]
    said = f"steps {number(steps[0])} … {number(steps[-1])}" if steps else ""
    seconds = [float(event["seconds"]) for event in saves if finite(event.get("seconds"))]
    said += f", {number(max(seconds))} s at most" if seconds else ""
    return _row(saves[-1]["at"], first, f"saved {len(saves)} times", None, said)


def _details(event: dict) -> str:
    told = []
    for key, value in event.items():
        if key in WHY:
            told.append(shown(value))
        elif key == "seconds" and finite(value):
            told.append(f"in {number(float(value))} s")
        elif key == "bytes" and finite(value):
            told.append(in_bytes(int(value)))
        elif key not in ("time", "event", "step", "at", "pid"):
            said = number(value) if isinstance(value, float) else shown(value)
            told.append(f"{key.replace('_', ' ')} " + re.sub(HASH, r"\1…", said))
    return escaped(", ".join(told))


def _strip(run: History, found: Sequence[Sequence[dict]]) -> str:
    """Time along x: a bar a session, a tick a checkpoint, a red line where one was killed."""
    times = [event["at"] for event in run.events if event["at"]]
    if len(times) < 2 or min(times) == max(times):
        return ""
    begin, whole = min(times), max(times) - min(times)
    place = lambda time: 100 * ((time - begin) / whole)
    parts = []
    for number_of, session in enumerate(found):
        own = [event["at"] for event in session if event["at"]]
        if not own:
            continue
        parts.append(f'<i style="left:{place(min(own)):.3f}%;width:{place(max(own)) - place(min(own)):.3f}%"></i>')
        saves = [event["at"] for event in session if event["event"] == "saved" and event["at"]]
        parts += [f'<u style="left:{place(at):.3f}%"></u>' for at in saves[-200:]]
        if not ended(session) and not (number_of == len(found) - 1 and run.state == "running"):
            parts.append(f'<s style="left:{place(max(own)):.3f}%"></s>')
    killed = sum(part.startswith("<s") for part in parts)
    told = f"{len(found)} session{'s' * (len(found) > 1)} over {span(whole)}"
    told += f"; {killed} ended without a last word" if killed else ""
    ends = (f"{clock(begin)} {begin:%Z}", told, clock(max(times)))
    below = f'<p class="ends">{"".join(f"<span>{escaped(end)}</span>" for end in ends)}</p>'
    return f'<div class="strip" role="img" aria-label="{escaped(told)}">{"".join(parts)}</div>{below}'
