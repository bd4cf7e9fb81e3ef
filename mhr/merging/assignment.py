"""The assignment problem: optimal transport between two sets of equally heavy points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def assign(gains: npt.NDArray[np.float64]) -> list[int]:
    """The permutation p that maximises `sum_i gains[i, p[i]]`, exactly; gains [n, n].

    With equal weights on both sides an optimal transport plan is a permutation, so nothing finer exists. Shortest augmenting
    paths with potentials (Hungarian method), n^3 steps of which numpy does n at a time.
    """
    n = len(gains)
    costs = -np.asarray(gains, dtype=np.float64)
    rows, columns = np.zeros(n + 1), np.zeros(n + 1)  # potentials; number n stands for "none yet"
    owner = np.full(n + 1, n)  # column -> row
    for row in range(n):
        owner[n], column = row, n
        best, before = np.full(n + 1, np.inf), np.full(n + 1, n)
        done = np.zeros(n + 1, dtype=bool)
        while owner[column] != n:
            done[column] = True
            current = owner[column]
            open_ = ~done[:n]
            reduced = costs[current] - rows[current] - columns[:n]
            nearer = open_ & (reduced < best[:n])
            best[:n][nearer], before[:n][nearer] = reduced[nearer], column
            following = int(np.where(open_, best[:n], np.inf).argmin())
            step = best[following]
            rows[owner[done]] += step
            columns[done] -= step
            best[~done] -= step
            column = following
        while column != n:
            owner[column] = owner[before[column]]
            column = before[column]
    permutation = [0] * n
    for column, row in enumerate(owner[:n]):
        permutation[row] = column
    return permutation
