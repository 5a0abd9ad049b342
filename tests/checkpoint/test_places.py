"""Where a result may go, what is replaced, what a kill at any point leaves: old or new, whole."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import secateur
from conftest import bound, snapshot
from secateur.checkpoint import appearing, lock, new_file, new_folder, training_file
from secateur.checkpoint import renaming as renaming_module
from secateur.checkpoint.ours import foreign, written_by_us
from secateur.errors import SecateurError

PLAN = '{"format": "secateur-plan-1"}'


class Killed(BaseException):
    """A process that is gone: nothing that it would do on the way out is done."""


def write(folder: Path, content: str) -> None:
    """What stands for a result."""
    for name in ("model.safetensors", "config.json", "README.md"):
        (folder / name).write_text(content)
    (folder / "plan.json").write_text(PLAN)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(content)


def make(
    out: Path,
    content: str,
    *,
    force: bool = False,
    training: bool = False,
    meanwhile: Callable[[], Any] = bool,
) -> None:
    with new_folder(out, force=force, training=training) as folder:
        write(folder, content)
        meanwhile()


def draw(place: Path, *, force: bool = False, meanwhile: Callable[[], Any] = bool) -> None:
    with new_file(place, force=force) as file:
        file.write_text("drawn")
        meanwhile()


def content(out: Path) -> str | None:
    """What a whole result holds; None: there is none. A half one fails."""
    if not (out / "config.json").is_file():
        return None
    held = {(out / name).read_text() for name in ("model.safetensors", "config.json", "README.md")}
    held.add((out / "adapter" / "adapter_config.json").read_text())
    assert len(held) == 1, held
    assert (out / "plan.json").read_text() == PLAN
    return held.pop()


@pytest.fixture(params=["beside", "inside", "two renames"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose results are renamed, exchanged, or moved into a folder that stays."""
    place = tmp_path / "desk" / "out"
    if request.param == "inside":
        place.mkdir(parents=True)
        (place / "lost+found").mkdir()
        unmovable(monkeypatch)
    else:
        place.parent.mkdir()
    if request.param == "two renames":
        monkeypatch.setattr(appearing, "exchange", lambda one, other: False)
    return place


def unmovable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every folder that is there one that the system does not rename: a mount point."""
    monkeypatch.setattr("secateur.checkpoint.folder.renameable", lambda place: False)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


# --- a kill at any point --------------------------------------------------------------------------


def dying(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Kill before the file system's change number `step`; gives what was done so far."""
    done: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) >= step:
                raise Killed  # and again for all that the way out would do
            done.append(name)
            return function(*arguments, **options)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    monkeypatch.setattr(os, "rename", counted("rename", os.rename))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    monkeypatch.setattr(renaming_module, "_renamed", counted("call", renaming_module._renamed))
    return done


