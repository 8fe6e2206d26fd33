import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from command_line import trained_folder

APP = Path(__file__).parents[2] / "examples" / "space" / "app.py"


@pytest.mark.slow
def test_the_space_serves_the_page_of_the_repository_it_was_given(tmp_path):
    # Red for: a page that ends at once, one that listens on the machine itself alone, another port than the Space asks for.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    environment = {**os.environ, "MODEL": str(trained_folder()), "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("wb") as written:
        app = subprocess.Popen([sys.executable, APP], env=environment, stdout=written, stderr=subprocess.STDOUT)
        try:
            page, patience = "", time.monotonic() + 120
            while not page and time.monotonic() < patience and app.poll() is None:
                try:
                    page = build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/", timeout=10).read().decode()
                except URLError:
                    time.sleep(0.5)
            assert "How certain is it?" in page, log.read_text()
            while f"http://0.0.0.0:{port}" not in log.read_text() and time.monotonic() < patience:
                time.sleep(0.5)  # the page is there before its address is printed
            assert f"http://0.0.0.0:{port}" in log.read_text()
        finally:
            app.kill()
            app.wait()
