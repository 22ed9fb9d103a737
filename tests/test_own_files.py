"""Files of a command: replaced where they are its own, and never otherwise."""

import json

import pytest

from vitlab.errors import InputError
from vitlab.own_files import OwnFiles


def test_what_was_written_earlier_may_be_written_again(tmp_path):
    name = "pictures/a\n\udcff.png"  # any that a file system has
    OwnFiles(tmp_path / "out", "draw").path(name).write_text("first")
    again = OwnFiles(tmp_path / "out", "draw")
    again.check([name, "new.png"])
    again.path(name).write_text("second")
    assert (tmp_path / "out" / name).read_text() == "second"
    with pytest.raises(InputError, match="take another --out"):
        OwnFiles(tmp_path / "out", "measure").check([name])


def test_files_of_others_are_named_and_left(tmp_path):
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_text("mine")
    own = OwnFiles(tmp_path, "draw")
    with pytest.raises(InputError, match=r"/b\.png is there and this command did not write it"):
        own.check(["a.png", "b.png", "c.png"])
    with pytest.raises(InputError, match=r"/c\.png is there"):
        own.path("c.png")
    own.path("a.png").write_text("")
    own.delete_all_but([])
    assert sorted(path.name for path in tmp_path.glob("*")) == [".vitlab-draw", "b.png", "c.png"]
    # What is deleted is no longer the command's own.
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(InputError):
        OwnFiles(tmp_path, "draw").check(["a.png"])


def test_a_list_names_nothing_outside_of_its_folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    outside = tmp_path / "outside.png"
    outside.write_text("mine")
    lines = [json.dumps(name) for name in ("../outside.png", str(outside), "a.png")]
    (folder / ".vitlab-draw").write_text("\n".join(lines))
    (folder / "a.png").write_text("")
    OwnFiles(folder, "draw").delete_all_but([])
    assert outside.exists()
    assert not (folder / "a.png").exists()
    for damaged in ("no json", "3"):
        (folder / ".vitlab-draw").write_text(damaged)
        (folder / "a.png").write_text("mine")
        with pytest.raises(InputError):
            OwnFiles(folder, "draw").check(["a.png"])
