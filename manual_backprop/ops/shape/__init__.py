"""Shape and arithmetic: broadcasting, reductions, joining and cutting."""

__all__: list[str] = []
