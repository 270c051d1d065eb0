"""Live captions: growing audio → stable text and a tail that may still change. Knows no websocket.

`sound` and `container` turn a client's bytes into samples, `endpointing` finds where speech starts and stops, and
`session` turns segments of speech into events. `windows` and `following` write a segment's text, each for one kind of
model, with the engine as decoder; `policy` decides which text is stable. `connection` opens a session and drives it for
a route, as often as `capacity` says.
"""
