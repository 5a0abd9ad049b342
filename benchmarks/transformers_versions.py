"""Which transformers versions load pruned folders, and give the same logits.

    python benchmarks/transformers_versions.py 4.57.6 5.0.0 5.8.0 [--packages DIR]

Each version is installed into a folder of its own (kept in DIR, if that is given), beside the torch
that is here. A tiny random model of every family is pruned into layers of different widths; every
version then loads each folder with `trust_remote_code`, without this package, and its logits are
compared with those of the version here. It must also generate the same with and without a cache,
and open the folder by `AutoModel` and as a classifier. `MEASURED` in `modeling_secateur.py` lists
the versions for which that was so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

CHILD = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["secateur"] = None  # importing it is an error
import torch, transformers
from safetensors.torch import load_file
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
given = load_file(sys.argv[1])
ids, found = given["ids"], {}
for folder in sys.argv[2:]:
    name = folder.rpartition("/")[2]
    try:
        auto = json.load(open(folder + "/config.json"))["auto_map"]
        kind = dict(trust_remote_code=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **kind).eval().float()
        with torch.no_grad():
            difference = float((model(ids).logits - given[name]).abs().max())
        same = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        texts = [model.generate(ids, use_cache=cache, **same) for cache in (True, False)]
        assert torch.equal(*texts), "generates otherwise with a cache"
        assert difference < 1e-4, f"logits differ by {difference:.1e}"
        base = transformers.AutoModel.from_pretrained(folder, **kind).eval().float()
        inner = next(c for c in model.children() if type(c).__name__.startswith("Secateur"))
        with torch.no_grad():
            states = [some(ids).last_hidden_state for some in (base, inner)]
        assert torch.allclose(*states, atol=1e-5), "AutoModel differs"
        name_of_classes = auto.get("AutoModelForSequenceClassification", "").rpartition("Secateur")
        if name_of_classes[2] and hasattr(transformers, name_of_classes[2]):
            classes = transformers.AutoModelForSequenceClassification
            found_classes = classes.from_pretrained(folder, num_labels=3, **kind)
            assert found_classes(ids[:1]).logits.shape == (1, 3)
        found[name] = "ok"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
print(json.dumps({"version": transformers.__version__, "found": found}))
"""


def write_folders(work: Path) -> list[Path]:
    """Pruned folders of every family in the form that needs the travelling file, and logits."""
    from conftest import EVERY_FAMILY, tiny_model, tiny_tokenizer
    from secateur.export import pruned_form, write_model
    from secateur.export.proof import ragged_plan
    from secateur.models import filled, open_model
    from secateur.surgery import pruned_view

    ids = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    given, folders = {"ids": ids}, []
    for name in EVERY_FAMILY:
        dense, folder = work / "dense" / name, work / name
        tiny_model(name).save_pretrained(dense)
        opened = open_model(dense)
        plan = ragged_plan(opened.structure, 1)
        # grouped products over experts want rows of 16 bytes
        experts = {
            axis.name: tuple(u for u in range(axis.units) if u % (axis.units // axis.groups) < 16)
            for axis in opened.structure.axes
            if axis.granularity == "expert_channel"
        }
        plan = replace(plan, keep={**plan.keep, **experts})
        weights = pruned_view(opened.weights, opened.structure, plan)
        given_form = (opened.family, opened.raw_config, opened.config, opened.structures)
        form = pruned_form(*given_form, plan, weights, own=True)
        assert not form.stock
        folder.mkdir()
        write_model(folder, form)
        tiny_tokenizer().save_pretrained(folder)
        with torch.no_grad():
            given[name] = filled(form.empty(), form.weights)(ids).logits.contiguous()
        folders.append(folder)
    save_file(given, work / "given.safetensors")
    return folders


def measured(version: str, packages: Path, work: Path, folders: list[Path]) -> dict[str, Any]:
    """What `version` says of every folder."""
    import numpy

    place = packages / f"tf-{version}"
    if not place.is_dir():
        pins = [f"transformers=={version}", f"numpy=={numpy.__version__}"]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(place), *pins]
        subprocess.run(pip, check=True)
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(place),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / f"modules-{version}"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(work / "given.safetensors"), *map(str, folders)],
        env=surroundings,
        cwd=work,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"transformers {version} does not start:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure the versions that are asked for, and print one line a folder that does not load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--packages", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = write_folders(work)
        for version in asked.versions:
            one = measured(version, asked.packages or work, work, folders)
            good = [name for name, said in one["found"].items() if said == "ok"]
            print(
                f"transformers {one['version']}: {len(good)} of {len(folders)} families", flush=True
            )
            for name, said in one["found"].items():
                if said != "ok":
                    print(f"  {name}: {said}")


if __name__ == "__main__":
    main()
