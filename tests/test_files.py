"""Whole files, locks, manifests and lists of what was skipped."""

import os

import pytest

from lincae.data.folders import add_skipped, claim, read_skipped, write_skipped
from lincae.machine.files import atomic_write, json_object


@pytest.mark.parametrize("n_bytes", [1, 221, 245, 255])
def test_a_file_is_whole_or_as_it_was(tmp_path, n_bytes):
    path = tmp_path / ("x" * n_bytes)
    with atomic_write(path) as file:
        file.write(b"whole")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write(b"half" + None)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_claimed_once(tmp_path):
    path = tmp_path / "new" / "things.json"
    assert claim(path, "things", {"size": 3}, {"note": "a"}) == {"size": 3, "note": "a"}
    assert claim(path, "things", {"size": 3}, {"note": "b"})["note"] == "a"
    with pytest.raises(ValueError, match="new has things of size 3, not 4: use another folder"):
        claim(path, "things", {"size": 4})
    with pytest.raises(ValueError, match="new has things of colour None, not red"):
        claim(path, "things", {"colour": "red"})
    claim(path, "things", {"colour": "red"}, later=("colour",))
    with pytest.raises(ValueError, match=r"is not empty and has no other\.json"):
        claim(tmp_path / "other.json", "things", {})


@pytest.mark.parametrize("text", ["", '{"a', "[1]", "3", b"\xff\xfe\xff", "[" * 100_000])
def test_what_is_no_json_object_is_named(text):
    with pytest.raises(ValueError, match=r"^here\.json is damaged"):
        json_object(text, "here.json")


def test_lists_of_skipped_files(tmp_path):
    path = tmp_path / "skipped.csv"
    assert read_skipped(path) == {}
    rows = {os.fsdecode(b"caf\xe9, 1.wav"): "of no\nkind", "b.wav": 'says "no"'}
    write_skipped(path, rows)
    add_skipped(path, "c.wav", "empty")
    assert read_skipped(path) == {**rows, "c.wav": "empty"}
    with path.open("a") as file:
        file.write("cut sho")
    assert read_skipped(path) == {**rows, "c.wav": "empty"}
