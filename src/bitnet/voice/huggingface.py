"""A teacher from a Hugging Face folder or hub name: a causal language model through transformers.

A tokenizer with a chat template gets chat messages; another gets style, message and a label as running text.
Weights are read from safetensors only, never from a pickle, and no code but that of transformers is run.
Which tokens are drawn depends on the seeds, the batch and the machine; the journal keeps what was drawn.
Not here: the project's own runs, which are not causal models of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.voice.teachers import Reply, Request, TeacherOptions, messages


class HuggingFaceTeacher:
    """A model in this process."""

    def __init__(self, name: str, options: TeacherOptions) -> None:
        """Raises BitnetError if the model cannot be had."""
        self.name, self.options = options.model or name, options
        self._tokenizer, self._model = _loaded(self.name, options.device)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token_id is None:
            raise DataError(f"the tokenizer of {self.name} has no end-of-text token; choose another model")
        self._tokenizer.padding_side = "left"

    @property
    def batch_size(self) -> int:
        """Requests that are generated together."""
        return self.options.batch_size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "huggingface",
            "name": self.name,
            "temperature": self.options.temperature,
            "max_new_tokens": self.options.max_new_tokens,
        }

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """One generation for the whole batch."""
        if not requests:
            return []
        inputs = self._tokenizer(
            [self._text(request) for request in requests],
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self._tokenizer.chat_template,  # the template has them
        ).to(self._model.device)
        inputs.pop("token_type_ids", None)

        width = inputs["input_ids"].shape[1]
        new_tokens = self.options.max_tokens(entries=any(request.entries for request in requests))
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and width >= limit:
            raise DataError(
                f"a request has {width} tokens, and the teacher {self.name} reads at most {limit}; shorten "
                "the voice's style"
            )
        ids = self._generate(
            inputs, requests[0].seed, new_tokens if limit is None else min(new_tokens, limit - width)
        )
        return [self._reply(row) for row in ids[:, width:].tolist()]

    def _generate(self, inputs: Any, seed: int, new_tokens: int) -> Any:
        """Token ids of shape (requests, prompt + new tokens), int64."""
        import torch

        drawn = {"do_sample": True, "temperature": self.options.temperature}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            return self._model.generate(
                **inputs,
                **(drawn if self.options.temperature else {"do_sample": False}),
                max_new_tokens=new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )

    def _reply(self, ids: list[int]) -> Reply:
        ends = self._model.generation_config.eos_token_id
        stops = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return Reply(
            self._tokenizer.decode(ids, skip_special_tokens=True), ended=any(token in stops for token in ids)
        )

    def _text(self, request: Request) -> str:
        if not self._tokenizer.chat_template:
            return f"{request.voice.style}\n\nHuman: {request.text}\nAnswer:"
        text: str = self._tokenizer.apply_chat_template(
            messages(request), tokenize=False, add_generation_prompt=True
        )
        return text


def _loaded(name: str, device: str) -> tuple[Any, Any]:
    """Tokenizer and model, from a folder or the hub."""
    try:
        from huggingface_hub.utils import logging
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ConfigError(
            "a Hugging Face teacher needs transformers; install it with: pip install 'bitnet[teacher]', or "
            "say --teacher rules"
        ) from None
    # it logs every attempt to reach the hub; the errors below say what counts
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        return tokenizer, model.to(device).eval()
    except ImportError as error:  # the original BitNet asks for accelerate, others for packages of their own
        raise ConfigError(
            f"the teacher {name!r} needs more packages ({_short(error)}); install them with: pip install "
            "'bitnet[teacher]', or say --teacher rules"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise NotFoundError(
            f"the teacher {name!r} cannot be loaded ({_short(error)}); give a folder or hub name of a causal "
            "model, an endpoint, or --teacher rules"
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:110]
