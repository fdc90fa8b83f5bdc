"""What a client sends, read within limits: files into memory, fields as text, nothing to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from drifa_jax.data.decode import IMAGE_SUFFIXES
from drifa_jax.serve.memory_files import MemoryFile
from drifa_jax.serve.options import Limits, Refused, size_in_words

SUFFIXES = (
    *(".nii.gz", ".nii", ".npy", ".dcm.gz", ".dcm", ".dicom", ".ima"),
    *IMAGE_SUFFIXES,
)
"""All that is kept of a file's name."""
LONGEST_SHORT_FORM = 4096


@dataclass
class Upload:
    """One file.

    Attributes:
      file: its bytes.
      suffix: of its name, one of `SUFFIXES` or "".
    """

    file: MemoryFile
    suffix: str


@dataclass
class Form:
    """One request.

    Attributes:
      files: field -> files; fields that a browser's user left alone are left out.
      fields: field -> text.
      json: the whole body, where it is JSON.
      study: DICOM files, where the body is multipart/related as an archive sends it.
    """

    files: dict[str, list[Upload]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    json: MemoryFile | None = None
    study: list[Upload] = field(default_factory=list)

    def close(self) -> None:
        """Gives the memory back."""
        for several in (*self.files.values(), self.study):
            for upload in several:
                upload.file.close()
        if self.json is not None:
            self.json.close()


async def read_request(
    chunks: AsyncIterator[bytes], content_type: str, length: int | None, limits: Limits
) -> Form:
    """The body of a request, multipart/form-data or JSON.

    Args:
      chunks: of the body.
      content_type: as the client gives it.
      length: as the client gives it; None where it does not.
      limits: see there.

    Raises:
      Refused: 413, 415, 408 or 400, with the reason.
    """
    kind, parameters = parse_options_header(content_type)
    if kind == b"application/json":
        receiver, most = _Json(), min(limits.json_bytes, limits.upload_bytes)
    elif kind == b"multipart/form-data" and parameters.get(b"boundary"):
        receiver, most = _Multipart(parameters[b"boundary"], limits), limits.upload_bytes
    elif kind == b"multipart/related" and parameters.get(b"boundary"):
        receiver, most = _Study(parameters[b"boundary"], limits), limits.upload_bytes
    else:
        raise Refused(
            415,
            "Send a form or JSON, or a study as multipart/related; see /openapi.json.",
            "media_type",
        )
    too_large = Refused(
        413,
        f"The request is larger than {size_in_words(most)}, the limit of this server "
        "(--max-upload; JSON has a limit of its own).",
        "too_large",
    )
    if length is not None and length > most:
        raise too_large
    total = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                total += len(chunk)
                if total > most:
                    raise too_large
                receiver.write(chunk)
        return receiver.finish()
    except TimeoutError:
        receiver.form.close()
        raise Refused(
            408, f"The request did not arrive within {limits.body_seconds:g} s.", "slow"
        ) from None
    except FormParserError as error:
        receiver.form.close()
        raise Refused(400, "The form cannot be read: it is damaged.", "bad_form") from error
    except BaseException:
        receiver.form.close()
        raise


async def short_form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form, such as one that signs in.

    Raises:
      Refused: 413 where it is not small.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_SHORT_FORM:
            raise Refused(413, "The form is too large.", "too_large")
    return dict(parse_qsl(body.decode("utf-8", "replace")))


class _Json:
    def __init__(self):
        self.form = Form(json=MemoryFile())
        self.write = self.form.json.write

    def finish(self) -> Form:
        return self.form


class _Multipart:
    """Parts as they come; a part is a file where its header says so, else a field."""

    def __init__(self, boundary: bytes, limits: Limits):
        self.form, self._limits = Form(), limits
        self._count = {"files": 0, "fields": 0}
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._upload: Upload | None = None
        self._is_named = False
        self._name, self._text = "", bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def finish(self) -> Form:
        self._parser.finalize()
        if not self._ended:
            raise Refused(400, "The form is cut short.", "bad_form")
        return self.form

    def _begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not self._name or len(self._name) > 200:
            raise Refused(400, "A part of the form has no name, or one without end.", "bad_form")
        is_file = b"filename" in parameters
        self._add("files" if is_file else "fields")
        self._upload, self._text = None, bytearray()
        if is_file:
            name = parameters[b"filename"].decode("utf-8", "replace").lower()
            self._is_named = bool(name)
            suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
            self._upload = Upload(MemoryFile(), suffix)
            self.form.files.setdefault(self._name, []).append(self._upload)
        elif self._name in self.form.fields:
            raise Refused(400, "The form gives one of its fields twice; give it once.", "twice")

    def _add(self, what: str) -> None:
        self._count[what] += 1
        most = getattr(self._limits, what)
        if self._count[what] > most:
            raise Refused(
                413, f"The form holds more than the {most} {what} allowed.", f"too_many_{what}"
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._upload is not None:
            self._upload.file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > self._limits.field_bytes:
            raise Refused(
                413,
                f"A field of the form is longer than {self._limits.field_bytes} bytes; files need "
                "a file name in their part.",
                "too_large",
            )

    def _end(self) -> None:
        if self._upload is None:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")
        elif not self._upload.file.size and not self._is_named:
            # So browsers send a field that was left alone.
            several = self.form.files[self._name]
            several.remove(self._upload)
            self._upload.file.close()
            if not several:
                del self.form.files[self._name]

    def _whole(self) -> None:
        self._ended = True


class _Study(_Multipart):
    """Parts of which each is one DICOM file, without a name."""

    def _headers_finished(self) -> None:
        kind, _ = parse_options_header(self._headers.get(b"content-type", b"application/dicom"))
        if kind != b"application/dicom":
            raise Refused(415, "Every part of a study is application/dicom.", "media_type")
        self._add("files")
        self._upload = Upload(MemoryFile(), ".dcm")
        self.form.study.append(self._upload)

    def _end(self) -> None:
        self._upload = None
