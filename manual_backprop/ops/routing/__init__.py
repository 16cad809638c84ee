"""Routing: which numbers go where: chosen, dropped, gathered, scattered, rounded."""

__all__: list[str] = []
