import hashlib
import logging
import socket
import sys
import warnings
from urllib.error import URLError

import pytest
import torch

from sptrace.errors import SptraceError
from sptrace.models import libraries


def test_quiet_silences_prints_warnings_and_logs_and_lets_them_back(capfd, caplog) -> None:
    with libraries.quiet():
        print("noise")
        print("noise", file=sys.stderr)
        logging.getLogger("library").error("noise")
        warnings.warn("noise", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    logging.getLogger("library").error("a real problem")
    assert [record.message for record in caplog.records] == ["a real problem"]


@pytest.mark.parametrize("failure", [URLError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_do_and_restores_the_timeout(failure: Exception) -> None:
    before = socket.getdefaulttimeout()
    advice = r"of MODEL could not be downloaded from https://host/file \(.*\): .*--weights FILE"
    during = []

    def fail() -> None:
        during.append(socket.getdefaulttimeout())
        raise failure

    with pytest.raises(SptraceError, match=advice), libraries.downloading("MODEL", "https://host/file"):
        fail()
    assert during == [libraries.TIMEOUT_SECONDS]
    assert socket.getdefaulttimeout() == before


def test_hub_file_downloads_once_and_checks_the_checksum_in_the_name(tmp_path, monkeypatch) -> None:
    asked = []

    def download(url, path, checksum, progress):
        asked.append((url, checksum))
        with open(path, "wb") as file:
            file.write(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first = libraries.hub_file("https://host/net-0123abcd.pth")
    second = libraries.hub_file("https://host/net-0123abcd.pth")
    assert first == second == tmp_path / "checkpoints" / "net-0123abcd.pth"
    assert asked == [("https://host/net-0123abcd.pth", "0123abcd")]


def test_fingerprint(tmp_path) -> None:
    path = tmp_path / "my net.pth"
    path.write_bytes(b"weights")
    assert libraries.fingerprint(path) == f"my net.pth sha256:{hashlib.sha256(b'weights').hexdigest()[:12]}"


def test_first_line_of_an_error() -> None:
    assert libraries.first_line(ValueError("\n  what happened\nand a long story")) == "what happened"
    assert libraries.first_line(EOFError()) == "EOFError"
