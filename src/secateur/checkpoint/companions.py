"""The files that travel with a model: all of its folder but weights, code and what is written anew.

Tokenizers, chat templates, licences and use policies have many names and places, so that the rule
says what stays behind.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

_WEIGHTS = frozenset(
    suffix
    for line in (
        "safetensors bin pt pth ckpt h5 hdf5 keras msgpack onnx onnx_data gguf ggml npz npy tflite",
        "pb mlmodel mlpackage nemo distcp params pdparams pdiparams engine trt ot mnn rten",
    )
    for suffix in line.split()
)
_CODE = frozenset(
    suffix
    for line in (
        "py pyc pyi pyd pyx pyw ipynb so dll dylib exe com msi sh bash zsh fish bat cmd ps1 js mjs",
        "cjs ts wasm c cc cpp cxx h hpp cu cuh rs go java class jar kt scala swift rb pl php lua r",
        "jl whl egg deb rpm apk vbs pkl pickle joblib dill",  # pickles run code, too
    )
    for suffix in line.split()
)
# The model's own files that a result has anew, and settings of weights that stay behind.
_OURS = (
    "config.json",
    "README.md",
    "report.json",
    "report.html",
    "plan.json",
    "run.toml",
    "recovery.toml",
    "conversion.toml",
    "modeling_secateur.py",
)
_OF_WEIGHTS = (
    "adapter_config.json",
    "hf_quant_config.json",
    "params.json",
    "quant_config.json",
    "quantize_config.json",
)
_OTHER_FORMS = re.compile(r"original|consolidated.*")
LARGEST = 100 * 2**20  # bytes; the largest tokenizers have a third of it


def is_weights(name: str) -> bool:
    """Whether a file is weights or an index of them, by its name."""
    path = PurePosixPath(name)
    lower = path.name.lower()
    return (
        path.suffix.lower().removeprefix(".") in _WEIGHTS
        or ".safetensors" in lower
        or lower.endswith(".index.json")
        or lower.startswith("consolidated")
    )


def travels(name: str) -> bool:
    """Whether a file of a model goes with it, by its path inside the folder.

    What is hidden, weights, code, or written anew for every result, does not.
    """
    path = PurePosixPath(name)
    other = any(_OTHER_FORMS.fullmatch(part.lower()) for part in path.parts)
    own = name in _OURS or path.name in _OF_WEIGHTS
    return not (_hidden(name) or other or own or is_code(name) or is_weights(name))


def is_code(name: str) -> bool:
    """Whether a file is a program, by its name."""
    return PurePosixPath(name).suffix.lower().removeprefix(".") in _CODE


def travelling(names: Iterable[str]) -> list[str]:
    """Those of a model's files that go with it.

    A folder inside that holds weights is another form of the model, and stays behind as a whole.
    """
    names = sorted(names)
    forms = {PurePosixPath(name).parent for name in names if is_weights(name)}
    forms.discard(PurePosixPath("."))
    return [
        name for name in names if travels(name) and forms.isdisjoint(PurePosixPath(name).parents)
    ]


def companions(folder: Path) -> tuple[list[str], list[str]]:
    """The companions in `folder`, each of which could be read just now; why others stay behind.

    Links that lead out of the model stay behind (those into its own cache of the hub do not).
    """
    files = list(_files(folder))
    code = [name for name in files if is_code(name) and name not in _OURS]
    left = {"code": code} if code else {}
    names: list[str] = []
    for name in travelling(files):
        why = _why_not(folder / name, folder)
        if why is None:
            names.append(name)
        else:
            left.setdefault(why, []).append(name)
    return names, [f"left behind ({why}): {', '.join(found)}" for why, found in left.items()]


def belongs(folder: Path, name: str) -> bool:
    """Whether `folder` has a readable file `name` of its own, by the rule for companions."""
    return (folder / name).is_file() and _why_not(folder / name, folder) is None


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files outside of hidden folders; a link to a folder is a file here."""
    for root, folders, files in os.walk(folder):
        place = Path(root)
        linked = [name for name in folders if (place / name).is_symlink()]
        folders[:] = [name for name in folders if not (name.startswith(".") or name in linked)]
        for name in (*files, *linked):
            if not name.startswith("."):
                yield (place / name).relative_to(folder).as_posix()


def _why_not(path: Path, folder: Path) -> str | None:
    """Why a file stays behind, in a few words; None if it travels."""
    try:
        if not _inside(path, folder):
            return "links that lead out of the model's folder"
        if not path.is_file():
            return "no files"
        if path.stat().st_size > LARGEST:
            return f"larger than {LARGEST // 2**20} MiB"
        with path.open("rb") as file:
            if file.read(2) == b"#!":
                return "code"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` leads into the model's own folder, or into its own cache of the hub."""
    folder, place = folder.resolve(), path.resolve()
    own = [folder]
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        own.append(folder.parent.parent / "blobs")
    return any(place.is_relative_to(one) for one in own)
