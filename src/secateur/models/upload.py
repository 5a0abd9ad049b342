"""A folder goes to the hub, under a name of one's own.

What would keep it from going there is found out before the long work, as far as it can be known:
the name, the login, whether the hub answers.
"""

import glob
import re
import shlex
from pathlib import Path

from ..errors import SecateurError
from ..shown import one_line

_MESSAGE = "Upload with Secateur"
# What a run of ours leaves in a folder beside weights, one of them at least.
_RECORDS = {"plan.json", "run.toml", "recovery.toml", "conversion.toml"}
# Of an upload before this one: weights that would be read in the place of these or beside them, and
# records that would speak of another model.
_STALE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|report\.(json|html)|"
    + "|".join(map(re.escape, sorted(_RECORDS)))
)
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx")
_LOGIN = "Type: hf auth login, or set HF_TOKEN"


def check_upload(name: str, *, private: bool = False) -> None:
    """See whether a folder can be uploaded to `name`, as far as that is known beforehand.

    Raises:
        SecateurError: no name of the hub, no login, one that may only read, no answer, weights
            there that are not of ours, or a public repository that is to be `private`.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        name_fits = False
    else:
        name_fits = name.count("/") == 1
    if not name_fits:
        raise SecateurError(
            f"--push-to-hub {one_line(name)[:120]!r} is no name on the hub: expected OWNER/NAME, of"
            " letters, digits, - _ and .\nType: --push-to-hub OWNER/NAME"
        )
    later = f"leave --push-to-hub away and type later: hf upload {name} DIR"
    if constants.HF_HUB_OFFLINE:
        raise SecateurError(
            f"HF_HUB_OFFLINE is set: nothing can go to the hub.\nUnset it, or {later}"
        )
    if get_token() is None:
        raise SecateurError(f"An upload to {name} needs a login of the hub.\n{_LOGIN}")
    try:
        login = HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise SecateurError(
                f"The hub does not take the login that is set.\n{_LOGIN}"
            ) from error
        raise SecateurError(f"The hub refuses: {_reason(error)}\nTry again, or {later}") from error
    except Exception as error:  # whatever the network raises
        raise SecateurError(
            f"The hub cannot be reached: {_reason(error)}\nTry again, or {later}"
        ) from error
    if login.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SecateurError(f"The login of the hub may read and not write.\n{_LOGIN}")
    _check_repository(name, private=private)


def _check_repository(name: str, *, private: bool) -> None:
    """See that an upload to `name` replaces nothing but an upload of ours.

    Raises:
        SecateurError: it would, or what is private would be public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        public = api.model_info(name).private is False
        there = set(api.list_repo_files(name))
    except RepositoryNotFoundError:
        return
    except Exception as error:  # whatever the hub and the network raise
        raise SecateurError(
            f"What is at {name} on the hub cannot be seen: {_reason(error)}\nType:"
            " --push-to-hub with another name"
        ) from error
    if private and public:
        raise SecateurError(
            f"{name} is public on the hub, and --private changes nothing of that.\n"
            "Make it private there, or type --push-to-hub with another name"
        )
    weights = sorted(file for file in there if file.endswith(_WEIGHTS))
    if weights and not _RECORDS & there:
        raise SecateurError(
            f"{name} on the hub has weights that Secateur did not write ({weights[0]}).\n"
            "Type: --push-to-hub with another name"
        )


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Upload all of `folder` to the repository `name`, made if it is not there; its address.

    Weights and records of an earlier upload that are not in the folder go.

    Raises:
        SecateurError: it did not come to that; the folder is as it was.
        KeyboardInterrupt: the same; both say what uploads it later.
    """
    from huggingface_hub import HfApi

    later = f"hf upload {name} {shlex.quote(str(folder))}{' --private' if private else ''}"
    api = HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        stale = [
            file
            for file in api.list_repo_files(name)
            if _STALE.fullmatch(file) and not (folder / file).exists()
        ]
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=_MESSAGE,
            delete_patterns=[glob.escape(file) for file in stale],
        )
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(f"{folder} is whole, and to upload it: {later}") from interruption
    except Exception as error:  # whatever the hub and the network raise
        raise SecateurError(
            f"{folder} is whole, but was not uploaded to {name}: {_reason(error)}\nType: {later}"
        ) from error
    return str(address)


def _reason(error: BaseException) -> str:
    """Why the hub did not do it, in one line: what it answered, if it did."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0])[:200] if lines else type(error).__name__
