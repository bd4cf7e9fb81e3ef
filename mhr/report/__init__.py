"""Looking at what was trained, and at the machine that trains: tables, plots, diagnosis."""
