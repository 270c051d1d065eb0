"""`canary doctor`: whether this machine can run canary-server, and whether its device computes as it should."""
