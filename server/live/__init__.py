"""Live captions: growing audio → text that stays and a tail that may change. Knows no websocket.

`endpointing` finds who speaks when, `policy` decides what is certain, `session` joins the two over any decoder,
`decoder` is the engine as one, `sound` and `container` turn a client's bytes into samples, `connection` drives a
session for a route, `outbox` is what waits to be sent.
"""
