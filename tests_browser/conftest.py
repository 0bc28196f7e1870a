"""A copy of the project, JupyterLab started there by `make lab`, and a headless Chromium."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests_browser.lab import Lab

ROOT = Path(__file__).parents[1]
PICTURES = Path(__file__).parent / "artifacts"
SIZE = (1400, 1000)  # of the window


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, in a repository of their own."""
    copy = tmp_path_factory.mktemp("project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for command in ("init -q", "add -A", "commit -q -m copy"):
        git(copy, *command.split())
    return copy


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def server(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """The address that `make lab` prints, token included, and after how many seconds."""
    home = tmp_path_factory.mktemp("jupyter")  # no settings, no trusted notebooks: a first visit
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --ip=127.0.0.1 --port={port} --LabApp.expose_app_in_browser=True"
    log = home / "log.txt"
    began = time.monotonic()
    with log.open("w") as file:
        make = subprocess.Popen(
            ["make", "lab", f"PYTHON={sys.executable}", f"ARGS={options}"],
            cwd=project,
            env={**os.environ, **places, "PYTHONPATH": str(project)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(300):
            if found := re.search(rf"http://127\.0\.0\.1:{port}/\S+token=\w+", log.read_text()):
                break
            assert make.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            raise AssertionError(log.read_text())
        yield found[0], time.monotonic() - began
    finally:
        end(make.pid)
        PICTURES.mkdir(exist_ok=True)
        shutil.copy(log, PICTURES / "make_lab.txt")


def end(group: int) -> None:
    """End the server, which ends its kernels, and do not go on before it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.2)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="session")
def driver() -> Iterator[Chrome]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    control = shutil.which("chromedriver")
    if not (browser and control):
        pytest.fail("No Chromium: Debian has it as 'apt-get install chromium chromium-driver'.")
    options = ChromeOptions()
    options.binary_location = browser
    width, height = SIZE
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.add_argument("--disable-dev-shm-usage")
    chrome = Chrome(options, ChromeService(control))
    chrome.set_script_timeout(60)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def lab(server: tuple[str, float], driver: Chrome) -> Lab:
    PICTURES.mkdir(exist_ok=True)
    lab = Lab(driver, server[0].partition("/lab")[0], server[0], PICTURES)
    began = time.monotonic()
    lab.open()
    lab.started = server[1] + time.monotonic() - began
    lab.decline_news()
    return lab
