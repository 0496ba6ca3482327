"""Run the network on a sagittal stack: one class per pixel. Handles device, precision, memory, progress, cancelling."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UsageError, is_out_of_memory, out_of_memory
from .model import Model
from .network import fold_batch_norm, pack_for_processor
from .notices import Notice
from .volume import Intensity, SagittalStack

Report = Callable[[str, float], None]
"""Called with a stage and the fraction done, at least once per chunk; raise CancelledError in it to cancel."""

GPU_CHUNK = 4
"""Slices a GPU works on at once: sixteen take a tenth less time and three times the memory (docs/speed.md).

A processor gains nothing from more than one.
"""


MOVED_TO_CPU = Notice("MOVED_TO_CPU", "Not enough GPU memory; continued on the processor (slower).")
FRONT_AND_BACK = Notice(
    "FRONT_AND_BACK",
    "The front and back of this image seem to be swapped. If so, the canal and much else are wrong: correct the "
    "orientation in the file, or export it again.",
)
COARSER = 4 / 3
"""Pixel size for distinguishing front from back, relative to the model's own."""
_SURE, _SURER = 0.75, 0.01
"""How confident the network must be in a slice with reversed columns, and by how much more than without: in a small
piece of a spine it is confident in neither, and the larger value means nothing."""
_AMD_BFLOAT16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""AMD's GPUs with matrix products in bfloat16: CDNA and, from the third on, RDNA."""


def silent(stage: str, fraction: float) -> None:
    """A report that does nothing."""


