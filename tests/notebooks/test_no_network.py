"""That the tests of the notebooks run without a network is no empty word."""

import socket

import pytest


def test_no_socket_can_be_had():
    with pytest.raises(PermissionError, match="no network here"):
        socket.create_connection(("localhost", 80))
    with pytest.raises(PermissionError, match="no network here"):
        socket.socket()
