"""Live captions: growing audio → stable text and a tail that may still change. Knows no websocket.

`endpointing` finds where speech starts and stops, `policy` decides which text is stable, `session` combines the two
over any decoder, `decoder` makes the engine such a decoder, `sound` and `container` turn a client's bytes into samples,
and `connection` opens a session and drives it for a route.
"""
