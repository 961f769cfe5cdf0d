"""The figures of the notebook on model."""

__all__: list[str] = []
