"""The figures of the notebook on attention."""

__all__: list[str] = []
