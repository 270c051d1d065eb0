"""The work of each command, and what the commands share."""
