"""`canary evaluate`: how well a model transcribes recordings whose text is known."""
