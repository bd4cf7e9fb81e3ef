"""Files of rows: one format a file of this package, and what a collection of such files is."""

from __future__ import annotations

from mhr.data.files import delimited, json_text, parquet  # each registers its formats
from mhr.data.files.rows_in_files import read_files
