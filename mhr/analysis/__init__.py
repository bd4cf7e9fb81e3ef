"""Analysis of what a run learnt: routing and its clusters, gradient alignment, transfer, learning curves, costs, comparisons."""
