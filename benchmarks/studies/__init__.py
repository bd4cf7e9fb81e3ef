"""Studies of claims: what is trained, adapted and scored on tasks, each one a resumable command that writes its page."""
