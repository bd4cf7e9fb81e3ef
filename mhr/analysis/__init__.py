"""What a run learnt, looked at: routing and its clusters, gradient alignment, transfer, learning curves, costs, comparisons."""
