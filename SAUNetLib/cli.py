"""The command `saunet`: arguments in, files, tables and exit status out."""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .command import BUG, Parser, needs_extra, run_command
from .console import table_console
from .errors import CancelledError, InputError, ModelError, SAUNetError, UsageError, printable, unforeseen
from .stages import done

if TYPE_CHECKING:
    from .batch_journal import Batch
    from .engine import Engine, Report
    from .notices import Notice
    from .segmentation import Segmentation
    from .work_thread import WorkThread

# Everything heavy is imported by the subcommand that needs it: `saunet --help` answers at once.

DEVICES = ("auto", "cuda", "mps", "cpu")
COUNT_S = 300.0
"""Seconds between progress lines of a batch where stderr is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, see `run_command`."""
    return run_command(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="saunet",
        description="Spine MRI segmentation with SAU-Net. For research, not for diagnosis.",
        epilog="`saunet COMMAND --help` explains a command. Documentation: README.md and docs/, also at "
        "https://github.com/SAUNet/SlicerSAUNet",
    )
    parser.add_argument("--version", action="version", version=f"saunet {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (
        _add_segment,
        _add_batch,
        _add_measure,
        _add_relabel,
        _add_evaluate,
        _add_phantom,
        _add_models,
        _add_dataset,
        _add_train,
        _add_compare,
        _add_benchmark,
        _add_bundle,
    ):
        add(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], description: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=description, description=description)
    parser.add_argument("--debug", action="store_true", help="print a traceback on failure")
    parser.set_defaults(run=run)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        help="where to compute; default: a GPU if there is one, else the CPU",
    )


