"""The softmax family: distributions over an axis, and their logarithms."""

__all__: list[str] = []
