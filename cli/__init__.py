"""The command line `mhr`: it reads flags, calls the library and prints. One subcommand a file, registered in main.py.

torch and transformers are imported inside the commands, so that `mhr --help` answers at once.
"""
