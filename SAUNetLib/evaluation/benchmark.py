"""Measure SAUNet's speed and memory use against its peers, on the same volume and machine, in one run."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..console import markdown_table
from ..errors import SAUNetError, error_of
from ..stages import SHARES
from .benchmark_measures import status_memory

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parents[2]
STAGES = tuple(SHARES)[1:]
"""Stages of a run with the model already loaded."""


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        slices: numbers of slices of the volumes; the peers and the worker get the second one.
        pixels: rows and columns of a slice.
        field_mm: edge of a slice's field of view.
        runs: number of runs for the medians.
        matrix: rows and columns of the matrices whose product gives the machine's rate.
    """

    slices: tuple[int, ...]
    pixels: int
    field_mm: float
    runs: int
    matrix: int


BUDGETS = {
    "full": Budget((10, 20, 40, 80), 512, 300.0, 5, 2048),
    "smoke": Budget((2, 3), 64, 96.0, 1, 256),
}


def benchmark(
    budget: Budget, device: str = "auto", model: str | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """Measure everything, each row in a process of its own, so that memory peaks are separate.

    Args:
        budget: see `BUDGETS`.
        device, model: see `Engine` and `load_model`.
        say: called with what is measured next.

    Returns:
        JSON-ready: ``machine``, ``imports``, ``product`` by number of slices, ``worker``, ``peers`` and ``targets``.

    Raises:
        SAUNetError: those of `load_model` and `Engine`; INTERNAL, a process of the product failed.
    """
    with tempfile.TemporaryDirectory(prefix="saunet-benchmark-") as folder:
        images = {count: Path(folder, f"{count}.nrrd") for count in budget.slices}
        for count, path in images.items():
            say(f"phantom of {count} slices")
            run_child("volume", path=str(path), slices=count, pixels=budget.pixels, field_mm=budget.field_mm)
        product = {}
        for count, path in images.items():
            say(f"SAU-Net, {count} slices")
            product[count] = run_child(
                "product", image=str(path), output=str(path.with_suffix(".labels.nrrd")), model=model, device=device,
                runs=budget.runs, matrix=budget.matrix,
            )  # fmt: skip
        reference = budget.slices[1]
        image = images[reference]
        say("start and worker")
        imports = measure_imports(budget.runs)
        worker = measure_worker(image, model, device, budget.runs)
        peers = _peers(image, device, product[reference], budget.runs, say)
    measured = {
        "software": f"SAUNet {__version__}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(product[reference]),
        "volume": [reference, budget.pixels, budget.pixels],
        "runs": budget.runs,
        "product": product,
        "worker": worker,
        "imports": imports,
        "peers": peers,
    }
    return measured | {"targets": targets(measured)}


def _machine(product: dict[str, Any]) -> dict[str, Any]:
    keys = ("threads", "device", "gpu", "precision", "matrix_gflops", "memory_gbs")
    return {"processor": _processor(), "system": platform.platform(terse=True)} | {key: product[key] for key in keys}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _peers(image: Path, device: str, product: dict[str, Any], runs: int, say: Say) -> dict[str, dict[str, Any]]:
    """The peers by name; one that is not installed or fails is reported so and does not stop the run."""
    rows: dict[str, dict[str, Any]] = {}
    precision = product["precision"]
    for network in ("BasicUNet", "UNet"):
        say(f"MONAI's 3D {network}")
        name = f"MONAI 3D {network}, {precision}"
        rows[name] = _peer("monai_unet", image, device, network=network, precision=precision, runs=runs)
    if importlib.util.find_spec("nnunetv2"):
        say("nnU-Net's 3d_fullres (takes minutes)")
    plain = _peer("nnunet", image, device)
    shipped = "float16" if product["device"] == "cuda" else "float32"  # as nnU-Net's predictor chooses
    rows[f"nnU-Net 3d_fullres, {shipped}"] = plain
    # Extrapolated from one window's difference times the number of windows, not measured in a full run.
    mirrored = {"seconds": plain["mirrored_seconds"], "runs": 0} if "seconds" in plain else {}
    rows[f"nnU-Net 3d_fullres, {shipped}, mirroring"] = plain | mirrored
    return rows


def _peer(task: str, image: Path, device: str, **rest: Any) -> dict[str, Any]:
    try:
        return run_child(task, image=str(image), device=device, **rest)
    except SAUNetError as error:
        return {"failed": error.cause}


def run_child(task: str, **arguments: Any) -> dict[str, Any]:
    """The result of one task of `benchmark_child`.

    Raises:
        SAUNetError: what the task raised; INTERNAL, its process ended without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-m", "SAUNetLib.evaluation.benchmark_child"],
        input=json.dumps({"task": task} | arguments),
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # messages of libraries or the system may have another encoding
        env=_environment(),
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise SAUNetError("INTERNAL", f"the measurement {task} failed ({last})", "Please report it") from None
    if "error" in result:
        raise error_of(result["error"])
    return result


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def measure_imports(runs: int) -> dict[str, float]:
    """Median seconds to start Python, ``saunet --help``, the worker (until ``ready``) and the whole pipeline."""
    commands = {
        "python": ["-c", "pass"],
        "saunet --help": ["-m", "SAUNetLib", "--help"],
        "worker ready": ["-m", "SAUNetLib.worker"],
        "pipeline with PyTorch": ["-c", "import SAUNetLib.pipeline"],
    }
    # Interleaved, so that a busy moment does not affect only one of them.
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, arguments in commands.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], input=b"", capture_output=True, env=_environment())
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_worker(image: Path, model: str | None, device: str, runs: int) -> dict[str, Any]:
    """Median seconds of a worker's first request, including its start, and of its second; its peak memory in MB."""
    cold: list[float] = []
    warm: list[float] = []
    peak = None
    request = {"command": "segment", "image": str(image), "output": str(image.with_suffix(".worker.nrrd"))}
    request |= {"device": device} | ({"model": model} if model else {})
    for _ in range(runs):
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "SAUNetLib.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
        ) as process:
            for times in (cold, warm):
                _ask(process, request)
                times.append(time.perf_counter() - begin)
                begin = time.perf_counter()
            peak = _peak(process.pid)
    return {"cold": statistics.median(cold), "warm": statistics.median(warm), "peak_mb": peak}


