"""Matrix calculus: functions of a whole matrix."""

__all__: list[str] = []
