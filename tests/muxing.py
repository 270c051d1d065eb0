"""One frame of sound as a file in any container, by PyAV."""

import io

import av


def muxed(
    frame: av.AudioFrame, name: str, codec: str, rate: int, layout: str, seekable: bool, options: dict[str, str]
) -> bytes:
    """The file. seekable: else it is written as a recorder does, as it comes: no length, no way back."""
    file = io.BytesIO()
    with av.open(file if seekable else _Unseekable(file), "w", format=name, container_options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


class _Unseekable:
    def __init__(self, file: io.BytesIO):
        self.write = file.write
