import math

import pytest

from cellseg.errors import UserError
from cellseg.files import atomic_path, leads_outside, read_json, read_yaml, sweep, write_json


def content_of(folder) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_takes_its_name_when_it_is_written(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(path) as temporary:
        assert not path.exists()
        temporary.write_text("one")
    assert content_of(tmp_path) == {"new/folder/a.txt": "one"}
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert content_of(tmp_path) == {"a.txt": "new"}


def test_a_folder_replaces_the_old_folder_as_a_whole(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "stale").write_text("old")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_text("new")
    assert content_of(tmp_path) == {"out/fresh": "new"}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, failure, is_folder):
    path = tmp_path / "out"
    if is_folder:
        path.mkdir()
        (path / "file").write_text("old")
    else:
        path.write_text("old")
    before = content_of(tmp_path)
    with pytest.raises(failure), atomic_path(path) as temporary:
        if is_folder:
            temporary.mkdir()
            temporary = temporary / "file"
        temporary.write_text("half")
        raise failure("stop")
    assert content_of(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_without_an_old_file_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")  # not a folder: nobody can write below it, root included
    with pytest.raises(UserError, match=r"file/a\.txt: the folder must be writable, but got '.+'"):
        write_json(tmp_path / "file" / "a.txt", {})


def test_a_file_never_takes_the_name_of_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("old")
    with pytest.raises(UserError, match=r"out: must be writable, but got '.+'"):
        write_json(tmp_path / "out", {})
    assert content_of(tmp_path) == {"out/kept": "old"}


def test_a_full_disk_while_writing_is_the_users_error(tmp_path):
    match = "a: must be writable, but got 'No space left on device'"
    with pytest.raises(UserError, match=match), atomic_path(tmp_path / "a"):
        raise OSError(28, "No space left on device")


def test_json_is_a_round_trip_of_any_text(tmp_path):
    value = {"a": [1, 2.5, None], "ü": "ß"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_numbers_it_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UserError, match=r"nowhere: the file must exist, but got nothing at that path"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_folder_is_no_file(tmp_path, read):
    with pytest.raises(UserError, match="must be a readable file, but got 'Is a directory'"):
        read(tmp_path)


@pytest.mark.parametrize(("read", "kind"), [(read_json, "JSON"), (read_yaml, "YAML")])
def test_bytes_that_are_not_utf_8_are_refused(tmp_path, read, kind):
    (tmp_path / "a").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=f"a: must be valid {kind}, but got: .*utf-8"):
        read(tmp_path / "a")


def test_broken_json_is_told_with_its_place(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n}')
    with pytest.raises(UserError, match=r"a\.json: must be valid JSON, but got: .*line 2"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2e+3", -2000.0),
        ("1.5e3", 1500.0),
        (".5e2", 50.0),
        ("[1e-3, 2]", [1e-3, 2]),
        ("0.1", 0.1),
        ("12e", "12e"),
        ("e5", "e5"),
        ("1e5x", "1e5x"),
        ("8-128", "8-128"),
        ("'1e-3'", "1e-3"),
        ("", None),
    ],
)
def test_yaml_reads_numbers_as_people_write_them(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(text)
    read = read_yaml(tmp_path / "a.yaml")
    assert read == value
    assert type(read) is type(value)


def test_yaml_keeps_its_merge_keys(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &base {lr: 1, seed: 2}\nother: {<<: *base, lr: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["other"] == {"lr": 3, "seed": 2}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' appears twice in one mapping, the second time in line 3"),
        ("o:\n  a: 1\n  a: 1\n", "the key 'a' appears twice in one mapping, the second time in line 3"),
        ("1: a\n1: b\n", "the key '1' appears twice"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a:\n\t- b", "cannot start any token"),
        ("? [a]\n: b", "unhashable"),
        ("a: 2024-99-99", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_bad_yaml_is_one_line_with_the_reason(tmp_path, text, match):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as raised:
        read_yaml(tmp_path / "a.yaml")
    assert str(raised.value).startswith(f"{tmp_path / 'a.yaml'}: must be valid YAML, but got: ")
    assert "\n" not in str(raised.value)


def test_sweeping_removes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    (tmp_path / ".weights-0001.pt.x7k2").mkdir()
    (tmp_path / ".weights-0001.pt.x7k2" / "weights-0001.pt").write_bytes(b"half")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "weights-0001.pt").write_bytes(b"whole")
    (tmp_path / "epochs").mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "epochs", "weights-0001.pt"]
    sweep(tmp_path / "absent")


@pytest.mark.parametrize(("read", "levels"), [(read_json, 200_000), (read_yaml, 5_000)])
def test_deep_nesting_is_the_users_error(tmp_path, read, levels):
    path = tmp_path / "deep"
    path.write_text("[" * levels + "]" * levels)
    with pytest.raises(UserError, match="nested"):
        read(path)


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "a..b.png", "sub/.hidden/a.png", "./a.png", "x:y.png"])
def test_names_below_the_folder_do_not_lead_outside(name):
    assert not leads_outside(name)


@pytest.mark.parametrize("name", ["/a", "../a", "a/..", "a/../b", "..", "\\a", "a\\..\\b", "C:\\a", "//host/a", "a\0b"])
def test_names_that_lead_outside(name):
    assert leads_outside(name)