@pytest.mark.parametrize("force", [False, True])
def test_after_a_kill_at_any_step_the_old_or_the_new_is_there(
    force: bool, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, kept = out.parent, {"lost+found"} if out.exists() else set()
    for step in range(100):
        for entry in names(out) - kept if out.exists() else ():
            entry_path = out / entry
            shutil.rmtree(entry_path) if entry_path.is_dir() else entry_path.unlink()
        if force:
            make(out, "old")
        training_file(desk, out).write_text("state")
        with monkeypatch.context() as patch:
            done = dying(patch, step)
            try:
                make(out, "new", force=force, training=True)
                died = False
            except Killed:
                died = True
        assert content(out) in (None, "old", "new")
        if not died:
            assert (content(out), step > 5) == ("new", True), done
            break
        with suppress(SecateurError):  # the next run comes to a whole one, if it is not there
            make(out, "new")
        assert content(out) in (("old", "new") if force else ("new",)), (step, done)
        assert names(out) == {*kept, *RESULT}, (step, done)
        assert names(desk) - {training_file(desk, out).name} == {"out"}, (step, done)
        if force and content(out) == "old":  # then its training can go on
            assert training_file(desk, out).is_file(), (step, done)
    else:
        pytest.fail("never came to the end")


RESULT = {"model.safetensors", "config.json", "README.md", "plan.json", "adapter"}


def test_a_whole_result_of_a_killed_run_is_ended_and_said(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(place: Any, whole: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(appearing, "_end", killed)
        with suppress(Killed):
            make(out, "new")
    with pytest.raises(SecateurError, match="exists, and is whole: a run that was killed"):
        make(out, "newer")
    assert content(out) == "new"


def test_a_whole_result_is_ended_on_another_disk_too(tmp_path: Path) -> None:
    """Copied there, it has another inode than its name says."""
    whole = tmp_path / ".out.ready-1"
    whole.mkdir()
    write(whole, "new")
    with pytest.raises(SecateurError, match="exists, and is whole"):
        make(tmp_path / "out", "newer")
    assert content(tmp_path / "out") == "new"


def test_the_state_of_a_training_that_had_come_to_its_end_goes(tmp_path: Path) -> None:
    """Killed between the last renaming but one and the removal of the state."""
    out = tmp_path / "out"
    state = training_file(tmp_path, out)
    best = state.with_name(f"{state.name}.best-0123abcd")
    for trained in (False, True):
        state.write_text("state")
        best.write_text("the best parameters")
        whole = tmp_path / ".out.ready-1"
        whole.mkdir()
        write(whole, "new")
        if trained:
            (whole / "recovery.toml").write_text("")
        with pytest.raises(SecateurError, match="exists, and is whole"):
            make(out, "newer")
        assert state.exists() == best.exists() == (not trained)
        shutil.rmtree(out)


def test_results_whose_names_begin_alike_leave_each_other_alone(tmp_path: Path) -> None:
    """`.out.old-2.partial-TOKEN` is the work of a run that writes out.old-2, and no old `out`."""
    state = training_file(tmp_path, tmp_path / "out.partial-2")
    state.write_text("state")
    (tmp_path / ".out.ready-made").mkdir()
    for other in ("out.old-2", "out.partial-2", "out.replace-2", "out.ready-2"):
        make(tmp_path / other, "two", meanwhile=lambda: make(tmp_path / "out", "one"))
        assert content(tmp_path / other) == "two"
        shutil.rmtree(tmp_path / "out")
    assert state.read_text() == "state"
    assert (tmp_path / ".out.ready-made").is_dir()


# --- what appears meanwhile -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_appears_meanwhile_stays_and_the_result_is_kept(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def meanwhile() -> None:
        if kind == "file":
            out.write_text("my thesis")
        elif kind == "link":
            out.symlink_to("elsewhere")
        else:
            out.mkdir()
            (out / "thesis.txt").write_text("my thesis")

    with pytest.raises(SecateurError, match="appeared while this ran") as told:
        make(out, "new", meanwhile=meanwhile)
    held = out.read_text() if kind == "file" else None
    held = (out / "thesis.txt").read_text() if kind == "folder" else held
    assert held == (None if kind == "link" else "my thesis")
    (kept,) = (entry for entry in tmp_path.iterdir() if entry != out)
    assert content(kept) == "new"
    assert str(kept) in str(told.value)


def test_what_is_put_into_the_folder_to_be_replaced_stays(out: Path) -> None:
    make(out, "old")
    thesis = out / "thesis.txt"
    with pytest.raises(SecateurError, match="changed while this ran"):
        make(out, "new", force=True, meanwhile=lambda: thesis.write_text("my thesis"))
    assert content(out) == "old"
    assert (out / "thesis.txt").read_text() == "my thesis"
    (kept,) = (e for e in (*out.parent.iterdir(), *out.iterdir()) if e.name.startswith("out.res"))
    assert content(kept) == "new"


def test_another_result_in_place_of_the_old_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")

    def meanwhile() -> None:
        out.rename(tmp_path / "moved")
        make(tmp_path / "other", "of someone else")
        (tmp_path / "other").rename(out)

    with pytest.raises(SecateurError, match="changed while this ran"):
        make(out, "new", force=True, meanwhile=meanwhile)
    assert content(out) == "of someone else"


def test_a_picture_replaces_nothing_that_appeared(tmp_path: Path) -> None:
    place = tmp_path / "x.svg"
    with pytest.raises(SecateurError, match="appeared"):
        draw(place, meanwhile=lambda: place.write_text("of someone else"))
    assert names(tmp_path) == {"x.svg"}
    assert place.read_text() == "of someone else"
    draw(place, force=True)
    assert place.read_text() == "drawn"


# --- two runs -------------------------------------------------------------------------------------


def test_the_second_of_two_runs_is_refused(out: Path) -> None:

    def meanwhile() -> None:
        with pytest.raises(SecateurError, match="Another run is writing"):
            make(out, "second", force=True)

    make(out, "first", meanwhile=meanwhile)
    assert content(out) == "first"


@pytest.mark.slow
def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from secateur.checkpoint import new_folder
with new_folder(Path({str(tmp_path / "out")!r}), force=False):
    print("in", flush=True)
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert any(tmp_path.glob(".out.lock"))
    make(tmp_path / "out", "new")
    assert names(tmp_path) == {"out"}


def test_a_lock_file_that_its_holder_removed_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder lets go between our opening the file and our locking it."""
    file, calls = tmp_path / ".out.lock", []
    original = fcntl.flock

    def flock(held: int, how: int) -> None:
        if not calls:
            file.unlink()
        calls.append(held)
        original(held, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.locked(file, tmp_path / "out"):
        assert len(calls) == 2
        assert os.path.samestat(file.stat(), os.fstat(calls[-1]))


# --- which folders are replaced -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["thesis.txt", "src", ".git", "adapter/thesis.txt"])
def test_force_replaces_no_folder_with_anything_else_in_it(name: str, out: Path) -> None:
    make(out, "old")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine") if "." in name[1:] else (out / name).mkdir()
    before = snapshot(out)
    with pytest.raises(SecateurError, match=name.split("/")[0]):
        make(out, "new", force=True)
    assert snapshot(out) == before


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"name": "my app"}', "[" * 9999])
def test_force_replaces_no_folder_of_another_program(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "plan.json", "run.toml", "model.safetensors", "comparison.json"):
        (out / name).write_text(text)
    with pytest.raises(SecateurError, match="not a model folder that Secateur wrote"):
        make(out, "new", force=True)


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "MODEL", "--method", "magnitude", "--evaluate", "none"],
        ["prune", "MODEL", "--method", "magnitude", "--evaluate", "none", "--dry-run"],
        ["compare", "MODEL", "--methods", "magnitude", "--ratios", "0.2", "--evaluate", "none"],
        ["convert", "BAICHUAN"],
    ],
    ids=lambda command: "-".join(command[:1] + command[6:]),
)
def test_what_a_command_wrote_force_replaces(
    command: list[str], model: Path, baichuan: Any, tmp_path: Path, said: Callable[..., str]
) -> None:
    places = {"MODEL": str(model), "BAICHUAN": ""}
    if "BAICHUAN" in command:
        places["BAICHUAN"] = str(baichuan()[1])
    out = tmp_path / "out"
    typed = [*(places.get(word, word) for word in command), "--out", str(out)]
    said(*typed)
    first = snapshot(out)
    assert (written_by_us(out), foreign(out)) == (True, None)
    said(*typed, "--force")
    assert snapshot(out).keys() == first.keys()


# --- places ---------------------------------------------------------------------------------------


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


@pytest.mark.parametrize("typed", ["", ".", "..", "/", "../project", "a/..", "../../"])
def test_the_current_folder_and_what_holds_it_are_refused(typed: str, inside: Path) -> None:
    for force in (False, True):
        with pytest.raises(SecateurError, match="folder you are in"):
            make(Path(typed), "new", force=force)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("~nobody-here/x", "home (folder|directory)"),
        ("a\0b", "null byte|no name that a file"),
        ("x" * 256, "too long"),
    ],
    ids=["no home", "NUL", "long"],
)
def test_a_name_that_nothing_can_have_is_refused(typed: str, says: str, inside: Path) -> None:
    with pytest.raises(SecateurError, match=says):
        make(Path(typed), "new")
    with pytest.raises(SecateurError, match=says):
        secateur.prune("no-model", out=typed)


def test_links_lead_to_the_place_and_loops_nowhere(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for link, target in {"full": "there", "dangling": "new", "loop": "loop"}.items():
        (tmp_path / link).symlink_to(target)
    make(tmp_path / "full", "one")
    make(tmp_path / "dangling", "two")
    assert (content(tmp_path / "there"), content(tmp_path / "new")) == ("one", "two")
    assert (tmp_path / "full").is_symlink()
    with pytest.raises(SecateurError, match="Cannot write"):
        make(tmp_path / "loop", "three")


@pytest.mark.parametrize("length", [60, 120, 255])
def test_long_names_have_room_for_ours(length: int, tmp_path: Path) -> None:
    out = tmp_path / ("ü" * (length // 2) + "x" * (length % 2))
    with new_folder(out, force=False, training=True) as folder:
        write(folder, "new")
        state = training_file(tmp_path, out)
        state.with_name(f"{state.name}.partial-12345678").mkdir()
    assert content(out) == "new"
    make(out, "newer", force=True)
    assert names(tmp_path) == {out.name}


mounting = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="mounting needs root",
)
MOUNTS = {
    "tmpfs": "mount -t tmpfs -o size=4m tmpfs {out}",
    "bind": "mount --bind {store} {out}",
    "read-only parent": "mount -t tmpfs tmpfs {out} && mount --bind {parent} {parent} && "
    "mount -t tmpfs tmpfs {out} && mount -o remount,ro,bind {parent}",
    "overlay": "mount -t tmpfs tmpfs {store} && mkdir -p {store}/up {store}/work {store}/low/out"
    " && mount -t overlay -o lowerdir={store}/low,upperdir={store}/up,workdir={store}/work"
    " overlay {parent}",
}


@mounting
@pytest.mark.slow
def test_real_places_that_cannot_be_renamed(tmp_path: Path) -> None:
    """Made, refused, replaced and left clean, in mounts of their own."""
    mounts = []
    for kind, mount in MOUNTS.items():
        parent, store = tmp_path / kind.replace(" ", "-"), tmp_path / f"store-{len(mounts)}"
        (parent / "out").mkdir(parents=True)
        store.mkdir()
        mounts.append(mount.format(out=parent / "out", store=store, parent=parent))
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
from test_places import use_place
for kind in {list(MOUNTS)!r}:
    use_place(Path({str(tmp_path)!r}) / kind.replace(" ", "-") / "out")
print("all well")
"""
    (tmp_path / "use.py").write_text(code)
    script = f"set -e; {'; '.join(mounts)}; exec {sys.executable} {tmp_path}/use.py"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if done.stderr.startswith("mount") or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert "all well" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away needs root")
def test_a_folder_of_someone_else_in_a_sticky_one_is_filled(tmp_path: Path) -> None:
    """As in /tmp: it may be written into, and not be renamed."""
    desk = tmp_path / "desk"
    (desk / "out").mkdir(parents=True)
    for folder, mode in ((desk / "out", 0o777), (desk, 0o1777)):
        folder.chmod(mode)
        os.chown(folder, 65534, 65534)
    with bound(3):  # CAP_FOWNER
        with pytest.raises(PermissionError):
            (desk / "out").rename(desk / "other")
        make(desk / "out", "new")
    assert (content(desk / "out"), names(desk)) == ("new", {"out"})


def use_place(out: Path) -> None:
    """All that may happen to a place, one after the other."""
    make(out, "one")
    assert content(out) == "one"
    with pytest.raises(SecateurError, match="exists"):
        make(out, "two")
    make(out, "three", force=True)
    assert (content(out), names(out)) == ("three", RESULT)
    with pytest.raises(KeyboardInterrupt), new_folder(out, force=True):
        raise KeyboardInterrupt
    assert (content(out), names(out), names(out.parent)) == ("three", RESULT, {"out"})


def test_what_came_with_the_model_is_replaced_with_it_and_nothing_else(
    tiny_folder: Any, tmp_path: Path
) -> None:
    """Whatever a companion is called: the record says that it came along."""
    folder, out = tiny_folder(), tmp_path / "small"
    (folder / "use_policy.txt").write_text("be kind")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text("a")
    options: dict[str, Any] = {"method": "magnitude", "ratio": 0.3, "evaluate": "none"}
    for force in (False, True):
        secateur.prune(folder, out=out, force=force, **options)
        assert (out / "notes" / "a.md").is_file()
    (out / "notes" / "mine.md").write_text("mine")
    with pytest.raises(SecateurError, match="'notes'"):
        secateur.prune(folder, out=out, force=True, **options)
    assert (out / "notes" / "mine.md").read_text() == "mine"
