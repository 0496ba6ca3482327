"""Measurements of the benchmark, each in its own process: ``python -m SAUNetLib.evaluation.benchmark_child``.

Stdin holds the task as a JSON object; the last line of stdout is its result.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from ..errors import SAUNetError
from ..process import prepare_process
from .benchmark_measures import peak_memory, seconds, synchronise

THICKEST_MM = 5.0
"""Largest slice thickness of the phantoms, as in routine; few slices therefore cover less of the spine's width."""


def volume(path: str, slices: int, pixels: int, field_mm: float) -> dict[str, Any]:
    """Write a phantom of slices x pixels x pixels with a square field of view; the slices cover the spine's width.

    It is not compressed, just as the panel hands its volumes over.
    """
    import SimpleITK as sitk

    from ..training.phantom import PhantomOptions, make_phantom
    from ..training.phantom.options import SPINE_WIDTH_MM

    made = make_phantom(
        PhantomOptions(
            slices=slices,
            slice_thickness=min(SPINE_WIDTH_MM / slices, THICKEST_MM),
            gap=0.0,
            pixel=field_mm / pixels,
            field_of_view=(field_mm, field_mm),
        )
    )
    sitk.WriteImage(made.volume.to_sitk(), path)
    return {"shape": made.volume.voxels.shape}


def product(image: str, output: str, model: str | None, device: str, runs: int, matrix: int) -> dict[str, Any]:
    """Median seconds of `segment_file`, its stages and the network over several runs, after one to warm up.

    The machine's matrix rate is measured before every run, so that other load on the machine affects both.
    """
    from ..engine import COARSER, Engine
    from ..formats.volumes import read_volume
    from ..model import load_model
    from ..pipeline import segment_file
    from ..volume import SagittalStack

    begin = time.perf_counter()
    engine = Engine(load_model(model), device)
    loaded = time.perf_counter() - begin
    stopwatch = Stopwatch(engine)
    timed, rates = [], []
    for _ in range(runs + 1):
        rates.append(matrix_rate(engine.dtype, engine.device, matrix))
        events: list[tuple[float, str]] = []
        stopwatch.seconds = 0.0

        def report(stage: str, fraction: float, events: list[tuple[float, str]] = events) -> None:
            if not events or events[-1][1] != stage:
                events.append((time.perf_counter(), stage))

        segment_file(image, output, engine, report=report)
        events.append((time.perf_counter(), "end"))
        timed.append(_stages(events) | {"network": stopwatch.seconds})
    peak = peak_memory()  # before the measurements below, which need memory too
    stack = SagittalStack.of(read_volume(image))
    stride, pixel_mm, number = engine.network.encoder.stride, engine.model.card.pixel_mm, len(stack.slices)

    def padded(pixel: float) -> tuple[int, int]:
        rows, columns = (-(-n // stride) * stride for n in stack.working_shape(pixel))
        return rows, columns

    # All slices, and one slice twice with coarser pixels: as it is and with reversed columns.
    worked = [(number, padded(pixel_mm)), (2, padded(COARSER * pixel_mm))]
    return {
        "model": f"{engine.model.card.name} {engine.model.card.version}",
        "device": engine.device.type,
        "gpu": gpu_name(engine.device),
        "precision": str(engine.dtype).removeprefix("torch."),
        "slices": number,
        "working_pixels": list(padded(pixel_mm)),
        "load": loaded,
        "median": {key: statistics.median(run[key] for run in timed[1:]) for key in timed[0]},
        "runs": timed[1:],
        "peak_mb": peak,
        "gpu_peak_mb": gpu_peak_memory(engine.device),
        "matrix_gflops": statistics.median(rates[1:]),
        "memory_gbs": memory_bandwidth(engine.device),
        "gflop": sum(engine.model.network.cost(*size)[1] * count for count, size in worked) / 1e9,
        "traffic_gb": sum(traffic(engine.model.network, *size, engine.dtype.itemsize) * n for n, size in worked) / 1e9,
        "threads": threads(),
    }


def _stages(events: list[tuple[float, str]]) -> dict[str, float]:
    """Seconds by stage, and in ``total``."""
    stages = {stage: after - at for (at, stage), (after, _) in itertools.pairwise(events)}
    return stages | {"total": events[-1][0] - events[0][0]}


class Stopwatch:
    """Sums the time that an engine's network takes, waiting for its kernels to finish.

    Attributes:
        seconds: the sum; set it to zero to restart.
    """

    def __init__(self, engine: Any) -> None:
        self.seconds = 0.0
        self._device = engine.device
        for name in ("rough", "masks", "scores"):
            setattr(engine.network, name, self._timed(getattr(engine.network, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any) -> Any:
            synchronise(self._device)
            begin = time.perf_counter()
            result = function(*arguments)
            synchronise(self._device)
            self.seconds += time.perf_counter() - begin
            return result

        return timed


def matrix_rate(dtype: Any, device: Any, size: int) -> float:
    """GFLOP/s of the product of two square matrices, by matmul or a 1 x 1 convolution, whichever is faster.

    On CPUs PyTorch uses different libraries for these; which is faster depends on the processor and the precision.
    """
    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    image = a.reshape(1, 1, size, size).permute(0, 3, 1, 2)  # channels last: a pixel's channels are a row of a
    kernel = b.reshape(size, size, 1, 1)
    with torch.inference_mode():
        best = min(
            seconds(function, device, 3)
            for function in (lambda: a @ b, lambda: torch.nn.functional.conv2d(image, kernel))
        )
    return 2 * size**3 / best / 1e9


def memory_bandwidth(device: Any) -> float:
    """GB/s, read plus written, of copying 256 MB."""
    import torch

    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.itemsize / seconds(lambda: target.copy_(source), device, 5) / 1e9


def traffic(network: Any, rows: int, columns: int, itemsize: int) -> int:
    """Fewest bytes that the convolutions read and write for a slice: inputs, weights and results once each."""
    import torch
    from torch import nn

    outline, slices = network.outline(), torch.empty(1, 1, 1, rows, columns, device="meta")
    total = 0

    def add(module: Any, inputs: Any, result: Any) -> None:
        nonlocal total
        total += (inputs[0].numel() + module.weight.numel() + result.numel()) * itemsize

    for module in outline.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(add)
    with torch.inference_mode():
        outline(slices)
    return total


def gpu_peak_memory(device: Any) -> float | None:
    """Peak memory in MB that PyTorch reserved on a GPU; None for other devices."""
    import torch

    return torch.cuda.max_memory_reserved(device) / 1e6 if device.type == "cuda" else None


def gpu_name(device: Any) -> str | None:
    """A GPU's name; None for other devices."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def threads() -> int:
    """Number of threads that PyTorch uses."""
    import torch

    return torch.get_num_threads()


def main() -> int:
    """Run one task; a `SAUNetError` is passed to the parent process."""
    prepare_process()  # as the command and the worker do; for the peers too
    from .benchmark_peers import monai_unet, nnunet

    task = json.load(sys.stdin)
    functions: dict[str, Callable[..., dict[str, Any]]] = {
        function.__name__: function for function in (volume, product, monai_unet, nnunet)
    }
    try:
        result = functions[task.pop("task")](**task)
    except SAUNetError as error:
        result = {"error": error.as_dict()}
    print("\n" + json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
