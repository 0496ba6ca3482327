"""Pictures: the right slices, upright and true to scale under every axis order, and nothing of the patient in them."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from PIL import Image, ImageDraw

from SAUNetLib.anatomy import CANAL_VALUE, encodings, value_of
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats import pages, previews
from SAUNetLib.formats.previews import draw_preview, write_preview
from SAUNetLib.notices import Notice
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry, SagittalStack, Volume

GRID = builders.geometry(size=(40, 56, 9), spacing=(2, 2, 3.5))
TOP, LEFT = 26 + 40 + 10, 26
"""Where the first panel begins on the page."""


@pytest.fixture(scope="module")
def volume() -> Volume:
    return builders.volume(GRID)


@pytest.fixture(scope="module")
def segmentation() -> Segmentation:
    return builders.segmentation(GRID)


def panel(picture: Image.Image) -> np.ndarray:
    """The grey values (rows, columns) of the mid-sagittal image, found by the paper around it."""
    page = np.asarray(picture)
    paper = (page == pages.PAPER).all(axis=-1)
    width = int(np.argmax(paper[TOP + 40, LEFT:]))
    height = int(np.argmax(paper[TOP:, LEFT + width // 4]))
    return page[TOP : TOP + height, LEFT : LEFT + width, 1]


def regrid(volume: Volume, grid: Geometry) -> Volume:
    """The same slices on a grid whose axes are permuted or reversed."""
    empty = SagittalStack.of(Volume(np.zeros(tuple(reversed(grid.size)), volume.voxels.dtype), grid))
    return Volume(empty.restore(SagittalStack.of(volume).slices), grid)


def test_written_picture(tmp_path: Path, volume: Volume, segmentation: Segmentation) -> None:
    path = tmp_path / "neu" / "bild 脊椎.png"
    write_preview(volume, segmentation, path)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert not picture.info
        colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {row.structure.colour for row in segmentation.table()} <= colours
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_picture_is_written_faster_than_usual_and_is_not_much_larger(
    tmp_path: Path, volume: Volume, segmentation: Segmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_preview(volume, segmentation)
    monkeypatch.setattr(previews, "draw_preview", lambda *_: drawn)
    written, usual = tmp_path / "written.png", tmp_path / "usual.png"
    taken = builders.least_seconds(lambda: write_preview(volume, segmentation, written))
    assert taken < 0.8 * builders.least_seconds(lambda: drawn.save(usual))
    assert written.stat().st_size < 1.5 * usual.stat().st_size
    assert np.array_equal(Image.open(written), drawn)


def test_every_axis_order_gives_the_same_picture(volume: Volume, segmentation: Segmentation) -> None:
    wanted = None
    for order, flips in builders.axis_orders()[::5]:
        grid = builders.geometry(order, flips, size=(40, 56, 9), spacing=(2, 2, 3.5))
        labels = regrid(Volume(segmentation.labels, GRID), grid)
        picture = np.asarray(draw_preview(regrid(volume, grid), Segmentation(labels.voxels, grid)))
        body = picture[:-60]  # the last line names the voxel size in the order of the axes
        wanted = body if wanted is None else wanted
        assert np.array_equal(body, wanted)


@pytest.mark.parametrize("oblique", [0.0, 14.0])
def test_upright(oblique: float) -> None:
    """Bright above and in front: the panel is brighter at its top and at its left."""
    for order, flips in builders.axis_orders()[::7]:
        grid = builders.geometry(order, flips, oblique, (40, 56, 5), (2, 2, 3.5))
        place = builders.points(grid) @ builders.rotation(oblique)
        labels = builders.segmentation(grid, oblique)
        above = panel(draw_preview(Volume(place[..., 2] * 1.0, grid), labels)).astype(float)
        ahead = panel(draw_preview(Volume(-place[..., 1], grid), labels)).astype(float)
        assert above[: len(above) // 3].mean() > 2 * above[-len(above) // 3 :].mean()
        assert ahead[:, : ahead.shape[1] // 3].mean() > 2 * ahead[:, -ahead.shape[1] // 3 :].mean()


@pytest.mark.parametrize("spacing", [(1, 1, 4), (0.6, 1.2, 3), (2.4, 0.9, 2.4)])
def test_true_aspect(spacing: tuple[float, float, float]) -> None:
    grid = builders.geometry(size=(50, 60, 3), spacing=spacing)
    labels = Segmentation(np.zeros((3, 60, 50), np.uint8), grid)
    shown = panel(draw_preview(Volume(np.full((3, 60, 50), 90.0) + np.arange(50), grid), labels))
    height, width = shown.shape
    assert width / height == pytest.approx(50 * spacing[0] / (60 * spacing[1]), rel=0.01)
    assert height == previews.TALL or width == previews.WIDE


@pytest.mark.parametrize("offset", [-2, 0, 2])
def test_the_middle_is_the_spine_not_the_index(offset: int) -> None:
    """The spine lies some slices beside the centre of the field of view; only its middle slice is bright."""
    grid = builders.geometry(size=(40, 56, 13), spacing=(2, 2, 3.5))
    labels = np.roll(builders.labels_at(builders.points(grid)), offset, axis=0)
    for number in range(13):
        voxels = np.random.default_rng(0).random(labels.shape)
        voxels[:, :12, :12] = 100  # the window needs something bright in every slice
        voxels[number] += 100
        shown = np.median(panel(draw_preview(Volume(voxels, grid), Segmentation(labels, grid))))
        assert shown > 80 if number == 6 + offset else shown < 20


def test_lateral_slices_show_the_pedicles(volume: Volume, segmentation: Segmentation) -> None:
    labels = SagittalStack.of(Volume(segmentation.labels, GRID))
    views = previews._views(labels, segmentation)
    place = np.arange(9) * 3.5 - 14  # mm to the left
    assert [view.number for view in views[:1]] == [4]
    assert all(8 < abs(place[view.number]) < 11 for view in views[1:])
    assert place[views[1].number] < 0 < place[views[2].number]
    assert "10.5 mm" in views[1].title and views[1].title.startswith("Right")


def shown(boxes: dict[str, tuple[slice, slice, slice]]) -> list[int]:
    """The slices, from the right, that are shown of boxes, each in slices from the right, rows and columns."""
    grid = builders.geometry(size=(40, 40, 15), spacing=(2, 2, 3.5))
    stack = SagittalStack.of(Volume(np.zeros(grid.size[::-1], np.uint8), grid))
    slices = np.zeros(stack.slices.shape, np.uint8)
    for level, box in boxes.items():
        slices[box] = CANAL_VALUE if level == "canal" else value_of(level.rstrip("+"))
    segmentation = Segmentation(stack.restore(slices), grid)
    return [view.number for view in previews._views(segmentation.stack(), segmentation)]


MIDDLE = {"canal": (slice(6, 9), slice(0, 40), slice(20, 26)), "L1/L2": (slice(6, 9), slice(18, 22), slice(5, 20))}


def test_where_no_pedicle_shows_the_lateral_slices_lie_14_mm_to_their_own_side():
    assert shown(MIDDLE) == [7, 3, 11]


def test_lateral_slices_show_what_lies_beside_the_canal_not_the_largest_area():
    """A large body in the slices beside the middle, pedicles farther out."""
    body = (slice(5, 10), slice(22, 40), slice(2, 20))
    pedicles = {
        "L2+": (slice(4, 5), slice(24, 30), slice(19, 26)),
        "L2++": (slice(10, 11), slice(24, 30), slice(19, 26)),
    }
    assert shown({"L2": body, **MIDDLE, **pedicles}) == [7, 4, 10]


def test_the_middle_is_that_of_canal_and_discs_though_vertebrae_reach_farther_to_one_side():
    assert shown({"L2": (slice(3, 15), slice(22, 40), slice(2, 20)), **MIDDLE})[0] == 7


@pytest.mark.parametrize("slices", [1, 2, 3, 40])
@pytest.mark.parametrize("empty", [True, False])
def test_few_and_many_slices(slices: int, empty: bool) -> None:
    grid = builders.geometry(size=(24, 30, slices), spacing=(3, 3, 2))
    result = builders.segmentation(grid)
    if empty:
        result = Segmentation(result.labels * 0, grid)
    picture = draw_preview(builders.volume(grid), result)
    assert picture.width > 600 and picture.height > 700
    assert len(previews._views(SagittalStack.of(Volume(result.labels, grid)), result)) == min(slices, 3)


def test_no_colour_without_labels(volume: Volume) -> None:
    nothing = Segmentation(np.zeros_like(volume.voxels, np.uint8), GRID)
    page = np.asarray(draw_preview(volume, nothing)).astype(int)
    first = panel(draw_preview(volume, nothing))
    second = page[TOP : TOP + first.shape[0], LEFT + first.shape[1] + pages.GAP :][:, : first.shape[1]]
    assert np.array_equal(first, second[..., 1])


def test_classes_and_warnings(volume: Volume) -> None:
    labels = np.zeros_like(volume.voxels, np.uint8)
    labels[:, 10:20, 10:20], labels[:, 22:25, 10:20], labels[:, 10:30, 24:28] = 1, 2, 3
    plain = draw_preview(volume, Segmentation(labels, GRID, encodings()["classes"]))
    long = Notice("LONG", "This is a long remark for the reader of the picture. " * 12)
    noted = draw_preview(volume, Segmentation(labels, GRID, encodings()["classes"], warnings=(long,)))
    assert noted.width == plain.width and noted.height > plain.height + 60


def test_extreme_fields_of_view() -> None:
    for size in ((4, 200, 5), (200, 16, 5)):
        grid = builders.geometry(size=size, spacing=(1.5, 1.5, 3))
        picture = draw_preview(builders.volume(grid), builders.segmentation(grid))
        assert picture.width < 2200 and picture.height < 2200


def test_refusals(tmp_path: Path, volume: Volume, segmentation: Segmentation) -> None:
    with pytest.raises(UsageError) as usage:
        write_preview(volume, segmentation, tmp_path / "p.jpeg")
    assert usage.value.code == "OUTPUT_FORMAT"
    other = builders.geometry(size=(40, 56, 9), spacing=(2, 2, 3.4))
    with pytest.raises(InputError) as bad:
        write_preview(volume, Segmentation(segmentation.labels, other), tmp_path / "p.png")
    assert bad.value.code == "INPUT_GEOMETRY"
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UsageError) as full:
            write_preview(volume, segmentation, tmp_path / "p.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.code == "OUTPUT_WRITE"
    assert not list(tmp_path.iterdir())


def test_the_middle_slice_halves_an_area():
    for areas, middle in (([0, 3, 1, 0], 1), ([0, 0, 2, 4], 3), ([0, 0, 0, 0], 2), ([5], 0)):
        assert pages.middle_slice(np.array(areas)) == middle


def test_letters_at_the_border_leave_a_structure_s_name_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float]] = []
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, place: tuple[float, float], word: str, *rest: object, **more: object) -> None:
        written.append((word, place[0]))
        text(draw, place, word, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    labels = np.zeros((300, 200), np.uint8)
    for rows, columns, missing in ((slice(0, 12), slice(90, 110), "S"), (slice(140, 160), slice(180, 200), "P")):
        written.clear()
        covered = labels.copy()
        covered[rows, columns] = 41
        pages.write_directions(Image.new("RGB", (200, 300)), covered)
        assert {word for word, _ in written} == set("SIAP") - {missing}
    written.clear()
    pages.write_directions(Image.new("RGB", (200, 300)))
    assert {word for word, _ in written} == set("SIAP")


def test_names_stay_within_a_narrow_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a field of view of 55 mm the names at its border were cut off."""
    panels: list[tuple[int, float, float]] = []
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, place: tuple[float, float], word: str, *rest: object, **more: object) -> None:
        if word in ("T12", "L1"):
            half = pages.text_font(pages.BODY_LETTERS).getlength(word) / 2
            panels.append((draw.im.size[0], place[0] - half, place[0] + half))
        text(draw, place, word, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    grid = builders.geometry(size=(30, 200, 1), spacing=(1, 1, 4))
    labels = np.zeros((1, 200, 30), np.uint8)
    labels[0, 20:50, :4], labels[0, 60:90, 26:] = 41, 32
    volume = Volume(builders.volume(grid).voxels, grid)
    draw_preview(volume, Segmentation(labels, grid))
    assert len(panels) == 2 and all(left >= 0 and right <= width >= 160 for width, left, right in panels)


def test_levels_are_written_on_bodies():
    """Not on the canal, where a mask holds a body with its arch behind, nor on a stray piece."""
    mask, canal = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    mask[5:30, 10:55], mask[35:38, 2:5], canal[:25, 30:40] = True, True, True
    assert pages.in_front(mask & ~canal, canal).mean(axis=0) == pytest.approx([17, 19.5])
    assert len(pages.in_front(canal & ~canal, canal)) == 0
    assert len(pages.in_front(canal & ~canal, canal & ~canal)) == 0
    assert pages.in_front(mask, canal & ~canal)[:, 1].max() < 33
    assert pages.in_front(mask, canal & ~canal)[:, 1].min() == 10


def test_a_body_with_its_arch_is_called_in_front_of_the_canal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the mid-sagittal slice meets the pedicles of a turned vertebra."""
    grid = builders.geometry(size=(60, 40, 1), spacing=(2, 2, 4))
    labels = np.zeros((1, 40, 60), np.uint8)
    labels[0, :, 30:36], labels[0, 10:20, 12:52] = 2, 43
    written: dict[str, float] = {}
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, place: tuple[float, float], word: str, *rest: object, **more: object) -> None:
        written[word] = place[0]
        text(draw, place, word, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    draw_preview(Volume(np.random.default_rng(0).random(labels.shape), grid), Segmentation(labels, grid))
    scale = 2 * min(previews.TALL / 80, previews.WIDE / 120)
    assert written["L3"] / scale == pytest.approx((12 + 30) / 2, abs=1)
