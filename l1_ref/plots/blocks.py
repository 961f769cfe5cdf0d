"""The figures of the notebook on blocks."""

__all__: list[str] = []
