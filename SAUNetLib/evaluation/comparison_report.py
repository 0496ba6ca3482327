"""The report of `saunet compare`: tables beside the paper's in Markdown and CSV, and a picture of typical errors."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..anatomy import CLASS_NAMES, VERTEBRA
from ..console import markdown_table
from ..engine import choose_device
from ..formats.atomic import check_writable, write_beside
from ..formats.pages import INK, PAPER, beside, footer, grey_levels, grey_window, page, text_font
from ..metrics import deviation
from ..training.folders import find_cases
from ..training.held_out import SPECKS, VALIDATIONS, HeldOutCase, held_out_images
from ..volume import SagittalStack, Volume
from .comparison import HELD_OUT, SEEDS
from .comparison_measures import ISLAND, predict
from .comparison_networks import CANDIDATES, TASKS, Trial
from .comparison_records import FIGURES, SHIPPED, Comparison, TrialResult, read_comparison, trained
from .intervals import interval

PAPERS_TABLE = {
    "unet-2d": {"dice": "88.06 ± 0.16", "precision": "86.43 ± 1.24", "recall": "89.85 ± 0.84",
                "jaccard": "78.86 ± 0.62", "hausdorff_mm": "3.12 ± 0.035"},
    "unet-3d": {"dice": "89.28 ± 0.33", "precision": "89.35 ± 0.35", "recall": "89.54 ± 0.48",
                "jaccard": "80.72 ± 0.88", "hausdorff_mm": "1.94 ± 0.026"},
    "dense": {"dice": "88.89 ± 0.20", "precision": "87.83 ± 0.94", "recall": "90.34 ± 0.86",
              "jaccard": "80.11 ± 0.50", "hausdorff_mm": "2.87 ± 0.039"},
    "isa-scores": {"dice": "89.86 ± 0.10", "precision": "89.75 ± 0.24", "recall": "90.41 ± 0.36",
                   "jaccard": "81.56 ± 0.20", "hausdorff_mm": "1.76 ± 0.023"},
}  # fmt: skip
"""Zhang et al., MIDL 2020, on data that they do not name: mean ± standard deviation."""
PAPERS_SECONDS = {"unet-2d": 153, "unet-3d": 534, "isa-scores": 178}
PAPERS_SIZE = {"unet-2d": 35, "unet-3d": 83, "isa-scores": 38}
TITLES = {
    "dice": "DSC %",
    "precision": "Precision %",
    "recall": "Recall %",
    "jaccard": "Jaccard %",
    "hausdorff_mm": "HSD mm",
    "cleaned_hausdorff_mm": "HSD mm, islands removed",
    "hausdorff95_mm": "HD95 mm",
}
GAINS = {"dice": "DSC", "hausdorff_mm": "HSD", "cleaned_hausdorff_mm": "HSD, islands removed"}
"""Figures whose differences are shown."""
PAIRS = (
    ("isa-farther", "isa-features"),
    ("isa-farther", "dense"),
    ("isa-features", "dense"),
    ("isa-skips", "dense"),
    ("isa-scores", "dense"),
    ("isa-features", "unet-2d"),
    ("isa-features", "unet-3d"),
    ("isa-farther", "unet-2d"),
    ("isa-farther", "unet-3d"),
)
"""Networks whose differences are shown: what ISA adds, and SAU-Net against the two U-Nets."""
SHOWN = ("dense", "isa-scores", "isa-features")
EXTRA, MISSED, RIGHT = (255, 126, 40), (60, 150, 255), (170, 200, 170)
SCALE = 1.15
"""Picture pixels per mm."""


@dataclass(frozen=True)
class Summary:
    """A network's figure: mean and standard deviation over seeds, 95 % interval over patients."""

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Summary:
        """From values (seeds, patients).

        The `interval` is that of the mean over patients, each averaged over the seeds; nan for one patient or infinite
        values.
        """
        seeds, patients = values.mean(1), values.mean(0)
        low = high = math.nan
        if np.isfinite(patients).all():
            low, high = interval(lambda drawn: float(np.mean(drawn)), patients)
        return cls(float(seeds.mean()), deviation(seeds), low, high)

    def text(self, scale: float, interval: bool = True, sign: str = "") -> str:
        """Such as ``89.86 ± 0.10 (88.1 to 91.0)``."""
        if not math.isfinite(self.mean):
            return "-" if math.isnan(self.mean) else "no result in some patient"
        text = f"{scale * self.mean:{sign}.2f}"
        if math.isfinite(self.deviation):
            text += f" ± {scale * self.deviation:.2f}"
        if interval and math.isfinite(self.low):
            text += f" ({scale * self.low:{sign}.1f} to {scale * self.high:{sign}.1f})"
        return text