def _ask(process: subprocess.Popen[str], request: dict[str, str]) -> None:
    """Send a request and wait for its result."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "error":
            raise error_of(event)
        if event["event"] == "result":
            return
    raise SAUNetError("INTERNAL", "the worker ended without an answer", "Please report it")


def _peak(process: int) -> float | None:
    status = Path(f"/proc/{process}/status")
    return status_memory(status) if status.exists() else None


@dataclass(frozen=True)
class Target:
    """A target: a figure, its limit, whether the figure must stay above (or below) it, and for which device."""

    title: str
    limit: float
    above: bool
    figure: Callable[[dict[str, Any]], float | None]
    device: str = "cpu"


def _reference(measured: dict[str, Any]) -> dict[str, Any]:
    return measured["product"][measured["volume"][0]]


def _faster_than(peer: str) -> Callable[[dict[str, Any]], float | None]:
    def figure(measured: dict[str, Any]) -> float | None:
        seconds = measured["peers"].get(peer, {}).get("seconds")
        return seconds and seconds / _reference(measured)["median"]["total"]

    return figure


def _ends(figure: Callable[[dict[str, Any]], float]) -> Callable[[dict[str, Any]], float]:
    """A figure for the most slices relative to that for the fewest."""

    def ratio(measured: dict[str, Any]) -> float:
        rows = measured["product"]
        return figure(rows[max(rows)]) / figure(rows[min(rows)])

    return ratio


def _peak_gb(measured: dict[str, Any], memory: str = "peak_mb") -> float | None:
    peaks = [row[memory] for row in measured["product"].values()]
    return max(peaks) / 1000 if None not in peaks else None


TARGETS = (
    Target("times faster than nnU-Net 3d_fullres, float32", 60, True, _faster_than("nnU-Net 3d_fullres, float32")),
    Target("times faster than MONAI 3D BasicUNet, bfloat16", 5, True, _faster_than("MONAI 3D BasicUNet, bfloat16")),
    Target(
        "everything but the network / network", 0.25, False,
        lambda m: _reference(m)["median"]["total"] / _reference(m)["median"]["network"] - 1,
    ),
    Target("network's rate / measured matrix rate", 0.6, True, lambda m: network_rate(_reference(m))),
    Target("peak memory, GB", 1.2, False, _peak_gb),
    Target(
        "peak memory, most slices / fewest", 1.5, False,
        lambda m: _ends(lambda row: row["peak_mb"])(m) if _peak_gb(m) else None,
    ),
    Target(
        "seconds per slice, most slices / fewest", 1.1, False, _ends(lambda row: row["median"]["total"] / row["slices"])
    ),
    Target(
        "worker's warm request / network", 1.1, False,
        lambda m: m["worker"]["warm"] / _reference(m)["median"]["network"],
    ),
    Target("worker's cold request - warm request, s", 4, False, lambda m: m["worker"]["cold"] - m["worker"]["warm"]),
    Target("seconds from file to file", 0.25, False, lambda m: _reference(m)["median"]["total"], "cuda"),
    Target("peak GPU memory, GB", 2, False, lambda m: _peak_gb(m, "gpu_peak_mb"), "cuda"),
)  # fmt: skip


def network_rate(row: dict[str, Any]) -> float:
    """The rate of the network's convolutions relative to the machine's matrix rate, measured alongside."""
    return float(row["gflop"] / row["median"]["network"] / row["matrix_gflops"])


def targets(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target of the device with its figure (None if it could not be measured) and whether it is met."""
    rows = []
    for target in TARGETS:
        if (target.device == "cuda") != (measured["machine"]["device"] == "cuda"):
            continue
        figure = target.figure(measured)
        met = None if figure is None else figure >= target.limit if target.above else figure <= target.limit
        rows.append(
            {
                "title": target.title,
                "figure": figure,
                "limit": target.limit,
                "sense": "at least" if target.above else "at most",
                "met": met,
            }
        )
    return rows


