"""What a room shows at its door exists, is documented, and is all there is."""

from __future__ import annotations

import inspect

import pytest

import model


def test_every_exported_name_exists_and_is_documented():
    assert model.__all__ == sorted(model.__all__)
    for name in model.__all__:
        exported = getattr(model, name)
        assert inspect.getdoc(exported), name
        assert exported.__name__ == name


def test_the_contract_of_the_model_room_is_exported():
    assert {"XClip", "XClipConfig", "TextFeatures", "VideoFeatures", "Scores"} <= set(dir(model))
    for name in (
        "load",
        "from_official",
        "save",
        "tokenize",
        "encode_text",
        "encode_tokens",
        "encode_video",
        "score",
    ):
        assert inspect.getdoc(getattr(model.XClip, name)), name


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        model.Nothing  # noqa: B018