class TrialTable:
    """The metrics of the finished trials, as arrays (seeds, patients)."""

    def __init__(self, results: Sequence[TrialResult]) -> None:
        self.results = results

    def seeds(self, task: str, *networks: str) -> list[int]:
        """Seeds for which all of these networks are finished."""
        finished = [
            {result.seed for result in self.results if (result.task, result.network) == (task, name)}
            for name in networks
        ]
        return sorted(set.intersection(*finished))

    def values(
        self, task: str, network: str, slices: str, structure: str, figure: str, seeds: Iterable[int]
    ) -> np.ndarray:
        """Values (seeds, patients) of a structure, or of the mean over structures (``mean``)."""
        wanted_seeds = set(seeds)
        rows = []
        for result in self.results:
            if (result.task, result.network) == (task, network) and result.seed in wanted_seeds:
                by_patient: dict[str, list[float]] = {}
                for metrics in result.figures:
                    if metrics.slices == slices and structure in (metrics.structure, "mean"):
                        by_patient.setdefault(metrics.patient, []).append(getattr(metrics, figure))
                rows.append([float(np.mean(values)) for values in by_patient.values()])
        return np.array(rows)

    def summary(self, task: str, network: str, slices: str, structure: str, figure: str) -> Summary:
        return Summary.of(self.values(task, network, slices, structure, figure, self.seeds(task, network)))

    def gain(self, task: str, pair: tuple[str, str], slices: str, figure: str) -> Summary:
        """Differences between two networks in the mean over structures, paired by seed and patient."""
        seeds = self.seeds(task, *pair)
        first, second = (self.values(task, network, slices, "mean", figure, seeds) for network in pair)
        with np.errstate(invalid="ignore"):
            return Summary.of(first - second)

    def slices(self) -> list[str]:
        """The `VALIDATIONS` in which any case was measured: thick slices are not averaged further."""
        measured = {metrics.slices for result in self.results for metrics in result.figures}
        return [slices for slices in VALIDATIONS if slices in measured]

    def tasks(self) -> list[str]:
        return [task for task in TASKS if any(result.task == task for result in self.results)]

    def networks(self, task: str) -> list[str]:
        return [name for name in CANDIDATES if self.seeds(task, name)]


