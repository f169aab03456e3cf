"""Keys of credentials: which are taken, what opens with which, and that errors show none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.mesh_plan import MeshOptions, credential_keys
from headrace.edge.data_directory import DataDirectory
from headrace.edge.key_ring import (
    FILE_VARIABLE,
    KEYS_VARIABLE,
    KeyRing,
    check_key_file,
    make_key_file,
    new_key,
    parse_keys,
    without_keys,
)
from headrace.model.credential import SealedValue, bound_to
from headrace.model.errors import InvalidInput, WrongState

pytest.importorskip("cryptography", reason="the environment is older than requirements.lock: run make setup")
FIRST, SECOND = new_key(), new_key()
BOUND = bound_to("default", "shop", 1)


def ring(*keys: str) -> KeyRing:
    return KeyRing({KEYS_VARIABLE: ",".join(keys)})


@given(raw=st.binary(max_size=200))
def test_what_was_sealed_opens_as_itself_and_as_nothing_else(raw: bytes) -> None:
    sealed = ring(FIRST).seal(raw, BOUND)
    assert raw == ring(SECOND, FIRST).open(sealed, BOUND, "it")
    for other in (bound_to("default", "shop", 2), bound_to("default", "shoq", 1), bound_to("other", "shop", 1)):
        with pytest.raises(WrongState, match="does not open"):
            ring(FIRST).open(sealed, other, "it")


@given(place=st.integers(min_value=0), bit=st.integers(0, 7), nonce=st.booleans())
def test_an_altered_value_does_not_open(place: int, bit: int, nonce: bool) -> None:
    sealed = ring(FIRST).seal(b"secret-value", BOUND)
    raw = bytearray(sealed.nonce if nonce else sealed.ciphertext)
    raw[place % len(raw)] ^= 1 << bit
    altered = SealedValue(sealed.key_id, *((bytes(raw), sealed.ciphertext) if nonce else (sealed.nonce, bytes(raw))))
    with pytest.raises(WrongState) as refused:
        ring(FIRST).open(altered, BOUND, "it")
    assert refused.value.reason == "CREDENTIAL_DAMAGED"


def test_a_value_whose_key_is_gone_names_the_key() -> None:
    sealed = ring(FIRST).seal(b"x", BOUND)
    with pytest.raises(WrongState, match=f"it is sealed with key {sealed.key_id}, which is not in") as refused:
        ring(SECOND).open(sealed, BOUND, "it")
    assert refused.value.reason == "CREDENTIAL_KEY_MISSING"
    with pytest.raises(WrongState, match="there is no key"):
        KeyRing({}).seal(b"x", BOUND)


def test_two_seals_of_one_value_have_nothing_in_common() -> None:
    first, second = (ring(FIRST).seal(b"same", BOUND) for _ in range(2))
    assert first.nonce != second.nonce
    assert first.ciphertext != second.ciphertext


@given(line=st.text(st.characters(blacklist_characters="\n\r#"), min_size=1).filter(lambda text: text.strip()))
def test_a_line_that_is_no_key_is_refused_and_not_shown(line: str) -> None:
    secret = f"{line.strip()[:20]}-unusable"
    with pytest.raises(WrongState) as refused:
        parse_keys(f"{FIRST}\n{secret}\n", "file k")
    assert "-unusable" not in str(refused.value)
    assert FIRST not in str(refused.value)


def test_a_file_is_made_once_private_and_must_stay_so(tmp_path: Path) -> None:
    file = tmp_path / "credentials.key"
    make_key_file(file)
    text = file.read_text()
    make_key_file(file)
    assert file.read_text() == text
    assert file.stat().st_mode & 0o777 == 0o600
    sealed = KeyRing({FILE_VARIABLE: str(file)}).seal(b"x", BOUND)
    file.chmod(0o640)
    with pytest.raises(InvalidInput, match=r"others may read it \(mode 0640\)"):
        check_key_file(file)
    file.chmod(0o600)
    file.write_text(f"{SECOND}\n{text}")  # rotated: read again each time
    assert KeyRing({FILE_VARIABLE: str(file)}).open(sealed, BOUND, "it") == b"x"
    for bad, why in (
        ("", "it holds no key"),
        ("short\n", "line 1 is not 32 bytes"),
        ((SECOND + "\n") * 17, "more than 16"),
    ):
        file.write_text(bad)
        with pytest.raises(InvalidInput, match=why):
            check_key_file(file)
    file.unlink()
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        check_key_file(file)


def test_guesses_cannot_be_held_against_a_fingerprint_without_the_key() -> None:
    assert ring(FIRST).fingerprint(b"hunter2") == ring(FIRST).fingerprint(b"hunter2")
    assert ring(FIRST).fingerprint(b"hunter2") != ring(SECOND).fingerprint(b"hunter2")


def test_only_those_who_seal_or_open_are_given_keys(tmp_path: Path) -> None:
    directory, given = DataDirectory(tmp_path), {KEYS_VARIABLE: FIRST}
    options = MeshOptions(tmp_path)
    for role in ("broker", "registry", "gateway", "gateway-2"):
        assert credential_keys(role, options, directory, given) == {FILE_VARIABLE: None, KEYS_VARIABLE: None}
    for role in ("orchestrator", "orchestrator-2", "agent"):
        assert credential_keys(role, options, directory, given) == {}  # as it is inherited
        assert credential_keys(role, options, directory, {}) == {FILE_VARIABLE: str(tmp_path / "credentials.key")}
        named = MeshOptions(tmp_path, credential_keys=tmp_path / "mine")
        assert credential_keys(role, named, directory, given) == {FILE_VARIABLE: str(tmp_path / "mine")}
    assert without_keys({"PATH": "p", KEYS_VARIABLE: FIRST, FILE_VARIABLE: "f"}) == {"PATH": "p"}
