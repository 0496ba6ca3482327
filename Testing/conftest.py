"""Shared by all tests: the repository on the path, the data beside it, and a model too small to be slow."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]
os.environ["PYTHONSAFEPATH"] = ""  # else a command run here would set it for the tests' child processes

from SAUNetLib import process  # noqa: E402
from SAUNetLib.engine import Engine  # noqa: E402
from SAUNetLib.model import load_model, save_model  # noqa: E402
from SAUNetLib.network import SAUNet  # noqa: E402

process.ours = True  # as after the first command that is run here, whichever tests are

CARD = {
    "name": "tiny",
    "version": "1",
    "description": "random weights for the tests",
    "classes": ["background", "vertebra", "disc", "canal"],
    "pixel_mm": 1.5,
    "network": {"classes": 4, "widths": [4, 4, 8, 8, 8], "reading": "add", "attention": "features"},
    "licence": "Apache-2.0",
    "attribution": "none",
    "data": "none",
    "command": "none",
    "date": "2026-11-23",
}


SIGNALS = {
    number: signal.getsignal(number)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
}
"""The signal handlers before any test."""


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Reset signal handlers: a cancelled command ignores signals until its process ends, but the tests' goes on."""
    for number, handler in SIGNALS.items():  # a module's fixture may have cancelled a command too
        signal.signal(number, handler)
    yield
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a network with random weights that predicts all four classes."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    torch.manual_seed(5)
    network = SAUNet(**CARD["network"])
    with torch.no_grad():
        network.head.weight.mul_(8)  # so that no class wins everywhere
    save_model(network, path, CARD)
    return path


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path) -> Engine:
    """The tiny model on the processor, in float32."""
    return Engine(load_model(tiny_model), "cpu", "float32")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread, here and in processes started from here: with tiny networks, more mostly wait for each other."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def random() -> np.random.Generator:
    """Reproducible randomness."""
    return np.random.default_rng(11)
