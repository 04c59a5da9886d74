# SPDX-License-Identifier: Apache-2.0
"""Files of a model on the Hugging Face hub, with the methods of :class:`LocalFolder`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_llmboost.llm.donor.folder import (
    RANGED,
    LocalFolder,
    check_file_name,
    find_licence,
    list_tensors,
    read_json,
    read_tensors,
)
from monai_llmboost.llm.donor.gguf.file import GgufFile
from monai_llmboost.llm.donor.hub_bytes import HubBytes, describe_error
from monai_llmboost.llm.donor.tensor_files import LocalBytes, SafetensorsFile

__all__ = ["HubRepository", "LocalFolder", "NotCached"]
WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf")
BAR_BYTES = 5_000_000  # smaller downloads show no progress bar
COMMIT = re.compile(r"[0-9a-f]{40}")


class NotCached(ConnectionError):
    """The hub cannot be reached, and the local cache does not contain the file."""


class HubRepository:
    """Files of a model on the hub, all of one commit; from ``.safetensors`` and ``.gguf`` only the tensors requested.

    All other files are downloaded whole into the hub's local cache, and files that are in the cache are read from it.
    If the hub cannot be reached, only the cache is used.

    Args:
        repo_id: the model, as ``owner/name``.
        revision: branch, tag or commit; the main branch if ``None``.

    Raises:
        ConnectionError: the hub cannot be reached, or denies access to the model; all methods raise it too.
    """

    def __init__(self, repo_id: str, revision: str | None = None) -> None:
        from huggingface_hub import errors, hf_hub_download

        self.donor = repo_id
        self._asked = revision
        self._unreachable = ""  # the reason, once the hub did not answer; from then on only the cache is used
        self._opened: dict[str, SafetensorsFile | GgufFile] = {}
        self._names: list[str] | None = None
        with self._translate_errors("config.json"):
            try:
                self.revision = Path(hf_hub_download(repo_id, "config.json", revision=revision)).parent.name
            except errors.RemoteEntryNotFoundError as error:  # then `read_json` returns None
                self.revision = error.response.headers.get("X-Repo-Commit", "")
            except errors.LocalEntryNotFoundError:
                self.revision = self._find_cached_commit(revision)
                if not self.revision:
                    raise
        if not COMMIT.fullmatch(self.revision):
            raise ConnectionError(f"the hub returned an invalid commit of {repo_id}, {self.revision!r}: try again")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, ``None`` if the file is missing; raise ValueError for other content."""
        path = self._find(name)
        return None if path is None else read_json(path)

    def find_licence(self) -> str:
        """Return the licence (such as ``apache-2.0``) from the model card or a licence file; empty if unknown."""
        try:
            return find_licence(self.list_files, self._download)
        except NotCached:
            return ""

    def list_files(self) -> list[str] | None:
        """Return the names of all files at the top level; ``None`` if the hub does not list them."""
        if self._names is None:
            listed = self._list_in_cache() if self._is_offline() else self._list_on_hub()
            # A cache without weights does not show which weights the hub has.
            self._names = listed if not self._is_offline() or any(name.endswith(WEIGHTS) for name in listed) else []
        return self._names or None

    def check_name(self, name: str) -> None:
        """Raise ValueError if a file name could point outside the repository."""
        check_file_name(name, self.donor)

    def path_of(self, name: str) -> str:
        """Return the ``model`` argument that selects one of its files."""
        return f"{self.donor}/{name}"

    def open_gguf(self, name: str) -> GgufFile:
        """Open a GGUF file and read its header; raises as :meth:`read_tensors` does."""
        weights = self._weights(name)
        if isinstance(weights, GgufFile):
            return weights
        return GgufFile(LocalBytes(weights) if isinstance(weights, Path) else weights.source)

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        if self._look_in_cache(name) is not None or self._is_offline():
            return self._find(name) is not None
        with self._translate_errors(name):
            try:
                if Path(name).suffix in RANGED:
                    self._open(name)
                else:
                    get_hf_file_metadata(hf_hub_url(self.donor, name, revision=self.revision))
            except errors.RemoteEntryNotFoundError:
                return False
        return True

    def list_tensors(self, name: str) -> list[str]:
        """Return the names of all tensors in a weight file; raises as :meth:`read_tensors` does."""
        weights = self._weights(name)
        return list_tensors(weights) if isinstance(weights, Path) else weights.names()

    def read_tensors(self, name: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors of a weight file; ``.safetensors`` and ``.gguf`` are downloaded in part.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged or lacks a tensor.
        """
        from huggingface_hub.utils import tqdm

        weights = self._weights(name)
        if isinstance(weights, Path):
            return read_tensors(weights, names)
        names = list(names)
        total = weights.num_bytes(names)
        hidden = True if total < BAR_BYTES else None  # None: show it in a terminal only
        with (
            self._translate_errors(name),
            tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=hidden) as bar,
        ):
            return weights.read(names, bar.update)

    def _weights(self, name: str) -> Path | SafetensorsFile | GgufFile:
        """Return a weight file: the path of a local copy, or the file opened on the hub."""
        from huggingface_hub import errors

        cached = self._look_in_cache(name)
        if isinstance(cached, str):
            return Path(cached)
        if Path(name).suffix not in RANGED:
            path = self._download(name)
            if path is not None:
                return path
        elif self._is_offline():
            raise self._not_cached_error(name)
        else:
            with self._translate_errors(name):
                try:
                    return self._open(name)
                except errors.RemoteEntryNotFoundError:
                    pass
        raise FileNotFoundError(f"{self.donor} lacks the weight file {name}: choose another donor")

    def _open(self, name: str) -> SafetensorsFile | GgufFile:
        if name not in self._opened:
            self._opened[name] = RANGED[Path(name).suffix](HubBytes(self.donor, name, self.revision))
        return self._opened[name]

    def _list_on_hub(self) -> list[str]:
        from huggingface_hub import HfApi, errors

        try:
            siblings = HfApi().model_info(self.donor, revision=self.revision).siblings or []
        except (errors.HTTPError, OSError):  # a mirror without this service, or no hub: the next request reports it
            return []
        return sorted(one.rfilename for one in siblings if "/" not in one.rfilename)

    def _list_in_cache(self) -> list[str]:
        folder = self._cache_folder() / "snapshots" / self.revision
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def _find_cached_commit(self, revision: str | None) -> str:
        """Return the cached commit of a revision, even without its ``config.json``; empty if there is none."""
        asked = revision or "main"
        if COMMIT.fullmatch(asked):
            return asked if (self._cache_folder() / "snapshots" / asked).is_dir() else ""
        reference = self._cache_folder() / "refs" / asked
        return reference.read_text().strip() if reference.is_file() else ""

    def _cache_folder(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.donor.replace('/', '--')}"

    def _find(self, name: str) -> Path | None:
        """Return a small file; ``None`` if the model (or, offline, a cache with its weights) lacks it."""
        try:
            return self._download(name)
        except NotCached:
            if any(name.endswith(WEIGHTS) for name in self._list_in_cache()):
                return None
            raise

    def _download(self, name: str) -> Path | None:
        """Return the path of a whole file, from the cache or else the hub; ``None`` if the model has none."""
        from huggingface_hub import errors, hf_hub_download

        cached = self._look_in_cache(name)
        if cached is not None:
            return Path(cached) if isinstance(cached, str) else None
        with self._translate_errors(name):
            try:
                only_cache = bool(self._unreachable)
                return Path(hf_hub_download(self.donor, name, revision=self.revision, local_files_only=only_cache))
            except errors.RemoteEntryNotFoundError:
                return None

    def _look_in_cache(self, name: str) -> object:
        """Return the path (str) of a cached file, ``None`` if not cached, else a marker that the model lacks it."""
        from huggingface_hub import try_to_load_from_cache

        return try_to_load_from_cache(self.donor, check_file_name(name, self.donor), revision=self.revision)

    def _is_offline(self) -> bool:
        from huggingface_hub import constants

        return constants.HF_HUB_OFFLINE or bool(self._unreachable)

    def _not_cached_error(self, name: str) -> NotCached:
        from huggingface_hub import constants

        reason, advice = f"the hub cannot be reached ({self._unreachable})", "check the network, then try again"
        if constants.HF_HUB_OFFLINE:
            reason, advice = "HF_HUB_OFFLINE is set", "unset it, or download the file on a machine with a network"
        return NotCached(
            f"cannot get {name} of {self.donor}: {reason} and the file is not in the local cache: {advice}"
        )

    @contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        """Translate what prevents the download of ``name`` into a ConnectionError of one sentence."""
        from huggingface_hub import errors

        repo = self.donor
        try:
            yield
        except errors.GatedRepoError as error:
            raise ConnectionError(
                f"{repo} is gated: accept its licence on its hub page, then run `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ConnectionError(
                f"no model {repo!r} on the hub that you have access to: check the spelling, or run `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ConnectionError(
                f"{repo} has no revision {self._asked!r}: give a branch, tag or commit of it"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            self._unreachable = self._unreachable or describe_error(error.__cause__)
            raise self._not_cached_error(name) from error
        except ConnectionError:  # translated already
            raise
        except (errors.HTTPError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # a local error, such as a full disk
                raise
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise ConnectionError(
                    f"the hub refuses {name} of {repo} ({describe_error(error)}): renew your token with `hf auth login`"
                ) from error
            raise ConnectionError(
                f"cannot reach the hub for {name} of {repo} ({describe_error(error)}): check the network, "
                "then try again"
            ) from error