class Engine:
    """A model prepared for one device.

    Args:
        model: see `load_model`; it is not changed.
        device: ``auto`` (CUDA, then MPS, then the processor), ``cuda``, ``mps`` or ``cpu``.
        precision: ``auto`` takes bfloat16 where the device computes in it, else float32.

    Raises:
        UsageError: DEVICE, the requested device is not available.
    """

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
    ) -> None:
        self.model = model
        self._precision = precision
        self._chosen, self._automatic = choose_device(device), device == "auto"
        self._ready()

    def _ready(self) -> list[Notice]:
        """Prepare the chosen device, or fall back to the CPU; returns the notices about it."""
        try:
            self._prepare(self._chosen)
            return []
        except (RuntimeError, MemoryError) as error:
            if self._chosen.type == "cpu":
                raise
            failed = self._failed(error)
        self._prepare(torch.device("cpu"))
        self._stepped_down = True
        return [failed or MOVED_TO_CPU]

    def _failed(self, error: Exception) -> Notice | None:
        """The notice for an automatically chosen GPU that failed; None if it only ran out of memory.

        Such a GPU must not stop the run, whatever the reason: a driver that was reset, a PyTorch build without kernels
        for an old GPU, a missing operation.

        Raises:
            UsageError: DEVICE, the GPU was requested explicitly.
        """
        if is_out_of_memory(error):
            return None
        said = " ".join(str(error).split())[:120]
        if not self._automatic:
            raise UsageError(
                "DEVICE",
                f"the GPU failed ({said})",
                "Restart the program; if that does not help, choose --device cpu, or install the PyTorch build for "
                "your GPU",
            ) from error
        return Notice("GPU_FAILED", f"The GPU failed ({said}); continued on the processor (slower).")

    def _prepare(self, device: torch.device) -> None:
        self._stepped_down = False
        bfloat16 = computes_bfloat16(device) if self._precision == "auto" else self._precision == "bfloat16"
        self.device = device
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        self.chunk = 1 if device.type == "cpu" else GPU_CHUNK
        network = fold_batch_norm(copy.deepcopy(self.model.network)).to(device, self.dtype)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = pack_for_processor(network) if device.type == "cpu" else network

    def classes(self, stack: SagittalStack, report: Report = silent) -> tuple[np.ndarray, tuple[Notice, ...]]:
        """The class of every pixel, uint8 (S, H, W) on the stack's own grid, and notices for the user.

        Memory use, apart from the result, does not grow with the number of slices. When memory runs out, smaller chunks
        are tried, then the CPU. The CPU also takes over from a GPU that was chosen automatically and fails.

        Raises:
            OutOfMemoryError: the main memory does not suffice either.
            UsageError: DEVICE, the GPU that was requested explicitly failed.
        """
        # The stack before did not fit; this one may.
        notices = self._ready() if self._stepped_down else []
        while True:
            try:
                with without_autocast(self.device):
                    found = self._classes(stack, report)
                    notices += [FRONT_AND_BACK] if self._seems_turned(stack, found) else []
                return found, tuple({one.code: one for one in notices}.values())  # of each kind what came last
            except (RuntimeError, MemoryError) as error:
                if self.device.type == "cpu" and not is_out_of_memory(error):
                    raise
                failed = self._failed(error)
            # Outside of the handler, which holds on to the memory that is short.
            notices.append(self._step_down(failed))

    def _step_down(self, failed: Notice | None) -> Notice:
        """Recover from a failure: leave a failed GPU; when out of memory, halve the chunk, then use the CPU.

        `classes` undoes it for the next stack.
        """
        if failed is None and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if failed is None and self.chunk > 1:
            self.chunk //= 2
            self._stepped_down = True
            number = "one slice" if self.chunk == 1 else f"{self.chunk} slices"
            return Notice("SMALLER_CHUNKS", f"Memory ran low; continued with {number} at a time.")
        if self.device.type != "cpu":
            self._prepare(torch.device("cpu"))
            self._stepped_down = True
            return failed or MOVED_TO_CPU
        raise out_of_memory()

    @torch.inference_mode()
    def _classes(self, stack: SagittalStack, report: Report) -> np.ndarray:
        result = np.empty(stack.slices.shape, np.uint8)
        intensity, shape = stack.intensity(), stack.working_shape(self.model.card.pixel_mm)
        report("segment", 0.0)
        for number, scores in enumerate(self.network.stream(self._chunks(stack, intensity, shape, report))):
            # One slice at a time: a float map per class never exists for the whole volume.
            found = fine_classes(scores[..., : shape[0], : shape[1]], result.shape[1:])
            result[number] = np.from_dlpack(found.cpu())
        report("segment", 1.0)
        return result

    @torch.inference_mode()
    def _seems_turned(self, stack: SagittalStack, found: np.ndarray) -> bool:
        """Whether the columns seem to run from back to front instead of from front to back.

        No header can be checked against itself, and where it is wrong the network finds bodies all the same, with the
        canal in the belly. But it is surer of the slice that shows most when that is turned round: by the mean
        probability of the best class where that is not background. Of 47 volumes of four scanners and 8 phantoms none
        was flagged (closest margin: 0.025); of their flipped copies 53 were. Of 416 windows of 25 to 110 mm in 32 scans
        4 were, and 282 of their flipped copies; of whole scans it is sure with 0.92 and more.
        """
        number = int(np.argmax([np.count_nonzero(one) for one in found]))  # many times as fast as along axes
        if not found[number].any():
            return False
        image = stack.slices[number : number + 1]
        intensity, shape = Intensity.of(image), stack.working_shape(COARSER * self.model.card.pixel_mm)
        sure = []
        for one in (image, image[..., ::-1]):  # one after the other: where one slice fitted, this does
            scores = self.network.scores(self.network.rough(self._input(one, intensity, shape)))
            best, kind = scores[..., : shape[0], : shape[1]].float().softmax(1).max(1)
            sure.append(float(best[kind > 0].mean()) if (kind > 0).any() else 0.0)
        return sure[1] > max(_SURE, sure[0] + _SURER)

    def free_memory(self) -> None:
        """Release the GPU memory cached for the next stack, which other programs such as Slicer's views need too."""
        if self._chosen.type == "cuda":
            with suppress(RuntimeError):  # of a GPU that failed
                torch.cuda.empty_cache()

    def _chunks(
        self, stack: SagittalStack, intensity: Intensity, shape: tuple[int, int], report: Report
    ) -> Iterator[Tensor]:
        """Yield the network's input (n, 1, h, w) chunk by chunk; a chunk is reported when the next one is requested."""
        number = stack.slices.shape[0]
        for start in range(0, number, self.chunk):
            yield self._input(stack.slices[start : start + self.chunk], intensity, shape)
            report("segment", min(start + self.chunk, number) / number)

    def _input(self, slices: np.ndarray, intensity: Intensity, shape: tuple[int, int]) -> Tensor:
        """`network_input` in the network's data type and memory layout."""
        image = network_input(slices, intensity, shape, self.network.encoder.stride, self.device)
        return image.to(self.dtype, memory_format=torch.channels_last)


