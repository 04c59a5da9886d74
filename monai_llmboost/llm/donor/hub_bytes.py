# SPDX-License-Identifier: Apache-2.0
"""A file on the hub, read by HTTP range requests: only the bytes requested, resumed after a broken connection.

The public readers of huggingface_hub 2.4 do not replace this. ``HfFileSystem`` needs the listing service, which
mirrors lack, holds the whole response in memory before it is copied, and repeats a broken request from the start.
``http_get`` with a ``Range`` header takes a response with other bytes or another ETag for the right one, reads the
whole file from a server that ignores ranges, and does not retry status 503. ``get_safetensors_metadata`` reads
headers only, 100 kB at a time.
"""

from __future__ import annotations

import re
import time
from typing import Any

from monai_llmboost.llm.donor.tensor_files import Progress, damaged_error, ignore_progress

TRIES = 5  # retries of a failed request; counted from zero again after any byte received
WAIT_SECONDS = 1.0  # before the first retry, doubled before each next one
LONGEST_WAIT_SECONDS = 8.0
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HubBytes:
    """A file on the hub, read by range requests; all responses must have one commit, size and ETag.

    Args:
        repo_id: the model, as ``owner/name``.
        name: the file.
        commit: the model's commit, 40 hexadecimal digits.

    Raises:
        ConnectionError: the connection broke too often, the server ignores ranges, or the file changed. Other HTTP
            errors are raised as huggingface_hub raises them.
        ValueError: the file ends before the requested bytes.
    """

    def __init__(self, repo_id: str, name: str, commit: str) -> None:
        from huggingface_hub import hf_hub_url

        self.name, self.size = name, 0
        self._repo, self._commit, self._etag = repo_id, commit, ""
        self._url = hf_hub_url(repo_id, name, revision=commit)
        self._first = bytearray(8)  # SafetensorsFile reads these first; the response also has the file size
        self._fetch(0, memoryview(self._first), ignore_progress)

    def read_into(self, offset: int, buffer: memoryview, progress: Progress = ignore_progress) -> None:
        """Fill ``buffer`` with the bytes from ``offset``; raises as the constructor does."""
        if offset == 0 and len(buffer) == len(self._first):
            buffer[:] = self._first
        elif len(buffer) > 0:
            self._fetch(offset, buffer, progress)

    def _fetch(self, offset: int, buffer: memoryview, progress: Progress) -> None:
        """Request a range, and after a broken connection the rest of it."""
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff

        # A compressed response would have other bytes at these positions.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        done = failures = 0
        end = offset + len(buffer) - 1
        while True:
            reason = "it ended early"
            try:
                with http_stream_backoff(
                    "GET",
                    self._url,
                    headers={**headers, "Range": f"bytes={offset + done}-{end}"},
                    follow_redirects=True,  # the client drops the token when redirected to another host
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                    max_retries=TRIES,
                    base_wait_time=WAIT_SECONDS,
                    max_wait_time=LONGEST_WAIT_SECONDS,
                    retry_on_exceptions=(),  # it cannot resume a body that has begun
                    retry_on_status_codes=RETRIED_STATUS,
                ) as response:
                    self._check(response, offset + done, end)
                    for chunk in response.iter_raw():
                        if len(chunk) > len(buffer) - done:
                            raise self._no_range_error(response, offset + done, end)
                        buffer[done : done + len(chunk)] = chunk
                        done += len(chunk)
                        failures = 0
                        progress(len(chunk))
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError as error:
                reason = describe_error(error)
            if done == len(buffer):
                return
            failures += 1
            if failures > TRIES:
                raise ConnectionError(
                    f"the connection to the hub for {self.name} of {self._repo} broke {failures} times at byte "
                    f"{offset + done} ({reason}): check the network, then try again"
                )
            time.sleep(min(WAIT_SECONDS * 2 ** (failures - 1), LONGEST_WAIT_SECONDS))

    def _check(self, response: Any, begin: int, end: int) -> None:
        """Check that a response has bytes ``begin`` to ``end`` of the same file as the first response."""
        from huggingface_hub.utils import hf_raise_for_status

        if response.status_code == 416:
            raise damaged_error(self.name, f"it is truncated before byte {end}")
        hf_raise_for_status(response)
        found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if response.status_code != 206 or found is None or not is_plain:
            raise self._no_range_error(response, begin, end)
        first, last, size = map(int, found.groups())
        # After a redirect, the hub's own response has the commit and ETag; the storage behind it may have others.
        responses = [*response.history, response]
        commits = {answer.headers.get("X-Repo-Commit", self._commit) for answer in responses}
        linked = [answer.headers["X-Linked-ETag"] for answer in responses if "X-Linked-ETag" in answer.headers]
        etag = (linked or [response.headers.get("ETag", "")])[0].removeprefix("W/").strip('"')
        self.size, self._etag = self.size or size, self._etag or etag
        if commits != {self._commit} or (size, etag) != (self.size, self._etag):
            raise ConnectionError(f"{self.name} of {self._repo} changed while it was read: try again")
        if size <= end:
            raise damaged_error(self.name, f"it is truncated, with {size} bytes in all")
        if (first, last) != (begin, end):
            raise self._no_range_error(response, begin, end)

    def _no_range_error(self, response: Any, begin: int, end: int) -> ConnectionError:
        return ConnectionError(
            f"{response.url.host} did not send bytes {begin} to {end} of {self.name} as requested (status "
            f"{response.status_code}): run `hf download {self._repo} {self.name}`, then try again"
        )


def describe_error(error: BaseException | None) -> str:
    """Return an error on one line: of a response the status and the server's message, without the signed URL."""
    response = getattr(error, "response", None)
    if response is not None:
        text = f"status {response.status_code} {getattr(error, 'server_message', None) or ''}"
    else:
        text = "no network?" if error is None else str(error) or type(error).__name__
    return " ".join(text.split())[:200]
