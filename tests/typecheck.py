"""The type checker that pytest puts on every function of l1_ref, and where it is left off."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextmanager
def left_off() -> Iterator[None]:
    """Check no types meanwhile: work of a million calls, whose parts are tested with their types elsewhere."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
