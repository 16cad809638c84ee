"""Attention: a softmax over pairs of positions, plain and in chunks, and the ways to tell positions apart."""

__all__: list[str] = []
