"""Behind a real socket: who does not go on is cut off, and the others are served."""

from __future__ import annotations

import socket
import time

import pytest

HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: 127.0.0.1\r\n"
FORM = b"content-type: multipart/form-data; boundary=x\r\n"


def ended(link: socket.socket, seconds: float) -> tuple[bytes, float]:
    """What is said until the server closes the connection, and when it did."""
    began, said = time.monotonic(), b""
    link.settimeout(seconds)
    try:
        while block := link.recv(65536):
            said += block
    except ConnectionResetError:
        pass
    return said, time.monotonic() - began


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nhost: 127.0", b""),
        (HEAD + FORM + b"content-length: 1000\r\n\r\n--x\r\n", b"408"),
        (HEAD + FORM + b"transfer-encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n", b"408"),
    ],
    ids=["silence", "half a head", "half a body", "half of chunks"],
)
def test_a_client_that_does_not_go_on_is_cut_off(address, client, sent, status):
    with socket.create_connection(address) as link:
        link.sendall(sent)
        said, seconds = ended(link, 20)
    assert said.split()[1:2] == [status] * bool(status)
    assert seconds < 15
    assert client.service._open == 0


def test_a_body_that_is_too_large_is_answered_although_nobody_reads_it(address):
    with socket.create_connection(address) as link:
        link.sendall(HEAD + FORM + b"content-length: 99999999999\r\n\r\n")
        link.settimeout(10)
        assert b" 413 " in link.recv(4096)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"GET \xff\r\n\r\n", b"A" * 100_000])
def test_what_is_no_http_ends_the_connection_and_nothing_else(address, client, sent):
    with socket.create_connection(address) as link:
        try:
            link.sendall(sent + b"\r\n\r\n")
            ended(link, 10)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert client.get("/healthz").status_code == 200
