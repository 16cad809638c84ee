"""Pooling and upsampling: many positions to one, one to many."""

__all__: list[str] = []
