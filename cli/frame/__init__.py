"""What the commands stand on: options, settings as flags, help, output and exit codes."""
