"""`canary service`: `canary serve` as a service of the user's, started at log-in and again after a failure."""