def network_input(
    slices: np.ndarray,
    intensity: Intensity,
    shape: tuple[int, int],
    stride: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Slices (n, H, W) of any real type as network input: float32 (n, 1, h, w).

    Args:
        slices: some of a stack.
        intensity: of the whole stack.
        shape: rows and columns at the working pixel size, see `SagittalStack.working_shape`.
        stride: rows and columns are padded to multiples of it, below and on the right, as dark as the volume gets.
        device: to compute on.
    """
    # PyTorch 2.2, the last one for Macs with Intel's processors, knows NumPy 2 by this protocol alone.
    image = torch.from_dlpack(slices.astype(np.float32))[:, None].to(device)
    image = resample(intensity.normalise(image), shape)
    darkest = (intensity.low - intensity.mean) / intensity.deviation
    return F.pad(image, (0, -shape[1] % stride, 0, -shape[0] % stride), value=darkest)


def resample(slices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resample slices (N, C, H, W) within the same field of view: bilinear, low-pass filtered when downsampling."""
    if tuple(slices.shape[-2:]) == tuple(shape):
        return slices
    coarser = shape[0] < slices.shape[-2] or shape[1] < slices.shape[-1]
    if coarser and slices.device.type == "mps":  # PyTorch before 2.7 has no such filter there
        return resample(slices.cpu(), shape).to(slices.device)
    return F.interpolate(slices, shape, mode="bilinear", align_corners=False, antialias=coarser)


def best_class(scores: Tensor) -> Tensor:
    """Class with the highest score, the first on ties: scores (N, C, H, W) -> uint8 (N, H, W).

    PyTorch's argmax over a short axis takes several times as long on a processor.
    """
    best, result = scores[:, 0], torch.zeros_like(scores[:, 0], dtype=torch.uint8)
    for number in range(1, scores.shape[1]):
        score = scores[:, number]
        result = torch.maximum(result, (score > best).to(torch.uint8) * number)
        best = torch.maximum(best, score)
    return result


def fine_classes(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Class with the highest score after `resample`: scores (1, C, h, w) of any type -> uint8 (H, W).

    A processor enlarges only the box around what is not background: a mean of scores that are highest for one class is
    so too. A GPU enlarges everything sooner than it tells where the box is.
    """
    # PyTorch is slow at the other layout from here on.
    scores = scores.to(torch.float32, memory_format=torch.contiguous_format)
    rows, columns = shape
    if scores.device.type != "cpu" or rows < scores.shape[2] or columns < scores.shape[3]:
        return best_class(resample(scores, (rows, columns)))[0]
    coarse = best_class(scores)[0]
    result = coarse.new_zeros(rows, columns)
    if not coarse.any():
        return result
    part, above, down = _between(coarse.any(1), rows)
    across, before, right = _between(coarse.any(0), columns)
    box = scores[0, :, :, int(before[0]) : int(before[-1]) + 2]
    before = before - before[0]
    box = torch.lerp(box.index_select(1, above), box.index_select(1, above + 1), down[:, None])
    at = before.expand(*box.shape[:2], -1)  # along the last axis `gather` is several times as fast as `index_select`
    box = torch.lerp(box.gather(2, at), box.gather(2, at + 1), right)
    result[part, across] = best_class(box[None])[0]
    return result


def _between(marked: Tensor, size: int) -> tuple[slice, Tensor, Tensor]:
    """Linear interpolation along one axis to ``size`` pixels, only from the first to the last marked entry (n,).

    Returns:
        these pixels; for each the coarse pixel before it, and how far it is from that to the next, 0..1.
    """
    number = len(marked)
    centre = torch.arange(size, dtype=torch.float32, device=marked.device) + 0.5
    at = (centre * (number / size) - 0.5).clamp(0, number - 1)
    before = at.long().clamp(max=number - 2)
    inside = marked.nonzero()
    touched = ((before + 1 >= inside[0]) & (before <= inside[-1])).nonzero()
    part = slice(int(touched[0]), int(touched[-1]) + 1)
    return part, before[part], (at - before)[part]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in the tensors' own types, also where the caller has turned `torch.autocast` on."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # PyTorch before 2.5 has none for Metal
        return nullcontext()


def choose_device(device: str) -> torch.device:
    """The PyTorch device for a name.

    Raises:
        UsageError: DEVICE.
    """
    # An Intel Mac's graphics cards, and Apple's under Rosetta, PyTorch may see, but was never made for.
    apple = torch.backends.mps.is_available() and platform.machine() == "arm64"
    there = {"cuda": torch.cuda.is_available(), "mps": apple, "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    if not there.get(device, False):
        raise UsageError(
            "DEVICE",
            f"PyTorch cannot use the device {device!r} on this computer",
            "Choose --device cpu, or install the PyTorch build for your GPU",
        )
    return torch.device(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware; elsewhere it would only be slower."""
    if device.type == "cuda":
        # NVIDIA's since Ampere. PyTorch's `is_bf16_supported` counts emulation too, and old versions lack it.
        if torch.version.hip is None:
            return torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.cuda.get_device_properties(device).gcnArchName.startswith(_AMD_BFLOAT16)
    if device.type != "cpu":
        return False
    # PyTorch has no public question for these. oneDNN may do without what the processor has: ONEDNN_MAX_CPU_ISA.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has_it = any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return has_it and bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)())
