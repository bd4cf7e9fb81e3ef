"""Benchmarks behind `mhr benchmark`: each module times ours against its peers, with the public interface only."""
