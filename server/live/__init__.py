"""Live captions: growing audio → text that stays and a tail that may change. Knows no websocket.

`endpointing` finds who speaks when, `policy` decides what is certain, `session` joins the two over any decoder,
`decoder` is the engine as one, `sound` turns a client's bytes into samples, `connection` drives a session for a route.
"""
