"""The reader of plain pickles: equal to `pickle` on plain data, and deaf to everything else."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import pickletools
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.datasets import plain_pickle
from training.datasets.plain_pickle import MAX_DEPTH, parse_plain_pickle, read_plain_pickle
from training.errors import DatasetError

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300)
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(leaves | st.tuples(leaves, leaves), inner, max_size=5)
    ),
    max_leaves=30,
)
binary = st.recursive(
    leaves | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.frozensets(leaves) | st.sets(leaves),
    max_leaves=20,
)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class WithState:
    def __init__(self) -> None:
        self.word = "state"


class WithArguments:
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"key": 1}

    def __new__(cls, key: int = 0) -> WithArguments:
        return super().__new__(cls)


class Registered:
    """A class with an extension code."""


def unpickled(stored: bytes) -> Any:
    return pickle.loads(stored)  # noqa: S301  # made by the test itself


def protocols() -> range:
    return range(pickle.HIGHEST_PROTOCOL + 1)


@given(plain, st.integers(0, 5))
@example([["a", "dog"]] * 3, 0)
@example({"shared": [x := ["x"], x]}, 2)
@example(list(range(2500)), 4)  # More than the pickler's batches of a thousand.
@example({number: str(number) for number in range(2500)}, 2)
@example("Zeilen\nund\rBögen \u2028 \U0001f600 \\u0041 \x1a", 0)
@example([2**31, -(2**31), 2**70, -(2**2100), 0, 255, 256, 65535, 65536, -1], 2)
@settings(deadline=None)
def test_plain_data_comes_back_as_pickle_gives_it(data, protocol):
    stored = pickle.dumps(data, protocol)
    ours, theirs = parse_plain_pickle(stored), unpickled(stored)
    assert ours == theirs == data
    assert repr(ours) == repr(theirs)  # Types too: 1 is not True, nor 1.0.


@given(binary, st.integers(4, 5))
@example([bytearray(b"x" * 3)], 5)
@example([b"y" * 70_000, "z" * 70_000], 4)
@settings(max_examples=50, deadline=None)
def test_bytes_and_sets_of_the_protocols_that_know_them_come_back(data, protocol):
    stored = pickle.dumps(data, protocol)
    assert parse_plain_pickle(stored) == unpickled(stored) == data


@given(plain)
@settings(max_examples=50, deadline=None)
def test_a_pickle_rewritten_by_the_optimiser_or_the_slow_pickler_means_the_same(data):
    stored = io.BytesIO()
    pickle._Pickler(stored, 4).dump(data)  # type: ignore[attr-defined]
    assert parse_plain_pickle(stored.getvalue()) == data
    assert parse_plain_pickle(pickletools.optimize(pickle.dumps(data, 2))) == data


@pytest.mark.parametrize(
    "stored",
    [
        b"S'an old string'\n.",
        b"(S'a'\nS'b'\nl.",
        b"\x80\x02U\x03abc.",
        b"T\x03\x00\x00\x00abc.",
        b"(I1\nI00\nI01\nL5L\nF1.5\nt.",
        b"(dS'key'\nI1\ns.",
        b"(S'key'\nI1\nd.",
        b"]I1\na0]I2\na.",  # POP
        b"](I1\nI2\n1I3\na.",  # POP_MARK
        b"I1\n2\x86.",  # DUP
        b"]p7\n0g7\n.",
        b"]q\x070h\x07.",
        b"]r\x07\x00\x00\x000j\x07\x00\x00\x00.",
        b"K\x01.and what follows the end",
    ],
)
def test_instructions_that_only_old_picklers_write_mean_the_same(stored):
    assert parse_plain_pickle(stored) == unpickled(stored)


def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path):
    for protocol in protocols():
        target = tmp_path / f"made-{protocol}"
        stored = pickle.dumps({"clip": [["a", "dog"]], "bomb": Bomb(target)}, protocol)
        path = tmp_path / "raw-captions.pkl"
        path.write_bytes(stored)
        with pytest.raises(DatasetError, match=r"raw-captions\.pkl: .*(GLOBAL|REDUCE).*nothing .* executed"):
            read_plain_pickle(path)
        assert not target.exists()
        unpickled(stored)
        assert target.exists()  # So the pickle was a live one.


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("GLOBAL", b"os\nsystem\n"),
        ("INST", b"os\nsystem\n"),
        ("STACK_GLOBAL", b""),
        ("REDUCE", b""),
        ("BUILD", b""),
        ("OBJ", b""),
        ("NEWOBJ", b""),
        ("NEWOBJ_EX", b""),
        ("PERSID", b"someone\n"),
        ("BINPERSID", b""),
        ("EXT1", b"\x01"),
        ("EXT2", b"\x01\x00"),
        ("EXT4", b"\x01\x00\x00\x00"),
        ("NEXT_BUFFER", b""),
        ("READONLY_BUFFER", b""),
    ],
)
def test_each_instruction_that_is_not_for_plain_data_is_refused_by_its_name(name, argument):
    code = next(opcode.code for opcode in pickletools.opcodes if opcode.name == name)
    with pytest.raises(DatasetError, match=rf"instruction {name} at byte 4 "):
        parse_plain_pickle(b"](]]" + code.encode("latin-1") + argument + b".")


@pytest.mark.parametrize("make", [WithState, WithArguments, OrderedDict, lambda: os.system, lambda: 1j])
def test_objects_functions_and_classes_are_refused(make):
    for protocol in protocols():
        if protocol < 2 and make is WithArguments:
            continue  # The old protocols cannot store it.
        with pytest.raises(DatasetError, match="does not make plain data"):
            parse_plain_pickle(pickle.dumps([make()], protocol))


def test_extension_codes_and_persistent_ids_are_refused_even_where_this_process_knows_them():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> str | None:
            return "id" if value == "persistent" else None

    stored = io.BytesIO()
    Pickler(stored, 4).dump(["persistent"])
    with pytest.raises(DatasetError, match="BINPERSID"):
        parse_plain_pickle(stored.getvalue())
    copyreg.add_extension(__name__, "Registered", 240)
    try:
        stored_class = pickle.dumps(Registered, 4)
        assert unpickled(stored_class) is Registered
        with pytest.raises(DatasetError, match="EXT1"):
            parse_plain_pickle(stored_class)
    finally:
        copyreg.remove_extension(__name__, "Registered", 240)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_plain_data_or_a_dataset_error(data):
    try:
        parse_plain_pickle(data)
    except DatasetError as error:
        assert str(error)


@given(plain, st.integers(0, 5), st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_pickle_is_plain_data_or_a_dataset_error(data, protocol, choices):
    stored = bytearray(pickle.dumps(data, protocol))
    for _ in range(choices.draw(st.integers(1, 4))):
        stored[choices.draw(st.integers(0, len(stored) - 1))] = choices.draw(st.integers(0, 255))
    try:
        parse_plain_pickle(bytes(stored[: choices.draw(st.integers(0, len(stored)))]))
    except DatasetError as error:
        assert str(error)


def test_data_that_holds_itself_is_refused():
    held: list[Any] = []
    held.append(held)
    mapping: dict[str, Any] = {}
    mapping["itself"] = [mapping]
    through: list[Any] = []
    through.append((through,))
    for data in (held, mapping, through):
        for protocol in protocols():
            with pytest.raises(DatasetError, match="holds itself"):
                parse_plain_pickle(pickle.dumps(data, protocol))


def test_depth_and_size_and_number_of_instructions_are_bounded(monkeypatch):
    deepest: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        deepest = [deepest]
    assert parse_plain_pickle(pickle.dumps(deepest)) == deepest
    with pytest.raises(DatasetError, match="nested"):
        parse_plain_pickle(pickle.dumps((deepest,)))
    with pytest.raises(DatasetError, match="nested"):
        parse_plain_pickle(b"]" + b"\x85" * 1_000_000 + b".")
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(DatasetError, match="1000 pickle instructions"):
        parse_plain_pickle(b"(" + b"]" * 5000 + b"l.")
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match="1 MiB"):
        parse_plain_pickle(b"]" * (2 << 20))


def test_a_key_that_would_be_hashed_for_ages_is_refused_at_once():
    doubled = b")" + b"2\x86" * 60  # A tuple of twice a tuple of twice …: 2 ** 60 of them to hash.
    for stored in (b"}" + doubled + b"K\x01s.", b"\x8f(" + doubled + b"\x90.", b"(" + doubled + b"\x91."):
        with pytest.raises(DatasetError, match="as keys"):
            parse_plain_pickle(stored)
    with pytest.raises(DatasetError, match="as keys"):
        parse_plain_pickle(b"(" + doubled + b"K\x01d.")


def test_a_file_over_the_limit_or_not_there_is_named(tmp_path, monkeypatch):
    path = tmp_path / "raw-captions.pkl"
    with pytest.raises(DatasetError, match=r"raw-captions\.pkl cannot be read"):
        read_plain_pickle(path)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 1 << 20)
    path.write_bytes(pickle.dumps("x" * (2 << 20)))
    with pytest.raises(DatasetError, match=r"raw-captions\.pkl: more than 1 MiB"):
        read_plain_pickle(path)


@pytest.mark.slow
def test_a_pickle_of_the_size_of_msvd_takes_seconds():
    captions = {
        f"clip{clip}": [["a", "man", "does", f"thing{n}"] * 2 for n in range(41)] for clip in range(1970)
    }
    stored = pickle.dumps(captions, 4)
    start = time.process_time()
    assert parse_plain_pickle(stored) == captions
    assert time.process_time() - start < 20
