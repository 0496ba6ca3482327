"""Bodies and discs in order along the canal: which are neighbours, and which way each body faces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..masks import cut_by_slices
from .centreline import Centreline
from .space import BACK, AnatomicalFrame, LabelSpace

_NEIGHBOUR_MM, _APART_MM = 34.0, 8.0
"""A disc's neighbours have their centre within this distance, mm, of its own, and a gap to it below this one."""
_NARROW_MM = 20.0
"""A body seen over less than this width, mm, is only partly covered by the slices."""
_FINE = np.array([0.0, 1.5, 1.5])
"""mm (slices, rows, columns) between the points that show how much of a body lies in each slice; 0: every slice."""
_SMOOTH = 0.8
"""Sigma, in bodies, of the Gaussian that smooths turns along the spine."""
_KNOWN = 0.05
"""A body's turn is known where the weights of itself and its neighbours sum to more than this."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Bodies and discs along the canal, by their label values, as points (N, 3) in mm.

    Attributes:
        line: the canal's centreline.
        bodies: the part of each vertebra in front of the canal, from the top down.
        discs: the discs.
    """

    line: Centreline
    bodies: Mapping[int, np.ndarray]
    discs: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, line: Centreline, bodies: Mapping[int, np.ndarray], discs: Mapping[int, np.ndarray]) -> Neighbours:
        """From bodies in any order."""
        order = sorted(bodies, key=lambda value: _place(line, bodies[value].mean(axis=0)))
        return cls(line, {value: bodies[value] for value in order}, discs)

    @cached_property
    def centres(self) -> dict[int, np.ndarray]:
        """By value, the mean (3,) of a body's or disc's points."""
        return {value: cloud.mean(axis=0) for value, cloud in (*self.bodies.items(), *self.discs.items())}

    @cached_property
    def _places(self) -> dict[int, float]:
        """By value, the station along the canal."""
        return {value: _place(self.line, centre) for value, centre in self.centres.items()}

    @property
    def order(self) -> tuple[int, ...]:
        """Values of bodies and discs from the top down, by place along the canal and not by name."""
        return tuple(sorted(self._places, key=self._places.__getitem__))

    @cached_property
    def above(self) -> dict[int, int]:
        """By disc, the nearest body above, by place along the canal and not by name.

        A body beyond the next disc, or not close to this one, is no neighbour: the body in between is not segmented.
        """
        return self._nearest(-1)

    @cached_property
    def below(self) -> dict[int, int]:
        """By disc, the nearest body below; otherwise as `above`."""
        return self._nearest(1)

    def _nearest(self, way: int) -> dict[int, int]:
        """By disc, the nearest body upwards (`way` -1) or downwards (1)."""
        place = {value: way * station for value, station in self._places.items()}
        result = {}
        for disc in self.discs:
            next_disc = min((place[other] for other in self.discs if place[other] > place[disc]), default=np.inf)
            between = [value for value in self._near[disc] if place[disc] < place[value] < next_disc]
            if between:
                result[disc] = min(between, key=place.__getitem__)
        return result

    @cached_property
    def _near(self) -> dict[int, list[int]]:
        """By disc, the bodies close to it."""
        return {
            disc: [
                value
                for value, body in self.bodies.items()
                if self._is_near(disc, value) and _gap(cloud, body) < _APART_MM
            ]
            for disc, cloud in self.discs.items()
        }

    def beside(self, disc: int) -> tuple[int, int]:
        """The bodies next to a disc, above and below, however wide the gap to it; 0 for none."""
        order = (0, *self.order, 0)
        place = order.index(disc)
        above, below = (value if self._is_near(disc, value) else 0 for value in (order[place - 1], order[place + 1]))
        return above, below

    def _is_near(self, disc: int, value: int) -> bool:
        """Whether the value is that of a body whose centre is near enough to the disc's to be a neighbour."""
        return value in self.bodies and bool(np.linalg.norm(self.centres[value] - self.centres[disc]) < _NEIGHBOUR_MM)

    def up(self, body: int) -> np.ndarray:
        """A body's upward direction (3,), from the disc below to the one above; the canal's where there are none."""
        over = [self.centres[disc] for disc, value in self.below.items() if value == body]
        under = [self.centres[disc] for disc, value in self.above.items() if value == body]
        centre, down = self.centres[body], self.line.tangent(self._places[body])
        if over and under:
            vector = over[0] - under[0]
        elif over or under:
            vector = over[0] - centre if over else centre - under[0]
            vector = vector / np.linalg.norm(vector) - down
        else:
            vector = -down
        return np.asarray(vector / np.linalg.norm(vector))

    def turns(self, space: LabelSpace) -> dict[int, float]:
        """By body, radians by which its back is turned to the left of the columns' direction; empty if none is known.

        A body's back faces the canal's middle; turns are smoothed along the spine. A body only partly covered by the
        slices has no known middle: it takes the turn of the nearest bodies that have one.
        """
        own = [self._turn(body, space) for body in self.bodies]
        angles = np.array([angle or 0.0 for angle in own])
        apart = np.arange(len(own))[:, None] - np.arange(len(own))[None]
        kernel = np.exp(-0.5 * (apart / _SMOOTH) ** 2) * np.array([angle is not None for angle in own], float)
        total = kernel.sum(axis=1)
        known = np.flatnonzero(total > _KNOWN)
        if not len(known):
            return {}
        smoothed = np.interp(np.arange(len(own)), known, (kernel @ angles)[known] / total[known])
        return dict(zip(self.bodies, smoothed.tolist(), strict=True))

    def _turn(self, body: int, space: LabelSpace) -> float | None:
        """The turn of a body by itself, or None where it is unknown."""
        cloud = space.points(body, _FINE)
        number = np.round(cloud[self.line.in_front(cloud), 0] / space.spacing[0]).astype(int)
        shown = np.bincount(number, minlength=len(space.labels))
        if cut_by_slices(shown) or np.ptp(number) * space.spacing[0] < _NARROW_MM:
            return None
        frame = AnatomicalFrame.facing(self.centres[body], self.up(body), BACK)
        station = self.line.crossing(frame.origin, frame.axes[2])
        if station is None or not self.line.seen(station):
            return None
        toward = frame.local(self.line.at(station))
        return float(np.arctan2(toward[0], toward[1]))


def _place(line: Centreline, point: np.ndarray) -> float:
    """Station of a point (3,) along a line."""
    return float(line.station(point[None])[0])


def _gap(cloud: np.ndarray, other_cloud: np.ndarray) -> float:
    """mm between two sets of points (N, 3) along the line between their centres, without the outermost 2 % of each."""
    line = other_cloud.mean(axis=0) - cloud.mean(axis=0)
    line = line / max(float(np.linalg.norm(line)), 1e-6)
    return float(np.percentile(other_cloud @ line, 2) - np.percentile(cloud @ line, 98))