def write_report(data: Path, output: Path, report: Path, device: str = "auto") -> list[Path]:
    """Write the results of a comparison's finished trials.

    Args:
        data: folder of the comparison's cases, for the picture.
        output: folder of the comparison.
        report: Markdown file; a table of the same stem, ``.csv``, and a picture, ``-errors.png``, lie beside it.
        device: that segments for the picture.

    Returns:
        The files written.

    Raises:
        UsageError: USAGE, OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    check_writable(report, (".md",))
    comparison, results = read_comparison(output)
    table = TrialTable(results)
    sheet, picture = report.with_suffix(".csv"), report.with_name(f"{report.stem}-errors.png")
    with write_beside(sheet, ".csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_sheet(table))
    drawn = _errors(data, output, comparison, table, choose_device(device))
    if drawn is not None:
        with write_beside(picture, ".png") as temporary:
            drawn[0].save(temporary)
    parts = [*_head(comparison, table), *_tables(table), *_costs(comparison, table), *_moved(table)]
    if drawn is not None:
        parts += ["## Typical errors with and without ISA", f"![Errors with and without ISA]({picture.name})", drawn[1]]
    with write_beside(report, ".md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [report, sheet, *([picture] if drawn is not None else [])]


def _head(comparison: Comparison, table: TrialTable) -> Iterator[str]:
    config, results = comparison.config, table.results
    date = max((result.date for result in results), default="No training has finished yet")
    spider = set(comparison.held_out) == set(HELD_OUT)
    yield f"# The paper's comparison on {'SPIDER' if spider else comparison.data}"
    yield (
        f"{date}. Written by `{_command(comparison, results)}` from {len(results)} finished trainings. "
        f"This is {config.description}."
    )
    rows, columns = config.crop
    yield "\n".join(
        (
            f"- Trained on {len(comparison.trained_on)} patients and measured on {', '.join(comparison.held_out)}, "
            "which no network has seen. "
            + ("[training.md](training.md) describes the data and its licence. " if spider else "")
            + "The geometric augmentation is that of `saunet train`; the intensity augmentation is limited to what "
            "varies between patients within one sequence.",
            f"- Training of every network: {config.steps} steps of {config.stacks} x {config.slices} consecutive "
            f"slices, {rows} x {columns} pixels of {config.pixel_mm} mm, with the same stacks in the same order for "
            "the same seed; Dice and cross-entropy loss; AdamW with a learning rate of "
            f"{config.learning_rate:g}; weights averaged over the second half. No network was tuned individually.",
            f"- All networks have widths {', '.join(map(str, config.network.widths))}. The two U-Nets are MONAI's "
            "DynUNet. The 3D U-Net takes the stack as a volume and halves rows and columns, but not slices. It "
            f"processes whole patients in windows of {config.slices} slices, with MONAI's default overlap.",
            "- Figures are computed on the source grid (the images' pixels), "
            + (
                "with native slices only: four averaged would be thicker than clinical ones, or there are too few. "
                if table.slices() == ["native slices"]
                else "once with native slices and once with four slices averaged. "
            )
            + SPECKS,
            "- Values are mean ± standard deviation over the seeds. Brackets give the 95 % bootstrap interval over the "
            f"{len(comparison.held_out)} patients. With so few patients this interval is too narrow, and it does not "
            "include the scatter between seeds.",
            "- Nothing is removed after the network, so a false island counts fully in the Hausdorff distance (HSD). "
            f"For *islands removed*, components that make up less than {ISLAND:.0%} of what was found of a structure "
            "are removed, for every network alike.",
        )
    )


def _command(comparison: Comparison, results: Sequence[TrialResult]) -> str:
    """The command for the finished part of a comparison."""
    parts = [f"saunet compare {comparison.data} --output RUN --budget {comparison.budget}"]
    tasks = {result.task for result in results}
    if tasks and tasks != set(TASKS):
        parts += ["--task", *tasks]
    if (seeds := len({result.seed for result in results})) not in (0, SEEDS):
        parts += ["--seeds", str(seeds)]
    if set(comparison.held_out) != set(HELD_OUT):
        parts += ["--hold-out", *comparison.held_out]
    return " ".join(parts)


def _tables(table: TrialTable) -> Iterator[str]:
    for task in table.tasks():
        yield {
            "spine": "## All vertebrae against the rest, as in the paper",
            "structures": "## Vertebrae, discs and spinal canal",
        }[task]
        if task == "spine":
            yield (
                "Native slices, next to the paper's own table. The paper does not state which data, split and clean-up "
                "its figures are based on: only the order of the rows can be compared, not the columns."
            )
            yield _beside_paper(table)
        for slices in table.slices():
            mean = "" if task == "spine" else ", mean of the three structures"
            yield f"{slices.capitalize()}{mean}:"
            yield _figures(table, task, slices)
        yield "Differences, paired by seed and patient (DSC in points; a negative HSD is better):"
        yield _gains(table, task)


def _beside_paper(table: TrialTable) -> str:
    figures = [name for name in FIGURES if name in PAPERS_TABLE["dense"]]
    titles = [title for name in figures for title in (TITLES[name], "paper")]
    rows = []
    for network in table.networks("spine"):
        row = [CANDIDATES[network].title]
        for figure in figures:
            summary = table.summary("spine", network, "native slices", "vertebra", figure)
            row += [summary.text(_scale(figure), interval=False), PAPERS_TABLE.get(network, {}).get(figure, "")]
        rows.append(row)
    return markdown_table(["", *titles], rows)


def _figures(table: TrialTable, task: str, slices: str) -> str:
    """All figures of the networks; for three structures their mean, and the DSC of each."""
    apart = CLASS_NAMES[1:] if task == "structures" else ()
    rows = []
    for network in table.networks(task):
        row = [CANDIDATES[network].title, str(len(table.seeds(task, network)))]
        row += [table.summary(task, network, slices, "mean", name).text(_scale(name)) for name in FIGURES]
        row += [table.summary(task, network, slices, name, "dice").text(100, interval=False) for name in apart]
        rows.append(row)
    return markdown_table(["", "seeds", *TITLES.values(), *(f"DSC {name}" for name in apart)], rows)


def _gains(table: TrialTable, task: str) -> str:
    rows = []
    for pair in PAIRS:
        if not table.seeds(task, *pair):
            continue
        row = [f"{CANDIDATES[pair[0]].title} - {CANDIDATES[pair[1]].title}"]
        row += [
            table.gain(task, pair, slices, figure).text(_scale(figure), sign="+")
            for slices in table.slices()
            for figure in GAINS
        ]
        rows.append(row)
    return markdown_table(["", *(f"{name}, {slices}" for slices in table.slices() for name in GAINS.values())], rows)


def _scale(figure: str) -> float:
    return 1.0 if figure.endswith("_mm") else 100.0


def _costs(comparison: Comparison, table: TrialTable) -> Iterator[str]:
    yield "## What they cost"
    yield (
        "Time and size, and the paper's columns beside them, are relative to the 3D U-Net. Time is that of the network "
        f"alone for the held-out patients, all networks in turn in one run ({comparison.device}, "
        f"{comparison.precision}; on a CPU, the CPU time of one thread). All networks are prepared for "
        "inference: batch norm folded, weights in that precision, slices one at a time where a network processes them "
        "independently. On a CPU the Dense U-Net and SAU-Net run as in the engine, with packed weights, which "
        "bring the U-Nets no gain. Operations are those of the convolutions. Training times were taken while other "
        "work was running."
    )
    for task, costs in comparison.costs.items():
        yield {
            "spine": "One score:",
            "structures": "Four scores:",
            SHIPPED: "Four scores, networks and pixels of the shipped size (not trained here):",
        }[task]
        reference = costs["unet-3d"]
        rows = []
        for network, cost in costs.items():
            finished = [result for result in table.results if (result.task, result.network) == (task, network)]
            minutes = [result.seconds / 60 for result in finished]
            rows.append(
                [
                    CANDIDATES[network].title,
                    f"{cost.parameters / 1e6:.3f} M",
                    f"{cost.megabytes:.2f}",
                    f"{cost.parameters / reference.parameters:.2f}",
                    _share(PAPERS_SIZE, network),
                    f"{cost.gigaflop:.2f}",
                    *(_ratio(cost.seconds[slices], reference.seconds[slices]) for slices in VALIDATIONS),
                    _share(PAPERS_SECONDS, network),
                    f"{np.mean(minutes):.1f}" if minutes else "-",
                ]
            )
        titles = ["weights", "MB", "size", "paper", "GFLOP a slice", *(f"time, {name}" for name in VALIDATIONS)]
        yield markdown_table(["", *titles, "paper", "training, minutes"], rows)


def _ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2f}" if reference else "-"


def _share(papers: dict[str, int], network: str) -> str:
    return f"{papers[network] / papers['unet-3d']:.2f}" if network in papers else ""


def _moved(table: TrialTable) -> Iterator[str]:
    """What ISA on the scores can change at all."""
    shares = {
        task: [result.moved for result in table.results if result.task == task and result.moved is not None]
        for task in table.tasks()
    }
    sentences = [
        f"{'one score' if task == 'spine' else 'four scores'}: {100 * np.mean(of_task):.2f} %"
        for task, of_task in shares.items()
        if of_task
    ]
    if sentences:
        yield "## What ISA on scores can change"
        yield (
            "Voxels whose class ISA on scores changed, compared with the same network's scores before it, as a share "
            f"of the predicted foreground: {'; '.join(sentences)}. As written in the paper, ISA multiplies a slice's "
            "score F by 1 + A(i-1) + A(i+1). This factor is never below 1, because the masks A come from a sigmoid."
        )
        yield (
            "- With one score, ISA changes how certain the network is, but never the sign of F. At a threshold of one "
            "half, the mask is therefore the same before and after ISA at the network's own pixels. (A few voxels "
            "change because scores are interpolated to the image's pixels before the threshold.) Whatever ISA brings, "
            "it brings through the training.\n"
            "- With several scores, ISA can change which of them is largest. On features, ahead of the scores, there "
            "is no such limit."
        )


def _sheet(table: TrialTable) -> Iterator[list[str]]:
    statistics = ("mean", "deviation", "low", "high")
    columns = (f"{name} {statistic}" for name in FIGURES for statistic in statistics)
    yield ["task", "slices", "structure", "network", "seeds", *columns]
    for task in table.tasks():
        structures = ("vertebra",) if task == "spine" else (*CLASS_NAMES[1:], "mean")
        for slices in table.slices():
            for structure in structures:
                for network in table.networks(task):
                    summaries = [table.summary(task, network, slices, structure, figure) for figure in FIGURES]
                    numbers = [
                        f"{getattr(summary, statistic):.5f}" for summary in summaries for statistic in statistics
                    ]
                    yield [task, slices, structure, network, str(len(table.seeds(task, network))), *numbers]


def _errors(
    data: Path, output: Path, comparison: Comparison, table: TrialTable, device: torch.device
) -> tuple[Image.Image, str] | None:
    """The picture of errors and its caption; None until Dense U-Net and both SAU-Nets are finished for one seed."""
    seeds = table.seeds("spine", *SHOWN)
    if not seeds:
        return None
    scores = table.values("spine", "dense", "native slices", "vertebra", "dice", seeds[:1])[0]
    files = find_cases(data)
    images: dict[str, str] = {}
    for name in comparison.held_out:
        images.setdefault(files[name].patient, name)
    patient = list(images)[int(np.argsort(scores)[(len(scores) - 1) // 2])]
    networks = {name: trained(output, Trial(name, "spine", seeds[0]), comparison.config).to(device) for name in SHOWN}

    def segment(name: str, volume: Volume) -> np.ndarray:
        return predict(networks[name], volume, comparison.config.pixel_mm, device)

    rows = [_row(case, segment) for case in held_out_images(data, [images[patient]])]
    width = max(row.width for row in rows)
    caption = (
        f"Patient {patient}, the median one by the DSC of the network without ISA, seed {seeds[0]}, all vertebrae. "
        f"{'Above native slices, below four averaged; each time its' if len(rows) > 1 else 'Its'} slice with the "
        "median number of errors. Green: found. Orange: found, but no vertebra. Blue: missed."
    )
    return page([*rows, footer(caption, (), width)]), caption


def _row(case: HeldOutCase, segment: Callable[[str, Volume], np.ndarray]) -> Image.Image:
    """One slice's image and the errors of three networks on it."""
    stack = SagittalStack.of(case.volume)
    truth = stack.slices_of(case.labels == VERTEBRA)
    predicted = {name: stack.slices_of(segment(name, case.volume) > 0) for name in SHOWN}
    wrong = (predicted["dense"] != truth).sum((1, 2))
    seen = np.flatnonzero(truth.any((1, 2)))
    number = int(seen[np.argsort(wrong[seen])[len(seen) // 2]])
    grey = grey_levels(stack.slices[number], grey_window(stack.slices[number]))
    image = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
    size = (round(grey.shape[1] * stack.pixel[1] * SCALE), round(grey.shape[0] * stack.pixel[0] * SCALE))
    panels = [_panel(image, f"Slice {number + 1} of {len(truth)}, {case.slices}", size)]
    for name in SHOWN:
        painted = _painted(image, predicted[name][number], truth[number])
        panels.append(_panel(painted, CANDIDATES[name].title, size))
    return beside(panels, 8)


def _painted(image: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    painted = image.copy()
    for mask, colour, opacity in (
        (predicted & truth, RIGHT, 0.35),
        (predicted & ~truth, EXTRA, 0.85),
        (truth & ~predicted, MISSED, 0.85),
    ):
        painted[mask] = (1 - opacity) * painted[mask] + opacity * np.array(colour)
    return painted


def _panel(pixels: np.ndarray, title: str, size: tuple[int, int]) -> Image.Image:
    """A slice (H, W, 3) resized to `size` (columns, rows), with its title above."""
    result = Image.new("RGB", (size[0], size[1] + 26), PAPER)
    result.paste(Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS), (0, 26))
    ImageDraw.Draw(result).text((0, 4), title, INK, text_font(14))
    return result
