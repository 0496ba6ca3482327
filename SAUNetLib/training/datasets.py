"""Labelled volumes as training stacks: a few consecutive slices of one patient, with simulated thick slices."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..anatomy import BACKGROUND, CANAL, DISC, VERTEBRA
from ..engine import resample
from ..errors import InputError
from ..volume import FARTHEST_MM, Geometry, Intensity, SagittalStack, Volume
from .augmentation import Augmentation
from .folders import (
    DRAWN,
    UNKNOWN,
    CaseFiles,
    DatasetInfo,
    EncodingName,
    check_one_encoding,
    find_cases,
    image_hash,
    never_drawn,
    read_info,
    read_labelled,
)

LABELS = torch.tensor([0, 1, 2, 3, UNKNOWN], dtype=torch.uint8)
FEWEST = 4
"""Fewest thick slices that a patient's slices are averaged into; a longer stack repeats them back and forth."""


@dataclass(frozen=True)
class Case:
    """A labelled volume at the working pixel size.

    Attributes:
        name: the patient's number or name in the data set.
        images: (S, h, w) float16, 0..1.
        labels: (S, h, w) uint8 classes.
        slice_spacing: mm.
        background: what a label of 0 means, see `folders.DatasetInfo.background`.
        drawn: the classes that were drawn.
        encoding: of the label map that was read.
        image: `folders.image_hash`.
    """

    name: str
    images: Tensor
    labels: Tensor
    slice_spacing: float
    background: int = BACKGROUND
    drawn: tuple[int, ...] = (VERTEBRA, DISC, CANAL)
    encoding: EncodingName | None = None
    image: str = ""


def thick_volume(volume: Volume, labels: np.ndarray, count: int) -> tuple[Volume, np.ndarray]:
    """A volume with its sagittal slices averaged in groups of ``count``, labels by majority; see `thick_slices`.

    Args:
        volume: as `check_volume` passed it.
        labels: (k, j, i) uint8 classes on its grid, `UNKNOWN` where not known.
        count: slices to average, at most as many as there are; 1 changes nothing.

    Returns:
        Volume and labels; if averaged, both are slices (S', H, W), float32 and uint8, S' = S // count.
    """
    if count == 1:
        return volume, labels
    stack = SagittalStack.of(volume)
    images = torch.from_numpy(stack.slices.astype(np.float32))
    images, thick = thick_slices(images, _label_slices(stack, labels), count)
    grid = stack.grid(volume.geometry)
    geometry = Geometry(
        (*grid.size[:2], len(images)),
        (*grid.spacing[:2], grid.spacing[2] * count),
        tuple(grid.points(np.array([0, 0, (count - 1) / 2])).tolist()),
        grid.direction,
    )
    return Volume(images.numpy(), geometry, volume.name), thick.numpy()


def _load(files: CaseFiles, info: DatasetInfo, pixel_mm: float) -> Case:
    """One case at the working pixel size; a pixel's label is that of most of its area."""
    read = read_labelled(files, info)
    volume, labels = read.volume, read.labels
    stack = SagittalStack.of(volume)
    shape = stack.working_shape(pixel_mm)
    image = torch.from_numpy(stack.intensity().unit(stack.slices))[:, None]
    return Case(
        files.name,
        resample(image, shape)[:, 0].half(),
        torch.stack([_resample_labels(part, shape) for part in _label_slices(stack, labels)]),
        stack.slice_spacing,
        info.background,
        info.classes,
        read.encoding,
        image_hash(volume),
    )


def _label_slices(stack: SagittalStack, labels: np.ndarray) -> Tensor:
    """A label map of the stack's volume as its slices (S, H, W), copied.

    `np.ascontiguousarray` would leave a single slice's negative stride as it is, which PyTorch refuses.
    """
    return torch.from_numpy(stack.slices_of(labels).copy())


