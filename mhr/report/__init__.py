"""Reports on runs: tables, plots, one self-contained page."""
