"""The benchmark's peers: other networks on the same volume, with random weights, which take as long as trained ones."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import CLASS_NAMES
from .benchmark_measures import peak_memory, seconds, synchronise


def monai_unet(image: str, network: str, device: str, precision: str, runs: int) -> dict[str, Any]:
    """A 3D U-Net of MONAI with four classes on the whole volume in one piece.

    ``BasicUNet`` has MONAI's own defaults (32 channels at full resolution); ``UNet`` has those of MONAI's spleen
    tutorial and halves the resolution in its first convolution.

    One piece is the most favourable: no pixel is computed twice. The volume is padded to multiples of 16.
    """
    try:
        from monai.networks.nets import BasicUNet, UNet
    except ImportError as error:
        return {"absent": error.name}
    import torch

    from ..engine import choose_device
    from ..formats.volumes import read_volume

    place, dtype = choose_device(device), getattr(torch, precision)
    voxels = torch.from_numpy(read_volume(image).voxels.astype(np.float32))
    tutorial = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2, "norm": "batch"}
    kind, options = {"BasicUNet": (BasicUNet, {}), "UNet": (UNet, tutorial)}[network]
    peer = kind(3, 1, len(CLASS_NAMES), **options).eval().to(place, dtype)

    def run() -> np.ndarray:
        normal = (voxels - voxels.mean()) / voxels.std()
        padding = [side for size in reversed(voxels.shape) for side in (0, -size % 16)]
        batch = torch.nn.functional.pad(normal, padding)[None, None].to(place, dtype)
        depth, rows, columns = voxels.shape
        classes = peer(batch)[0, :, :depth, :rows, :columns].argmax(0)
        return np.asarray(classes.to(torch.uint8).cpu())

    with torch.inference_mode():
        taken = seconds(run, place, runs)
    return {"seconds": taken, "runs": runs, "peak_mb": peak_memory(), "version": version("monai")}


def nnunet(image: str, device: str) -> dict[str, Any]:
    """nnU-Net's 3d_fullres configuration, planned by nnU-Net for data of this size, with its own predictor.

    The whole prediction without mirroring is timed once. Mirroring runs the network eight times for every window: one
    window is timed both ways, and the difference is added for each window.
    """
    from ..formats.volumes import read_volume

    volume = read_volume(image)
    spacing = list(reversed(volume.geometry.spacing))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        # nnU-Net reads these at import.
        os.environ |= {f"nnUNet_{name}": str(Path(folder, name)) for name in ("raw", "preprocessed", "results")}
        try:
            plans, dataset = _plan(Path(folder), volume.voxels.shape, spacing)
            return _predict(plans, dataset, volume.voxels, spacing, device)
        except ImportError as error:
            return {"absent": error.name}


def _plan(folder: Path, shape: tuple[int, ...], spacing: list[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """nnU-Net's plans for a data set with images of this shape and spacing (k, j, i), and the set's description."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    name = "Dataset001_Spine"
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {label: value for value, label in enumerate(CLASS_NAMES)},
        "numTraining": 1,
        "file_ending": ".nrrd",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    fingerprint = {
        "spacings": [spacing],
        "shapes_after_crop": [list(shape)],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
    raw, preprocessed = folder / "raw" / name, folder / "preprocessed" / name
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        path.mkdir(parents=True)
    (raw / "imagesTr" / "a_0000.nrrd").touch()
    (raw / "labelsTr" / "a.nrrd").touch()
    (raw / "dataset.json").write_text(json.dumps(dataset))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return ExperimentPlanner(name).plan_experiment(), dataset


def _predict(
    plans: dict[str, Any], dataset: dict[str, Any], voxels: np.ndarray, spacing: list[float], device: str
) -> dict[str, Any]:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from ..engine import choose_device

    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        len(CLASS_NAMES),
        deep_supervision=False,
    )
    place = choose_device(device)
    predictor = nnUNetPredictor(use_mirroring=False, device=place, allow_tqdm=False)
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], dataset, "nnUNetTrainer", (0, 1, 2)
    )
    patch = configuration.patch_size
    window = torch.randn(1, *patch)
    if place.type == "cuda":  # the first call loads libraries and chooses kernels
        predictor.predict_sliding_window_return_logits(window)
    begin = time.perf_counter()
    predictor.predict_single_npy_array(voxels[None].astype(np.float32), {"spacing": spacing})
    synchronise(place)
    plain = time.perf_counter() - begin
    peak = peak_memory()
    extra = 0.0
    for predictor.use_mirroring, sign in ((False, -1), (True, 1)):
        begin = time.perf_counter()
        predictor.predict_sliding_window_return_logits(window)
        synchronise(place)
        extra += sign * (time.perf_counter() - begin)
    padded = [max(sizes) for sizes in zip(voxels.shape, patch, strict=True)]
    steps = compute_steps_for_sliding_window(padded, patch, predictor.tile_step_size)
    windows = int(np.prod([len(places) for places in steps]))
    return {
        "seconds": plain, "mirrored_seconds": plain + windows * extra, "runs": 1, "peak_mb": peak,
        "version": version("nnunetv2"), "patch": [int(size) for size in patch], "windows": windows,
    }  # fmt: skip