def _resample_labels(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Labels (H, W) uint8 on another pixel grid: each pixel takes the label that covers most of it."""
    shares = resample(torch.stack([(labels == value).float() for value in LABELS])[None], shape)[0]
    return LABELS[shares.argmax(0)]


def load_cases(folder: Path, names: Sequence[str], pixel_mm: float) -> list[Case]:
    """Several cases of a folder, read in parallel.

    Raises:
        InputError: as `read_labelled` and `check_one_encoding`.
    """
    files, info = find_cases(folder), read_info(folder)
    with ThreadPoolExecutor(4) as pool:
        cases = list(pool.map(lambda name: _load(files[name], info, pixel_mm), names))
    check_one_encoding((case.encoding for case in cases), folder)
    return cases


def check_unseen(validation: Sequence[Case], sources: Sequence[Sequence[Case]]) -> None:
    """Reject a validation case whose image is also a training case under another name or in another folder.

    Raises:
        InputError: INPUT_SERIES.
    """
    trained = {case.image: case.name for cases in sources for case in cases}
    for case in validation:
        name = trained.get(case.image)
        if name is not None:
            raise InputError(
                "INPUT_SERIES",
                f"the image of {case.name}, a validation case, is also a training case, as {name}",
                "Remove one of them, or choose other validation cases",
            )


def check_drawn(cases: Sequence[Case], folder: Path, held_out: Sequence[Case] = ()) -> None:
    """Reject a folder in which a structure listed as drawn never occurs: it would be taught as background.

    Args:
        cases: of the folder, to train on.
        folder: their data folder.
        held_out: of the folder, to validate on.

    Raises:
        InputError: INPUT_LABELS.
    """

    def drawn_in(labelled: Sequence[Case]) -> set[str]:
        return {name for name, value in DRAWN.items() if any(bool((case.labels == value).any()) for case in labelled)}

    missing, remedy = never_drawn(read_info(folder), drawn_in(cases))
    if not missing:
        return
    if drawn_in(held_out) & set(missing):
        remedy = "Only validation cases have it: choose other validation cases in the configuration"
    raise InputError("INPUT_LABELS", f"no training case in {folder.name} has a {' or a '.join(missing)}", remedy)


def thick_slices(
    images: Tensor, labels: Tensor, count: int, gap: int = 0, profile: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Slices averaged in groups of ``count``, with ``gap`` slices left out between groups; labels by majority.

    The middle slice breaks ties: if background always won them, every structure would become narrower.

    Args:
        images, labels: thin slices.
        count, gap: see above.
        profile: weight of each slice of a group (count,); default: rectangular, all the same.

    Shape:
        (S, H, W) each -> (S', H, W) each; an incomplete last group is dropped.
    """
    if count == 1 and gap == 0:
        return images, labels
    weight = torch.ones(count) if profile is None else count * profile / profile.sum()
    groups = (images.shape[0] + gap) // (count + gap)
    parts = [slice(start, start + count) for start in range(0, groups * (count + gap), count + gap)]
    thick = torch.stack([torch.einsum("s,shw->hw", weight / count, images[part].float()) for part in parts])
    weight[count // 2] += 0.01  # less than any difference: it only breaks ties
    votes = (
        torch.stack([torch.einsum("s,shw->hw", weight, (labels[part] == value).float()) for value in LABELS])
        for part in parts
    )
    return thick.to(images.dtype), torch.stack([LABELS[vote.argmax(0)] for vote in votes])


def slice_profile(count: int, random: np.random.Generator) -> Tensor:
    """Weight of each of ``count`` thin slices in a thick one: rectangular, or a Gaussian of random width."""
    if random.random() < 0.5:
        return torch.ones(count)
    place = (torch.arange(count) + 0.5) / count - 0.5
    return torch.exp(-0.5 * (place / float(random.uniform(0.25, 0.6))) ** 2)


def can_thicken(slices: int, slice_spacing: float, count: int) -> bool:
    """Whether a stack has ``count`` slices to average, with a result no thicker than clinical slices."""
    return count == 1 or (slices >= count and slice_spacing * count <= FARTHEST_MM)


class StackDataset(Dataset[dict[str, Tensor]]):
    """Random stacks of consecutive slices, augmented, and normalised as in the engine.

    Item n of epoch e is drawn from the seed (seed, e, n) alone, so that a resumed run sees what an unbroken one does.

    Args:
        sources: cases of every data set, see `load_cases`.
        shares: how often each data set is drawn from.
        length: stacks in an epoch.
        slices: consecutive slices in a stack.
        crop: rows and columns of a stack.
        seed: of all randomness.
        contrasts: see `Augmentation`.

    A case of one slice has no neighbours to learn from: its stack is filled with such cases of the same data set, each
    augmented on its own, and marked as ``apart``.

    Items:
        ``image`` float32 (slices, 1, rows, columns), ``label`` uint8 (slices, rows, columns): classes, 255 where not
        known, other values from `folders.ANY_OF` on where a structure was not drawn; ``apart`` bool: whether the slices
        are unrelated.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Case]],
        shares: Sequence[float],
        length: int,
        slices: int,
        crop: tuple[int, int],
        seed: int,
        contrasts: float = 1.0,
    ) -> None:
        self.sources, self.shares = sources, np.asarray(shares, float) / np.sum(shares)
        self.single = [[case for case in cases if len(case.images) == 1] for cases in sources]
        self.length, self.slices, self.seed = length, slices, seed
        self.augmentation = Augmentation(crop, contrasts)
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self.seed, self.epoch, index))
        cases = self._draw(random)
        parts = [self._part(case, random) for case in cases]
        return {
            "image": torch.cat([image for image, _ in parts]),
            "label": torch.cat([label for _, label in parts]),
            "apart": torch.tensor(len(cases) > 1),
        }

    def _draw(self, random: np.random.Generator) -> list[Case]:
        """The case of a stack; if it is a single slice, as many such cases as a stack has slices."""
        number = int(random.choice(len(self.sources), p=self.shares))
        cases, single = self.sources[number], self.single[number]
        case = cases[int(random.integers(len(cases)))]
        if len(case.images) > 1:
            return [case]
        return [case, *(single[int(other)] for other in random.integers(len(single), size=self.slices - 1))]

    def _part(self, case: Case, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images (s, 1, rows, columns) and labels (s, rows, columns) of a case, s = 1 for a single slice."""
        images, labels = self.augmentation(*self._stack(case, random), random)
        if case.background != BACKGROUND:
            labels[labels == BACKGROUND] = case.background
        intensity = Intensity.of(images.numpy())
        return intensity.normalise(images)[:, None], labels

    def _stack(self, case: Case, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Consecutive slices of a patient, randomly averaged and skipped, in either order."""
        available = case.images.shape[0]
        if available == 1:
            return case.images.float(), case.labels
        # About half of the stacks keep the patient's thin slices, two thirds of these skip some; the others average up
        # to five, if the patient has enough slices.
        most = max(1, int(FARTHEST_MM / case.slice_spacing))
        count = 1 if random.random() < 0.4 else int(random.integers(1, min(5, most) + 1))
        gap = min(int(random.integers(0, 2 if count > 1 else 3)), max(0, most - count))
        while count > 1 and min(self.slices, FEWEST) * (count + gap) - gap > available:
            count, gap = count - 1, 0
        while gap and self.slices * (count + gap) - gap > available:
            gap -= 1
        needed = min(available, self.slices * (count + gap) - gap)
        start = int(random.integers(available - needed + 1))
        part = slice(start, start + needed)
        profile = slice_profile(count, random)
        images, labels = thick_slices(case.images[part], case.labels[part], count, gap, profile)
        if random.random() < 0.5:
            images, labels = images.flip(0), labels.flip(0)
        # Too few slices are repeated back and forth, so that neighbours in the stack are neighbours in the patient.
        there_and_back = torch.arange(self.slices) % max(1, 2 * len(images) - 2)
        order = torch.minimum(there_and_back, 2 * (len(images) - 1) - there_and_back)
        return images[order].float(), labels[order]
