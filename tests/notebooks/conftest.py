"""The notebooks need no network: while their cells run here, no socket can be had. They train: types are left off."""

import socket

import pytest

from tests import typecheck


@pytest.fixture(scope="module", autouse=True)
def types_left_off():
    """Check no types: tests of each part of l1_ref do."""
    with typecheck.left_off():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Refuse every socket and every look-up of a name."""

    def refuse(*arguments, **options):
        raise PermissionError(f"no network here, got {arguments[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "__init__", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
