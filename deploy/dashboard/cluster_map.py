"""Where each cluster lies on the map: centroids in two dimensions. Pure functions of arrays."""

import math

import numpy as np
import numpy.typing as npt

_APART_UP_TO = 400
"""Clusters that are pushed apart; more of them would take too long, and lie close anyway."""
_ROUNDS = 60

Points = npt.NDArray[np.float64]


def projected(centroids: npt.NDArray[np.float32]) -> Points:
    """The two principal axes of the centroids, [K, 2] in [-1, 1].

    centroids: [K, d]. Signs are fixed by the largest entry of each axis, so that the same codebook gives the same map.
    """
    count = len(centroids)
    points = np.zeros((count, 2))
    if count < 2:
        return points
    centred = (centroids - centroids.mean(axis=0)).astype(np.float64)
    # Of [d, d] or [K, K], whichever is smaller; both have the same axes.
    if count < centred.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        found = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    else:
        _, axes = np.linalg.eigh(centred.T @ centred)
        found = centred @ axes[:, ::-1][:, :2]
    largest = np.abs(found).argmax(axis=0)
    signs = np.sign(found[largest, np.arange(found.shape[1])])
    points[:, : found.shape[1]] = found * np.where(signs == 0, 1.0, signs)
    return _scaled(points)


def spiral(count: int) -> Points:
    """Places for clusters that have no centroids, as a sunflower has its seeds: [K, 2] in [-1, 1]."""
    index = np.arange(count)
    radius = np.sqrt((index + 0.5) / max(count, 1))
    angle = index * math.pi * (3.0 - math.sqrt(5.0))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def pushed_apart(points: Points) -> Points:
    """The same map with a little room around every point, so that each can be seen and hit. [K, 2] in [-1, 1]."""
    count = len(points)
    if not 2 <= count <= _APART_UP_TO:
        return points
    room = 1.25 / math.sqrt(count)
    points = points.copy()
    for _ in range(_ROUNDS):
        gaps = points[:, None, :] - points[None, :, :]
        distance = np.sqrt((gaps**2).sum(axis=2))
        np.fill_diagonal(distance, np.inf)
        # Points on one spot go apart in directions of their own.
        angles = np.arange(count) * 2.399963
        same = distance < 1e-9
        directions = np.where(
            same[:, :, None],
            np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None, :],
            gaps / np.where(distance < 1e-9, 1.0, distance)[:, :, None],
        )
        push = np.clip(room - distance, 0.0, None) * 0.25
        moves = (directions * push[:, :, None]).sum(axis=1)
        if np.abs(moves).max() < 1e-4:
            break
        points += moves
    return _scaled(points)


def _scaled(points: Points) -> Points:
    low, high = points.min(axis=0), points.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    return (points - (low + high) / 2.0) / spread * 2.0
