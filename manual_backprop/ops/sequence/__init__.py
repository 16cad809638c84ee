"""Sequences: the chain rule through time."""

__all__: list[str] = []