def _add_segment(commands: Any) -> None:
    parser = _add(commands, "segment", _segment, "Segment spine MRI: vertebrae and discs by level, spinal canal.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="NIfTI, NRRD or MetaImage file, or DICOM folder")
    parser.add_argument(
        "--output", required=True, metavar="PATH",
        help="label map (.nii.gz, .nii, .nrrd, .mha) or Slicer segmentation (.seg.nrrd); for several images a folder",
    )  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--classes", action="store_true", help="three classes: 1 vertebrae, 2 discs, 3 spinal canal")
    kind.add_argument(
        "--levels", action="store_true", help="one label per structure (default; the alternative to --classes)"
    )
    _add_device(parser)
    parser.add_argument("--model", metavar="NAME|FILE", help="model to use; `saunet models` lists them")
    parser.add_argument(
        "--lowest",
        metavar="LEVEL",
        help="level of the lowest complete vertebra, such as L5 (default: inferred from the sacrum, C2 or the sizes); "
        "not with --classes",
    )
    parser.add_argument("--series", help="number, UID or description of the series to take from a DICOM folder")
    parser.add_argument(
        "--parts", action="store_true",
        help="label vertebral bodies and posterior elements separately; not with --classes",
    )  # fmt: skip
    parser.add_argument(
        "--measurements", metavar="FILE",
        help="write heights, slips, angles, ... to a .csv or .json file; for a single image, not with --classes",
    )  # fmt: skip
    parser.add_argument(
        "--table", metavar="FILE.csv", help="write a table of the structures with their volumes; for a single image"
    )
    parser.add_argument(
        "--preview", metavar="FILE.png",
        help="write a picture: mid-sagittal and lateral slices; for a single image",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _segment(options: argparse.Namespace) -> int:
    if sys.platform == "win32":  # where shells do not expand patterns
        options.images = [path for image in options.images for path in _meant(image)]
    if len(options.images) > 1 or os.path.isdir(options.output):  # noqa: PTH112 - no failure for any path
        return _segment_many(options)
    with _progress(options) as report:
        report("load", 0.0)
        segmentation = _segment_one(options, _engine(options), Path(options.images[0]), Path(options.output), report)
    if options.json:
        print(json.dumps({"image": options.images[0], "output": options.output, **segmentation.summary()}))
    elif not options.quiet:
        _print_result(segmentation, options)
    return 0


def _meant(image: str) -> list[str]:
    """Expand a pattern such as ``*.nii.gz``; an existing path, or a pattern without a match, is returned unchanged."""
    return [image] if os.path.lexists(image) else sorted(glob.glob(image)) or [image]  # noqa: PTH207


def _engine(options: argparse.Namespace) -> Engine:
    from .engine import Engine
    from .model import load_model

    return Engine(load_model(options.model), options.device)


def _segment_one(
    options: argparse.Namespace, engine: Engine, image: Path, output: Path, report: Report
) -> Segmentation:
    from .pipeline import segment_file

    return segment_file(
        image, output, engine, series=options.series, levels=not options.classes, lowest=options.lowest,
        parts=options.parts, table=options.table, measurements=options.measurements, preview=options.preview,
        report=report,
    )  # fmt: skip


def _segment_in_thread(
    thread: WorkThread, options: argparse.Namespace, engine: Engine, image: Path, output: Path, report: Report
) -> Segmentation:
    """`_segment_one` in a `WorkThread`: running out of memory does not affect the next image. Ctrl-C cancels it."""
    interrupted = threading.Event()

    def heard(stage: str, fraction: float) -> None:
        if interrupted.is_set():
            raise CancelledError
        report(stage, fraction)

    return thread.run(lambda: _segment_one(options, engine, image, output, heard), interrupted.set)


def _segment_one_of_many(
    thread: WorkThread, options: argparse.Namespace, engine: Engine, image: Path, output: Path
) -> Segmentation | SAUNetError:
    """Run `_segment_in_thread`; return its result, or the error that prevented one."""
    try:
        with _progress(options, image.name) as report:
            return _segment_in_thread(thread, options, engine, image, output, report)
    except (CancelledError, KeyboardInterrupt):
        return CancelledError()
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        return error if isinstance(error, SAUNetError) else unforeseen(error, BUG)


def _segment_many(options: argparse.Namespace) -> int:
    """Segment each image independently: report a failure and go on; returns the first failure's exit status."""
    from .formats.places import check_places
    from .work_thread import WorkThread

    if options.table or options.preview or options.measurements:
        raise UsageError(
            "USAGE",
            "--table, --measurements and --preview need one image and a file as --output",
            "Leave them out, or give one image and a file name as --output",
        )
    outputs = _output_names([Path(image) for image in options.images], Path(options.output))
    check_places(outputs.values(), outputs)  # no output may be any of the inputs
    engine, thread = _engine(options), WorkThread()
    results: list[dict[str, Any]] = []
    status = 0
    for image, output in outputs.items():
        made = _segment_one_of_many(thread, options, engine, image, output)
        if not isinstance(made, SAUNetError):
            results.append({"image": str(image), "output": str(output), **made.summary()})
            if not (options.quiet or options.json):
                print(printable(str(output)), *([f"({made.series})"] if made.series else []))
                for notice in made.warnings:
                    print(printable(f"  note {notice.code}: {notice.text}"))
            continue
        results.append({"image": str(image), "error": made.as_dict()})
        print(printable(f"{image}: {made}"), file=sys.stderr)
        status = status or made.exit_status
        if isinstance(made, CancelledError):  # cancels the remaining images, too
            status = made.exit_status
            break
    if options.json:
        print(json.dumps(results))  # ASCII: a file name may not be valid UTF-8
    return status


def _output_names(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    from .formats.atomic import ending_of, spelling
    from .formats.endings import IMAGES

    endings = (*IMAGES, ".dcm")
    if folder.name.lower().endswith(IMAGES) and not folder.is_dir():
        raise UsageError("USAGE", "several images need a folder as --output", "Give a folder's name")
    outputs: dict[Path, Path] = {}
    names = set()
    for image in images:
        name = Path(os.path.abspath(image)).name  # noqa: PTH100 - a link's own name; no failure for a loop of links
        output = folder / f"{name[: len(name) - len(ending_of(Path(name), endings))]}.nii.gz"
        if spelling(output.name) in names:
            raise UsageError(
                "USAGE", f"two images would both be written to {output}", "Rename one, or segment them separately"
            )
        names.add(spelling(output.name))
        outputs[image] = output
    return outputs


def _add_batch(commands: Any) -> None:
    parser = _add(
        commands, "batch", _batch,
        "Segment a whole archive, here or on a cluster; later runs process only what is new (extra `cluster`).",
    )  # fmt: skip
    parser.add_argument(
        "archive", metavar="DIR", help="folder with DICOM, NIfTI, NRRD and MetaImage files at any depth"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results; see docs/batch.md")
    parser.add_argument("--model", metavar="NAME|FILE", help="model to use; `saunet models` lists them")
    _add_device(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes on this computer; default: one per core, as memory allows"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="address of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _batch(options: argparse.Namespace) -> int:
    archive, output = Path(options.archive), Path(options.output)
    if options.workers is not None and options.workers < 1:
        raise UsageError("USAGE", f"--workers is {options.workers}", "Give at least 1")
    with needs_extra("a batch", "cluster"):
        for name in ("cryptography", "distributed", "filelock"):
            if find_spec(name) is None:  # imported only if there is work: Dask loads slowly
                raise ModuleNotFoundError(name=name)
    from .batch import run_batch
    from .batch_journal import SUMMARY

    with _counter(options) as report:
        known = run_batch(
            archive, output, options.model, options.device, options.scheduler, options.workers, report,
            warn=lambda text: print(printable(text), file=sys.stderr, flush=True),
        )  # fmt: skip
    failed = [outcome for _, outcome in known.outcomes() if outcome.status == "failed"]
    if not options.quiet:
        print(", ".join(f"{count} {status}" for status, count in known.counts().items()))
        _print_remarks(known, output)
        print(printable(str(output / SUMMARY)))
    for code, count in Counter(outcome.code for outcome in failed).items():
        hosts = sorted({outcome.host for outcome in failed if outcome.code == code and outcome.host})
        where = f" on {', '.join(hosts[:3])}{' and others' if len(hosts) > 3 else ''}" if hosts else ""
        print(f"{count} failed with {code}{where}; run the same command to try them again", file=sys.stderr)
    return failed[0].exit_status if failed else 0


def _print_remarks(known: Batch, output: Path) -> None:
    """Print remarks on the archive, from which a wrong folder or kind of folder is noticed at once."""
    if known.left_out:
        count = sum(known.left_out.values())
        files = "1 file of another kind was" if count == 1 else f"{count} files of other kinds were"
        print(f"{files} left out ({_endings(known.left_out)})")
    if known.earlier:
        more = f" and {len(known.earlier) - 3} more" if len(known.earlier) > 3 else ""
        print(printable(f"Results of other batches were left out: {', '.join(known.earlier[:3])}{more}"))
    if split := known.split():
        print(
            f"{len(split)} series lie in several folders, as parts or copies, and each folder has its own result "
            "(SERIES_SPLIT). If this is not intended, export the archive with one folder per series"
        )
    if changed := known.changed():
        sources, them = ("1 source", "it") if changed == 1 else (f"{changed} sources", "them")
        print(
            f"The files of {sources} changed during the run, for example because slices were still arriving; run the "
            f"same command to process {them} again"
        )
    if known.edited:
        maps = "1 label map was" if len(known.edited) == 1 else f"{len(known.edited)} label maps were"
        print(f"{maps} edited by hand or left by an interrupted run; copies: NAME.edited-...")
    if gone := len({record.place for record, _ in known.gone(output)}):
        have, their = ("source is", "its") if gone == 1 else ("sources are", "their")
        print(f"{gone} {have} no longer in the archive; {their} results are kept (status gone)")


_MAY_HOLD_IMAGES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".iso")
"""Extensions of archives that may contain a whole study; they are listed first."""


def _endings(counts: Mapping[str, int]) -> str:
    def order(item: tuple[str, int]) -> tuple[bool, int]:
        ending, count = item
        return ending not in _MAY_HOLD_IMAGES, -count

    most = sorted(counts.items(), key=order)[:3]
    shown = ", ".join(f"{count} {printable(ending) or 'without ending'}" for ending, count in most)
    return f"{shown}, ..." if len(counts) > len(most) else shown


@contextlib.contextmanager
def _counter(options: argparse.Namespace) -> Iterator[Callable[[int, int | None, int, int], None]]:
    """A callback that reports finished sources: a progress bar on a terminal, otherwise a line now and then."""
    if options.quiet:
        yield lambda done, total, failed, before: None
        return
    known = False

    def tell_total(total: int | None, before: int) -> None:
        nonlocal known
        if total is not None and not known:
            number = "1 source" if total + before == 1 else f"{total + before} sources"
            print(number + (f", {before} done before" if before else ""), flush=True)
        known = total is not None

    if not sys.stderr.isatty():
        due = time.monotonic() + COUNT_S

        def count(done: int, total: int | None, failed: int, before: int) -> None:
            nonlocal due
            tell_total(total, before)
            if time.monotonic() >= due:
                of = "" if total is None else f" of {total}"
                print(f"{done}{of} done, {failed} failed", file=sys.stderr, flush=True)
                due = time.monotonic() + COUNT_S

        yield count
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("Sources"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console, shared = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=shared) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int | None, failed: int, before: int) -> None:
            tell_total(total, before)
            bar.update(task, completed=done, total=total)

        yield show


STAGES = {
    "load": "Loading",
    "read": "Reading",
    "prepare": "Checking",
    "segment": "Segmenting",
    "levels": "Naming levels",
    "write": "Writing",
}
"""Displayed names of the `stages`."""


@contextlib.contextmanager
def _progress(options: argparse.Namespace, title: str = "") -> Iterator[Report]:
    """A `Report` that draws a progress bar on stderr if that is a terminal."""
    from .engine import silent

    if options.quiet or options.json or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        title = printable(title)
        task = bar.add_task(title or "Starting", total=1.0)

        def report(stage: str, fraction: float) -> None:
            bar.update(
                task, description=f"{title}  {STAGES.get(stage, stage)}".strip(), completed=done(stage, fraction)
            )

        yield report


def _print_result(segmentation: Segmentation, options: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("Label", justify="right")
    table.add_column("Structure")
    table.add_column("Volume (ml)", justify="right")
    table.add_column("")
    for row in segmentation.table():
        table.add_row(
            str(row.structure.value),
            row.structure.name,
            f"{row.volume_mm3 / 1000:.1f}",
            "cut off" if row.partial else "",
        )
    console = table_console()
    console.print(table)
    _print_notices(segmentation.warnings)
    for title, text in (("Image", segmentation.series), *_written(options)):
        if text:
            console.print(f"{title + ':':<11}{printable(text)}", markup=False)


def _print_notices(notices: Iterable[Notice]) -> None:
    from rich.markup import escape

    console = table_console()
    for notice in notices:
        console.print(f"[yellow]note {notice.code}:[/] {escape(printable(notice.text))}")


def _written(options: argparse.Namespace) -> list[tuple[str, str | None]]:
    return [
        ("Label map", options.output),
        ("Table", options.table),
        ("Measured", options.measurements),
        ("Preview", options.preview),
    ]


def _add_measure(commands: Any) -> None:
    parser = _add(commands, "measure", _measure, "Measure a segmentation: heights, slips, canal, angles, volumes.")
    parser.add_argument("segmentation", metavar="FILE", help="label map or .seg.nrrd with levels")
    parser.add_argument("--output", required=True, metavar="FILE", help="measurements to write: .csv or .json")
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help="the segmented image, for signal ratios and the picture; without it, padding counts as field of view",
    )
    parser.add_argument("--series", help="number, UID or description of the series where IMAGE is a DICOM folder")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the landmarks on the mid-sagittal slice of --image")


def _measure(options: argparse.Namespace) -> int:
    from .formats.atomic import write_together
    from .formats.endings import MEASUREMENTS, PICTURES
    from .formats.places import check_outputs
    from .formats.segmentations import read_segmentation
    from .formats.volumes import read_volume
    from .measurements import measure, write_measurements, write_picture

    if options.picture and not options.image:
        raise UsageError("USAGE", "--picture needs the image to draw on", "Give it with --image")
    if options.series and not options.image:
        raise UsageError("USAGE", "--series applies to the image, and none was given", "Give the image with --image")
    outputs = (options.output, MEASUREMENTS), (options.picture or None, PICTURES)
    check_outputs(outputs, filter(None, (options.segmentation, options.image)))
    segmentation = read_segmentation(options.segmentation)
    volume = read_volume(options.image, options.series) if options.image else None
    measured = measure(segmentation, volume)
    with write_together():
        write_measurements(measured, options.output)
        if options.picture and volume is not None:
            write_picture(volume, segmentation, measured, options.picture)
    _print_notices(measured.warnings)
    print(*map(printable, filter(None, (options.output, options.picture))), sep="\n")
    return 0


def _add_relabel(commands: Any) -> None:
    parser = _add(
        commands, "relabel", _relabel, "Correct the levels: state what one structure is, and all names shift with it."
    )
    parser.add_argument("file", metavar="FILE", help="label map or .seg.nrrd with levels")
    parser.add_argument(
        "--set", required=True, action="append", metavar="STRUCTURE=LEVEL",
        help="a structure (label value, level or name) and its true level, such as 95=L3/L4; repeat for structures "
        "that do not shift with it, as in a spine with four lumbar vertebrae: --set L5=L4 --set L5/S1=L5/S1",
    )  # fmt: skip
    parser.add_argument("--output", metavar="PATH", help="file to write; default: overwrite FILE")
    parser.add_argument("--table", metavar="FILE.csv", help="write the table of structures with the new names")


def _relabel(options: argparse.Namespace) -> int:
    from .formats.endings import SEGMENTS
    from .formats.slicer_segments import is_segment_file
    from .notices import About
    from .relabel import relabel_file

    pairs = [entry.partition("=") for entry in options.set]
    if not all(separator for _, separator, _ in pairs):
        raise UsageError("USAGE", f"{' '.join(options.set)} is not STRUCTURE=LEVEL", "Give a pair such as 95=L3/L4")
    assignments = [(key, text) for key, _, text in pairs]
    changed = relabel_file(options.file, assignments, options.output, options.table)
    for row in changed.table():
        print(row.structure.value, row.structure.name, sep="\t")
    for notice in changed.warnings:
        if notice.is_about(About.FILE | About.ANCHOR):
            print(printable(f"note {notice.code}: {notice.text}"), file=sys.stderr)
    print("note: existing tables, pictures and measurements keep the old names", file=sys.stderr)
    if not (options.output or options.file).lower().endswith(SEGMENTS) and is_segment_file(options.file):
        print("note: a label map does not store colours, status and tags that were set in Slicer", file=sys.stderr)
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, "Compare a label map with the ground truth, structure by structure.")
    parser.add_argument("predicted", metavar="PREDICTED", help="label map or .seg.nrrd")
    parser.add_argument("truth", metavar="TRUTH", help="label map or .seg.nrrd on the same grid")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluation.evaluate import evaluate_files

    report = evaluate_files(options.predicted, options.truth)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        report.print()
        _print_notices(report.warnings)
    return 0


def _add_phantom(commands: Any) -> None:
    parser = _add(commands, "phantom", _phantom, "Generate a procedural spine MRI with its exact label map.")
    parser.add_argument(
        "output", metavar="OUT",
        help="image to write, such as phantom.nii.gz, with labels beside it (OUT's stem + _labels); with --count, the "
        "folder to write to",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="each number is a different patient; default: %(default)s")
    parser.add_argument("--contrast", choices=("t1", "t2", "stir", "random"), help="default: t2")
    parser.add_argument("--slice-thickness", type=float, metavar="MM", help="default: 4; the slice spacing is 0.4 more")
    parser.add_argument(
        "--count", type=int, metavar="N", help="write N different pairs into the folder OUT, for training"
    )


def _phantom(options: argparse.Namespace) -> int:
    from .formats.atomic import check_writable
    from .formats.endings import VOLUMES
    from .training.phantom import PhantomOptions, make_phantom
    from .training.phantom.dataset import write_phantom, write_phantoms

    output = Path(options.output)
    chosen = {"contrast": options.contrast, "slice_thickness": options.slice_thickness}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if options.count is not None:
        if options.count < 1:
            raise UsageError("USAGE", f"--count is {options.count}", "Give a number from 1")
        if chosen:
            raise UsageError(
                "USAGE",
                "with --count, contrast and slice thickness are drawn at random",
                "Leave out --contrast and --slice-thickness, or --count",
            )
        if output.name.lower().endswith(VOLUMES):
            raise UsageError(
                "USAGE", f"{output.name} is the name of an image, but --count writes a folder", "Give a folder"
            )
        write_phantoms(output, options.count, options.seed)
        print(output)
        return 0
    ending = check_writable(output, VOLUMES)
    labels = output.with_name(f"{output.name[: -len(ending)]}_labels.nii.gz")
    check_writable(labels, VOLUMES)
    made = make_phantom(PhantomOptions(seed=options.seed, **chosen))
    write_phantom(made, output, labels)
    print(output, labels, sep="\n")
    return 0


def _add_models(commands: Any) -> None:
    parser = _add(commands, "models", _models, "List the models that can be chosen by name, or add one.")
    parser.add_argument("--json", action="store_true", help="print the cards as JSON")
    actions = parser.add_subparsers(metavar="list | add", parser_class=Parser)
    listing = _add(actions, "list", _models, "List the models (same as `saunet models` alone).")
    adding = _add(
        actions, "add", _models_add, "Verify a model file and its card, and install them under the model's name."
    )
    adding.add_argument("file", metavar="FILE", help="NAME.safetensors, with its card NAME.json beside it")
    for action in (listing, adding):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the cards as JSON")


def _models(options: argparse.Namespace) -> int:
    from .model_card import available_models

    return _print_cards(available_models(), options)


def _models_add(options: argparse.Namespace) -> int:
    from .model import add_model

    return _print_cards([add_model(options.file)], options)


def _print_cards(cards: Sequence[Any], options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .model_card import find_model, verified_weights

    if options.json:
        print(json.dumps([asdict(card) for card in cards]))
        return 0
    for card in cards:
        print(printable(f"{card.name} {card.version}: {card.description} ({card.licence})"))
        path = find_model(card.name)
        try:
            size = len(verified_weights(path, card))
        except ModelError as error:  # a damaged file does not hide the others
            print(f"    cannot be used: {error.cause} {error.remedy}")
        else:
            print(f"    {size / 1e6:.1f} MB of weights")
        print(printable(f"    {path}"))
    return 0


def _add_dataset(commands: Any) -> None:
    parser = _add(commands, "dataset", _dataset_check, "Check a folder of labelled images to train on (extra `train`).")
    actions = parser.add_subparsers(required=True, metavar="check", parser_class=Parser)
    check = _add(actions, "check", _dataset_check, "List all problems of a folder of labelled images (extra `train`).")
    check.add_argument(
        "folder", type=Path, metavar="DIR",
        help="pairs NAME_image and NAME_labels, or images/NAME and masks/NAME, in .nii.gz, .nii, .nrrd or .mha",
    )  # fmt: skip
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def _dataset_check(options: argparse.Namespace) -> int:
    with needs_extra("training", "train"):
        from .training.checks import check_dataset
    report = check_dataset(options.folder)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        report.print()
    return 0 if report.usable else InputError.exit_status


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", _train, "Train a model, or continue a run that was stopped (extra `train`).")
    parser.add_argument(
        "data", nargs="*", type=Path, metavar="DIR",
        help="folders of labelled images (see `saunet dataset check`); the first folder also provides the validation "
        "cases",
    )  # fmt: skip
    # Folders as an option, too: fine-tuning was announced as `saunet train --from MODEL --data DIR`.
    parser.add_argument(
        "--data", nargs="+", type=Path, dest="more", metavar="DIR", default=[], help="the same as DIR alone"
    )
    parser.add_argument("--from", dest="start", metavar="NAME|FILE", help="model to adapt to the data (fine-tuning)")
    parser.add_argument(
        "--output", required=True, metavar="RUN", help="folder of the run; an unfinished run is continued"
    )
    parser.add_argument(
        "--config", metavar="FILE.json", help="training configuration; default: the run's own, else the standard"
    )
    _add_device(parser)


def _train(options: argparse.Namespace) -> int:
    folders = [*options.data, *options.more]
    if not folders:
        raise UsageError("USAGE", "there is no folder to train on", "Give at least one, such as: saunet train DIR")
    with needs_extra("training", "train"):
        from .training.run import run_training
    run_training(folders, Path(options.output), options.config, options.device, options.start)
    return 0


def _add_compare(commands: Any) -> None:
    parser = _add(
        commands,
        "compare",
        _compare,
        "Train U-Nets and SAU-Nets under the same conditions and write the paper's table (extra `train`).",
    )
    parser.add_argument("data", type=Path, metavar="DIR", help="folder of labelled cases, as for `saunet train`")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="RUN",
        help="folder of the runs; an unfinished comparison is continued, if you like by several commands at once",
    )
    parser.add_argument(
        "--budget", default="small", choices=("smoke", "small", "medium", "large"),
        help="smoke: only shows that everything runs; small: 2 to 4 minutes per training on one CPU core; medium: 6 to "
        "9 minutes, a night for all; large: for a GPU, not measured. By default there are 42 trainings (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--task", nargs="+", default=("spine", "structures"), choices=("spine", "structures"),
        help="all vertebrae against the rest, or vertebrae, discs and canal (default: both)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help="training runs per network (default: 3)")
    parser.add_argument(
        "--hold-out", nargs="+", metavar="NAME", help="held-out cases to measure on; default: SPIDER's five"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="report to write; default: RUN/results.md")
    parser.add_argument("--finished", action="store_true", help="do not train; report the finished runs")
    _add_device(parser)


def _compare(options: argparse.Namespace) -> int:
    from .formats.atomic import check_writable

    with needs_extra("training", "train"):
        from .evaluation.comparison import HELD_OUT, SEEDS, compare
        from .evaluation.comparison_report import write_report
    seeds = SEEDS if options.seeds is None else options.seeds
    if seeds < 1:
        raise UsageError("USAGE", f"--seeds is {seeds}", "Give at least 1")
    report = options.report or options.output / "results.md"
    check_writable(report, (".md",))

    if not options.finished:
        compare(
            options.data, options.output, options.budget, options.task, seeds, options.hold_out or HELD_OUT,
            options.device,
        )  # fmt: skip
    print(*write_report(options.data, options.output, report, options.device), sep="\n")
    return 0


def _add_benchmark(commands: Any) -> None:
    parser = _add(
        commands, "benchmark", _benchmark,
        "Measure speed and memory on this computer, compared with other networks (which need the extra `peers`).",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE.json", help="write all figures to a file; the tables go to standard output (Markdown)"
    )
    _add_device(parser)
    parser.add_argument("--model", metavar="NAME|FILE", help="model to measure; `saunet models` lists them")
    parser.add_argument(
        "--budget",
        default="full",
        choices=("full", "smoke"),
        help="smoke: tiny volumes, takes only seconds (default: %(default)s)",
    )


def _benchmark(options: argparse.Namespace) -> int:
    from .evaluation.benchmark import BUDGETS, benchmark, markdown, write_benchmark
    from .formats.atomic import check_writable

    if options.output:
        check_writable(options.output, (".json",))
    measured = benchmark(
        BUDGETS[options.budget], options.device, options.model, say=lambda text: print(text, file=sys.stderr)
    )
    if options.output:
        write_benchmark(measured, options.output)
    print(markdown(measured))
    return 0


def _add_bundle(commands: Any) -> None:
    parser = _add(commands, "bundle", _bundle, "Bundle what an offline computer needs to run SAUNet in Slicer.")
    parser.add_argument("output", metavar="OUT.zip", help="file to write")
    parser.add_argument("--slicer", required=True, help="version of Slicer on that computer: 5.10 or 5.12")
    parser.add_argument("--platform", required=True, help="linux or windows (both x86_64), or macos-arm64")
    parser.add_argument(
        "--index",
        metavar="URL",
        help="additional package index: PyTorch's CPU index (https://download.pytorch.org/whl/cpu) makes a small "
        "bundle for linux; one of its CUDA indexes, such as https://download.pytorch.org/whl/cu130, makes a bundle for "
        "windows that uses NVIDIA GPUs: the name of the torch file, which is printed, then contains +cu. pytorch.org "
        "gives the index of each CUDA version under Get Started",
    )


def _bundle(options: argparse.Namespace) -> int:
    from .bundle import write_bundle

    for name in write_bundle(options.output, options.slicer, options.platform, index=options.index):
        print(name)
    size = Path(options.output).stat().st_size
    print(f"{options.output}: {size / 1e9:.2f} GB, for Slicer {options.slicer} on {options.platform}")
    return 0
