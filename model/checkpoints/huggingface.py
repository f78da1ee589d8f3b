"""What the package transformers supplies: tokenizers, and configurations of text towers. The extra `hf`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.hub import HOW_TO_FETCH, is_unreachable, reason
from model.config import XClipConfig
from model.errors import SpecError
from model.tokenization import HubTokenizer, TextTokenizer, Tokenizer

TOKENIZER_FOLDER = "tokenizer"
"""In a saved model's directory, where its tokenizer has files of its own."""

_ABOUT_FILES = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
"""Fields of a `config.json` that say where it comes from and change nothing that is computed."""


def make_tokenizer(config: XClipConfig, directory: Path | None = None) -> TextTokenizer:
    """The tokenizer of a config.

    Args:
        config: Names it.
        directory: Of its files, where it has any and they are at hand; else they are fetched by the name.
    """
    architecture = config.architecture
    if architecture.tokenizer is None:
        return Tokenizer(config.num_tokens, config.vocabulary)
    return HubTokenizer(
        directory or architecture.tokenizer,
        config.num_tokens,
        architecture.tokenizer_options,
        explained(f"the tokenizer {architecture.tokenizer}"),
    )


def text_tower_configuration(name: str) -> Mapping[str, Any]:
    """The `config.json` of a text tower of transformers, by its repository on the Hub or its directory.

    Raises:
        SpecError: transformers is not installed, or the file cannot be fetched.
    """
    try:
        from transformers import PretrainedConfig

        values, _ = PretrainedConfig.get_config_dict(name)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise explained(f"the text tower {name}")(error) from None
    return {field: value for field, value in values.items() if field not in _ABOUT_FILES}


def explained(what: str) -> Callable[[Exception], SpecError]:
    """Makes of an error the one line that says what to do."""

    def explain(error: Exception) -> SpecError:
        if isinstance(error, ImportError):
            return SpecError(
                f"{what} needs the package {error.name or 'transformers'}:"
                " install xclip-search with the extra hf, as in pip install 'xclip-search[hf]'"
            )
        return SpecError(
            f"{what} cannot be loaded: {reason(error)}" + (HOW_TO_FETCH if is_unreachable(error) else "")
        )

    return explain
