"""Downloads from the Hugging Face hub, with its own client, cache and settings."""

import re

from mambaout_jax.extras import importing
from mambaout_jax.machine import is_exhausted, raise_machine_fault
from mambaout_jax.storage import find_unknown_home
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.folder import WEIGHTS_NAMES
from mambaout_jax.weights.timm_config import CONFIG_NAME

PREFIXES = ("hf-hub:", "hf_hub:")
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)
_TIMEOUT_SECONDS = 5  # for the first response of the hub; HF_HUB_ETAG_TIMEOUT overrides it


class _AbsentError(WeightsError):
    """A missing file; others may exist."""


def download(source: str) -> tuple[str, str]:
    """Download config.json and the weights unless they are cached, and return their paths in the cache.

    Only the cache is used if the hub does not respond or HF_HUB_OFFLINE is set.

    Args:
        source: hf-hub:ORG/NAME, with @REVISION for a branch, a tag or a commit.

    Raises:
        WeightsError: the id is malformed, does not exist or is not accessible, or the hub does not respond and the
            files are not cached.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _ID.fullmatch(source.partition(":")[2])
    if match is None:
        raise WeightsError(f"{source} is not a hub id; expected hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION")
    repository = _Repository(source, *match.groups())
    config = repository.fetch(CONFIG_NAME)
    absent = []
    for name in WEIGHTS_NAMES:
        try:
            return config, repository.fetch(name)
        except _AbsentError as error:
            absent.append(error)
    raise absent[0]


class _Repository:
    """The files of one revision."""

    def __init__(self, source: str, repo_id: str, revision: str | None):
        self.source = source
        self.repo_id = repo_id
        self.revision = revision
        self.offline_reason: str | None = None  # why only the cache is used

    def fetch(self, name: str) -> str:
        """Download a file if necessary and return its path in the cache."""
        with importing("hub", f"{self.source} requires huggingface_hub"):
            from huggingface_hub import constants, hf_hub_download
            from huggingface_hub.errors import LocalEntryNotFoundError

        if fault := find_unknown_home(constants.HF_HUB_CACHE):
            raise WeightsError(f"{self.source}: its cache, {constants.HF_HUB_CACHE}, {fault}")
        self.offline_reason = self.offline_reason or self._check(name)
        try:
            return hf_hub_download(
                self.repo_id, name, revision=self.revision, local_files_only=self.offline_reason is not None
            )
        except LocalEntryNotFoundError:
            because = self.offline_reason or "the hub stopped responding; try again"
            raise _AbsentError(f"{self.source}: {name} is not in the cache, and {because}") from None
        except Exception as error:  # each transport raises its own types
            if is_exhausted(error):
                raise_machine_fault(error, self.source)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsError(f"{self.source}: the download of {name} failed ({reason[0]:.200}); try again") from error

    def _check(self, name: str) -> str | None:
        """Check that a file exists on the hub and is accessible; return a reason if the hub does not respond.

        The client's own download would retry for half a minute before it falls back to the cache.
        """
        with importing("hub", f"{self.source} requires huggingface_hub"):
            from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

        log_in = "log in with `hf auth login` or set HF_TOKEN"
        configured = constants.HF_HUB_ETAG_TIMEOUT
        try:
            url = hf_hub_url(self.repo_id, name, revision=self.revision)
            get_hf_file_metadata(
                url, timeout=_TIMEOUT_SECONDS if configured == constants.DEFAULT_ETAG_TIMEOUT else configured
            )
        except errors.OfflineModeIsEnabled:
            return "HF_HUB_OFFLINE is set"
        except errors.HFValidationError as error:
            raise WeightsError(f"{self.source} is not a hub id ({str(error).splitlines()[0]:.200})") from error
        except errors.GatedRepoError:
            raise WeightsError(f"{self.source} is gated; accept its terms on the hub and {log_in}") from None
        except errors.RepositoryNotFoundError:
            raise WeightsError(f"{self.source} does not exist, or is private; check the name, or {log_in}") from None
        except errors.RevisionNotFoundError:
            raise WeightsError(
                f"{self.source}: revision {self.revision or 'main'!r} does not exist; expected a branch, tag or commit"
            ) from None
        except errors.EntryNotFoundError:
            raise _AbsentError(
                f"{self.source} has no {name}; expected {CONFIG_NAME} and {WEIGHTS_NAMES[0]} in timm's format"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise WeightsError(f"{self.source} is not accessible (status {status}); {log_in}") from None
            return f"{constants.ENDPOINT} responds with status {status}; try again later"
        except Exception as error:  # each network stack raises its own types
            if is_exhausted(error):
                raise_machine_fault(error, self.source)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return f"{constants.ENDPOINT} cannot be reached ({reason[0]:.200}); check the network"
        return None