def write_benchmark(measured: dict[str, Any], path: str | Path) -> None:
    """Write the figures as JSON.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    from ..formats.atomic import check_writable, write_beside

    with write_beside(Path(path), check_writable(path, (".json",))) as temporary:
        temporary.write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(measured: dict[str, Any]) -> str:
    """The figures as Markdown: ratios first, then seconds and memory."""
    machine = measured["machine"]
    device = machine["gpu"] or machine["device"]
    head = (
        f"{measured['software']}, {_reference(measured)['model']}, {measured['date']}: {machine['processor']}, "
        f"{machine['threads']} threads, {device} in {machine['precision']}; medians of {measured['runs']} "
        f"runs. Measured in the same run: matrix products {machine['matrix_gflops']:.0f} GFLOP/s, copying memory "
        f"{machine['memory_gbs']:.1f} GB/s."
    )
    parts = (head, _targets_table(measured), _peers_table(measured), _slices_table(measured), _start_table(measured))
    return "\n\n".join(parts)


def _targets_table(measured: dict[str, Any]) -> str:
    rows = []
    for row in measured["targets"]:
        figure = "not measured" if row["figure"] is None else f"{row['figure']:.3g}"
        met = {True: "yes", False: "no", None: "-"}[row["met"]]
        rows.append([row["title"], figure, f"{row['sense']} {row['limit']:g}", met])
    return markdown_table(["ratio or limit", "measured", "aim", "reached"], rows)


def _peers_table(measured: dict[str, Any]) -> str:
    """The product and its peers on the same volume."""
    product = _reference(measured)
    own = product["median"]["total"]
    rows = [["SAU-Net, file to file", "1", f"{own:.2f}", _number(product["peak_mb"]), str(measured["runs"])]]
    for name, peer in measured["peers"].items():
        if "seconds" in peer:
            runs = str(peer["runs"] or "from one window")
            row = [f"{peer['seconds'] / own:.1f}", f"{peer['seconds']:.2f}", _number(peer["peak_mb"]), runs]
            name = f"{name} ({peer['version']})"
        else:
            reason = f"not installed ({peer['absent']})" if "absent" in peer else f"failed: {peer['failed']}"
            row = [reason, "-", "-", "-"]
        rows.append([name, *row])
    shape = " x ".join(map(str, measured["volume"]))
    return markdown_table([shape, "times SAU-Net's seconds", "seconds", "peak memory, MB", "runs"], rows)


def _slices_table(measured: dict[str, Any]) -> str:
    """The product's figures for each number of slices."""
    titles = ["slices", "seconds per slice", "rest / network", "of matrix rate", "of memory rate", "seconds", "network"]
    memories = {"peak memory, MB": "peak_mb"}
    memories |= {"GPU memory, MB": "gpu_peak_mb"} if measured["machine"]["gpu"] else {}
    titles += [*STAGES, *memories]
    rows = []
    for count, row in measured["product"].items():
        median = row["median"]
        memory_rate = row["traffic_gb"] / median["network"] / row["memory_gbs"]
        rows.append(
            [str(count), f"{median['total'] / row['slices']:.3f}", f"{median['total'] / median['network'] - 1:.2f}"]
            + [f"{network_rate(row):.2f}", f"{memory_rate:.2f}", f"{median['total']:.2f}", f"{median['network']:.2f}"]
            + [f"{median[stage]:.2f}" for stage in STAGES]
            + [_number(row[memory]) for memory in memories.values()]
        )
    return markdown_table(titles, rows)


def _start_table(measured: dict[str, Any]) -> str:
    """Starting times."""
    worker = measured["worker"]
    rows = [[f"{name}", f"{value:.2f}"] for name, value in measured["imports"].items()]
    rows += [["worker, first request from its start", f"{worker['cold']:.2f}"]]
    rows += [["worker, second request", f"{worker['warm']:.2f}"]]
    return markdown_table(["start", "seconds"], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
