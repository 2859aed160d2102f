"""The Hugging Face hub, through its own client, cache and settings."""

import re

from mambaout_jax.extras import importing
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.folder import WEIGHTS_NAMES
from mambaout_jax.weights.timm_config import CONFIG_NAME

PREFIXES = ("hf-hub:", "hf_hub:")
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)
_SECONDS = 5  # that the hub may take to answer; HF_HUB_ETAG_TIMEOUT changes it


class _AbsentError(ConvertError):
    """One file that is absent, where another may exist."""


def download(source: str) -> tuple[str, str]:
    """Fetch config.json and the weights into the client's cache if they are new, and return their paths.

    The cache is used if the hub does not answer or HF_HUB_OFFLINE is set.

    Args:
        source: hf-hub:ORG/NAME, with @REVISION for a branch, a tag or a commit.

    Raises:
        ConvertError: the id is malformed, does not exist or may not be read, or the hub does not answer and the
            cache does not have it.
        MissingExtraError: the client is not installed.
    """
    match = _ID.fullmatch(source.partition(":")[2])
    if match is None:
        raise ConvertError(f"{source} is not a hub id; hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION is expected")
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
        self.trouble: str | None = None  # why the hub is not asked any more

    def fetch(self, name: str) -> str:
        """Return the path of a file in the cache."""
        with importing("hub", f"{self.source} requires huggingface_hub"):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import LocalEntryNotFoundError

        self.trouble = self.trouble or self._ask(name)
        try:
            return hf_hub_download(
                self.repo_id, name, revision=self.revision, local_files_only=self.trouble is not None
            )
        except LocalEntryNotFoundError:
            raise _AbsentError(
                f"{self.source}: {name} is not in the cache, and {self.trouble or 'it was removed'}"
            ) from None
        except Exception as error:  # each transport raises its own types
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConvertError(f"{self.source}: fetching {name} stopped ({reason[0]:.200}); try again") from error

    def _ask(self, name: str) -> str | None:
        """Check that the hub has a file and that it may be read; return the reason if the hub does not answer.

        The client's own download would retry for half a minute before it looks into its cache.
        """
        with importing("hub", f"{self.source} requires huggingface_hub"):
            from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

        log_in = "log in with `hf auth login` or set HF_TOKEN"
        chosen = constants.HF_HUB_ETAG_TIMEOUT
        try:
            url = hf_hub_url(self.repo_id, name, revision=self.revision)
            get_hf_file_metadata(url, timeout=_SECONDS if chosen == constants.DEFAULT_ETAG_TIMEOUT else chosen)
        except errors.OfflineModeIsEnabled:
            return "HF_HUB_OFFLINE is set"
        except errors.HFValidationError as error:
            raise ConvertError(f"{self.source} is not a hub id ({str(error).splitlines()[0]:.200})") from error
        except errors.GatedRepoError:
            raise ConvertError(f"{self.source} is gated; accept its terms on the hub and {log_in}") from None
        except errors.RepositoryNotFoundError:
            raise ConvertError(f"{self.source} does not exist, or is private; check the name, or {log_in}") from None
        except errors.RevisionNotFoundError:
            raise ConvertError(
                f"{self.source}: there is no revision {self.revision or 'main'}; a branch, tag or commit is expected"
            ) from None
        except errors.EntryNotFoundError:
            raise _AbsentError(
                f"{self.source} has no {name}; {CONFIG_NAME} and {WEIGHTS_NAMES[0]}, as timm writes them, are expected"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise ConvertError(f"{self.source} may not be read (status {status}); {log_in}") from None
            return f"{constants.ENDPOINT} answers with status {status}; try again later"
        except Exception as error:  # each network stack raises its own types
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return f"{constants.ENDPOINT} cannot be reached ({reason[0]:.200}); check the network"
        return None
