"""What routes ask for: the engines, the settings, the caller's upload."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, cast

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from server.engine.registry import Engines
from server.errors import RequestError
from server.settings import Settings

_IN_MEMORY = 1 << 20
# Of a form's names and values. Others are not even looked up: not all of Python's decode what a client may send.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")


@dataclass
class Upload:
    """A body: the file, and the fields beside it (none when the body is the file itself)."""

    file: BinaryIO
    fields: list[tuple[str, str]]


def get_engines(request: Request) -> Engines:
    return request.app.state.engines


def get_settings(request: Request) -> Settings:
    return request.app.state.settings


async def get_upload(request: Request) -> AsyncIterator[Upload]:
    """The upload in a multipart form's `file`, or the whole body (`curl --data-binary @talk.wav`).

    `curl --data-binary` calls its body a urlencoded form, so anything but multipart is taken for the file.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
        if charset.lower() not in _CHARSETS:
            raise RequestError(f"charset {charset[:40]!r} is not possible; possible: {', '.join(_CHARSETS)}")
        async with request.form(max_files=1, max_fields=100) as form:
            fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("The form has no file; send one as: -F file=@talk.wav", "file")
            yield Upload(cast(BinaryIO, file.file), fields)
    else:
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            async for chunk in request.stream():
                body.write(chunk)
            if body.tell() == 0:
                raise RequestError("The body is empty; send a file as: --data-binary @talk.wav", "file")
            yield Upload(cast(BinaryIO, body), [])


EnginesDep = Annotated[Engines, Depends(get_engines)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
UploadDep = Annotated[Upload, Depends(get_upload)]
