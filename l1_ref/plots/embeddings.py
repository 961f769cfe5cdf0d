"""The figures of the notebook on embeddings."""

__all__: list[str] = []
