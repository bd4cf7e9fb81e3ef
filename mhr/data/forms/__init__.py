"""Forms of rows: which columns hold the question and the answer, one form of the field a registered function."""

from __future__ import annotations

from mhr.data.forms import glue, instructions, messages, references  # each registers its forms
from mhr.data.forms.form import RowFault, Source, form_of, forms
