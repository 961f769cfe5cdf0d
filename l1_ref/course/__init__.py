"""The course around the notebooks: building them, and the reader's workspace."""
