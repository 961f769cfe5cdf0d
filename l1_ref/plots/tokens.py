"""The figures of the notebook on tokens."""

__all__: list[str] = []
