"""The notebooks need no network: while their cells run here, no socket can be had."""

import socket

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Refuse every socket and every look-up of a name."""

    def refuse(*arguments, **options):
        raise PermissionError(f"no network here, got {arguments[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "__init__", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
