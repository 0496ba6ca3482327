"""The engine, worker, command and training on a real GPU; skipped where PyTorch has none."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import ROOT

from SAUNetLib.cli import main
from SAUNetLib.engine import GPU_CHUNK, Engine
from SAUNetLib.errors import CancelledError
from SAUNetLib.evaluation.benchmark import run_child
from SAUNetLib.formats.volumes import read_volume
from SAUNetLib.model import load_model
from SAUNetLib.model_card import DEFAULT_MODEL
from SAUNetLib.training.phantom import PhantomOptions, make_phantom
from SAUNetLib.volume import SagittalStack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no GPU here")


@pytest.fixture(scope="module")
def volume():
    """A phantom of more slices than go to the GPU at once."""
    return make_phantom(PhantomOptions(slices=5 * GPU_CHUNK + 1, slice_thickness=3.0, gap=0.0)).volume


@pytest.fixture(scope="module")
def image(volume, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "image.nrrd"
    sitk.WriteImage(volume.to_sitk(), str(path))
    return path


@pytest.fixture
def spare():
    """PyTorch gives back what it keeps of the GPU before the test, and may use all of it again afterwards."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_the_classes_of_the_processor(volume, precision):
    stack = SagittalStack.of(volume)
    found, notices = Engine(load_model(DEFAULT_MODEL), "cuda", precision).classes(stack)
    expected, _ = Engine(load_model(DEFAULT_MODEL), "cpu", precision).classes(stack)
    assert notices == () and (expected > 0).mean() > 0.05
    # Rounding decides where two classes are as likely; NVIDIA's convolutions round float32 to TF32's 10 bits.
    assert np.mean(found != expected) < 0.002


def test_memory_on_the_gpu_does_not_grow_with_the_slices(spare, volume):
    engine = Engine(load_model(DEFAULT_MODEL), "cuda")
    stack = SagittalStack.of(volume)
    few = replace(stack, slices=stack.slices[: 2 * GPU_CHUNK])
    many = replace(stack, slices=np.concatenate([stack.slices] * 5))
    peaks = []
    for one in (few, many):
        engine.classes(one)
        peaks.append(torch.cuda.max_memory_reserved())
    assert peaks[1] <= 1.2 * peaks[0] and peaks[1] < 2e9


def test_a_full_gpu_takes_smaller_chunks_then_the_processor(spare, volume):
    stack = SagittalStack.of(volume)
    expected, _ = Engine(load_model(DEFAULT_MODEL), "cuda").classes(stack)
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(load_model(DEFAULT_MODEL), "cuda")
    engine.classes(stack)
    total, peak = torch.cuda.get_device_properties(0).total_memory, torch.cuda.max_memory_allocated()
    told = []
    for share in (0.6, 0.02):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share * peak / total)
        found, notices = engine.classes(stack)
        told.append([notice.code for notice in notices])
        assert np.mean(found != expected) < 0.002
    assert told[0] == ["SMALLER_CHUNKS"] and told[1][-1] == "MOVED_TO_CPU"
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.classes(stack)[1] == () and engine.device.type == "cuda"


def test_cancelling_leaves_the_gpu_ready(volume):
    engine, stack = Engine(load_model(DEFAULT_MODEL), "cuda"), SagittalStack.of(volume)
    expected, _ = engine.classes(stack)

    def cancel(stage, fraction):
        if fraction > 0.5:
            raise CancelledError

    with pytest.raises(CancelledError):
        engine.classes(stack, cancel)
    assert np.array_equal(engine.classes(stack)[0], expected)


def test_the_command_takes_the_gpu_by_itself(image, tmp_path, capsys):
    output = tmp_path / "labels.nrrd"
    assert main(["segment", str(image), "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["device"].startswith("cuda ")
    assert len(np.unique(read_volume(str(output)).voxels)) > 5


def test_the_worker_answers_twice_on_the_gpu(image, tmp_path):
    requests = [
        {"command": "segment", "image": str(image), "output": str(tmp_path / f"{number}.nrrd"), "device": "cuda"}
        for number in range(2)
    ]
    command = [sys.executable, "-m", "SAUNetLib.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) as worker:
        for request in requests:
            print(json.dumps(request), file=worker.stdin, flush=True)
            ends = (event for event in map(json.loads, worker.stdout) if event["event"] in ("result", "error"))
            assert next(ends)["event"] == "result"
        worker.stdin.close()
    first, second = (read_volume(str(tmp_path / f"{number}.nrrd")).voxels for number in range(2))
    assert np.array_equal(first, second)


def test_training_runs_validates_and_goes_on_on_the_gpu(tmp_path, capsys):
    data, run = tmp_path / "phantoms", tmp_path / "run"
    assert main(["phantom", str(data), "--count", "3"]) == 0
    config = {"network": {"widths": [4, 4, 8, 8, 8]}, "pixel_mm": 3.0, "crop": [64, 64], "steps": 101, "stacks": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = ["train", str(data), "--output", str(run), "--config", str(tmp_path / "config.json"), "--device", "cuda"]
    assert main(command) == 0
    assert (run / "mine.safetensors").exists() and "native" in capsys.readouterr().out
    # A finished run is validated once more and written anew, which needs its checkpoint read on the GPU.
    (run / "mine.safetensors").unlink()
    assert main(command) == 0 and (run / "mine.safetensors").exists()


def test_the_benchmark_measures_the_gpu(image, tmp_path):
    found = run_child(
        "product", image=str(image), output=str(tmp_path / "labels.nrrd"), model=None, device="cuda", runs=1, matrix=256
    )
    assert found["device"] == "cuda" and 0 < found["gpu_peak_mb"] < 2000
    assert 0 < found["median"]["network"] < found["median"]["total"]
