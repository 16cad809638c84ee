"""Sequences."""

from __future__ import annotations

from cases.case import Case

OPS: list[Case] = []

LAYERS: list[Case] = []

EXTREMES: list[Case] = []

EMPTY: list[Case] = []

drawn = None

MISTAKES: dict = {}
