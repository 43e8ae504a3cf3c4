"""Reward models beside the language model whose embeddings they judge.

- :func:`to_sequence_classification` writes a linear head and its language model as one folder that
  ``AutoModelForSequenceClassification`` loads, and with it TRL, OpenRLHF and what else takes such models.
- :class:`RewardPipeline` takes texts or conversations to rewards with any head, and can be saved and loaded.

Both need torch and transformers.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import hub
from ._engine import Engine, warn
from ._lensmith import __version__
from ._models import RewardModel
from ._optional import require

if TYPE_CHECKING:
    import torch

    from ._pairs import PairSet

__all__ = ["Export", "RewardPipeline", "linear_head", "to_sequence_classification"]

#: Pad tokens that tokenizers have ready, though they are not always set.
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<|padding|>", "<pad>", "[PAD]")
#: What is added where a tokenizer has none of them.
NEW_PAD_TOKEN = "<|pad|>"
#: Pairs whose order may change in BF16 without a warning, as a share.
TOLERATED = 0.01
NAMES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


# A linear head as a model for sequence classification


@dataclass(frozen=True)
class Export:
    """What :func:`to_sequence_classification` wrote."""

    #: The folder.
    folder: Path
    #: What to add to the rewards of the folder to get those of ``RewardModel.score``; 0 where its head has a
    #: bias. The Bradley-Terry loss does not see it, and neither does an advantage.
    constant: float
    #: Heads whose mean the folder's one head is.
    heads: int
    #: What the language model computes in, such as "bfloat16". The head is stored as float32.
    dtype: str
    #: The token that batches are padded with, and its number. No text ends with it.
    pad_token: str
    pad_token_id: int
    #: Distance of neighbouring BF16 numbers at the size of the folder's rewards: differences below it are
    #: lost when the model computes in BF16.
    bf16_step: float
    #: With ``pairs``: the share of them whose order BF16 changes or makes equal; else None.
    bf16_changed: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: AutoModelForSequenceClassification, {self.dtype}, one label",
            f"head: {'the mean of ' + str(self.heads) + ' heads' if self.heads > 1 else 'one head'}, float32",
            f"RewardModel.score = reward of the folder + {self.constant:.6g}",
            f"padded with {self.pad_token!r} ({self.pad_token_id})",
            f"in BF16 rewards are rounded to multiples of about {self.bf16_step:.2g}",
        ]
        if self.bf16_changed is not None:
            lines.append(
                f"in BF16 {100 * self.bf16_changed:.2g} % of the pairs change their order or become equal"
            )
        return "\n".join(lines)


def linear_head(reward_model: RewardModel) -> tuple[np.ndarray, float]:
    """The one linear head that a reward model of linear heads is: weights float32 [d], and the constant.

    Raises:
        ValueError: The heads are MLPs.
    """
    if reward_model.head != "linear":
        raise ValueError(
            "reward_model: expected linear heads, found MLPs, which AutoModelForSequenceClassification has "
            "no place for. Use lensmith.export.RewardPipeline or lensmith.rewards.reward_func, which take "
            "any head, or train with RewardModel.fit(head='linear')"
        )
    state = reward_model.state_dict()
    weight = state["score.weight"].astype(np.float64).mean(axis=0).astype(np.float32)
    return weight, float(state["score.bias"].astype(np.float64).mean())


def to_sequence_classification(
    reward_model: RewardModel | str | os.PathLike[str],
    base_model: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    pad_token: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    pairs: PairSet | None = None,
    card: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **save: Any,
) -> Export:
    """Writes a linear head and its language model as a folder for ``AutoModelForSequenceClassification``.

    The folder's reward of a text is w . h, where h is the hidden state of the text's last token in the last
    layer, after the final norm: the embedding that :func:`lensmith.embed` makes by default. It differs from
    ``RewardModel.score`` by one constant, since the head of most such models has no bias.

    Transformers finds the last token as the last one that is not the pad token. So the folder gets a pad
    token that no text ends with: the tokenizer's, unless that also marks the end of text, else another that
    it has, else a new one.

    Args:
        reward_model: A reward model of linear heads, or its folder; of an ensemble the mean is written.
        base_model: The language model that made the embeddings: a name or path, or a loaded transformers
            model.
        out: The folder.
        tokenizer: Name, path or tokenizer, where it is not the model's.
        pad_token: Another pad token; one that the tokenizer does not know is added.
        dtype: "f32", "bf16" or "f16", what a named model is loaded and written in; by default its own. The
            head is written as float32 in any case.
        revision: Branch, tag or commit of a named model.
        pairs: Preference pairs to measure on what BF16 loses.
        card: More fields for the YAML head of the model card, as ``{"license": "llama3.1"}``.
        model_kwargs: Further arguments of ``from_pretrained`` for a named model.
        **save: Further arguments of the model's ``save_pretrained``, such as ``max_shard_size``.

    Returns:
        The constant, the pad token, and what BF16 loses.

    Raises:
        ValueError: MLP heads; embeddings of another size, pooling or layer; a language model without such a
            class, or whose class does not judge the last token; adapters or quantised weights; a pad token
            that texts end with.
        ImportError: torch or transformers is missing.

    Warns:
        LensmithWarning: BF16 changes the order of more than 1 % of ``pairs``.
    """
    torch = require("torch", "to_sequence_classification()")
    require("transformers", "to_sequence_classification()")
    from .embed._model import load_tokenizer, model_name, parse_dtype

    if not isinstance(reward_model, RewardModel):
        reward_model = RewardModel.from_pretrained(reward_model)
    weight, constant = linear_head(reward_model)
    name = model_name(base_model)
    found = load_tokenizer(tokenizer, name, revision, model_kwargs)
    config = _base_config(base_model, revision, model_kwargs)
    _check_embedding(reward_model, config)
    pad, added = choose_pad_token(found, config, pad_token)
    found = copy.deepcopy(found)
    if added:
        found.add_special_tokens({"pad_token": pad})
    else:
        found.pad_token = pad
    found.padding_side = "right"
    pad_id = int(found.convert_tokens_to_ids(pad))

    model = _classifier(base_model, config, parse_dtype(dtype), revision, model_kwargs, pad_id)
    text_config = model.config.get_text_config()
    for part in {id(c): c for c in (model.config, text_config)}.values():
        part.pad_token_id = pad_id
    head = model.score
    rounded = torch.tensor(weight).reshape(1, -1)
    with torch.no_grad():
        head.weight = torch.nn.Parameter(rounded.to(head.weight.device, model.dtype), requires_grad=False)
        if head.bias is not None:
            head.bias = torch.nn.Parameter(
                torch.zeros_like(head.bias, dtype=model.dtype), requires_grad=False
            )
    _check_last_token(model, pad_id)
    head.weight = torch.nn.Parameter(rounded, requires_grad=False)
    if head.bias is not None:
        head.bias = torch.nn.Parameter(torch.tensor([constant], dtype=torch.float32), requires_grad=False)
        constant = 0.0

    changed = None if pairs is None else _changed_by_bf16(pairs, weight)
    export = Export(
        folder=Path(out),
        constant=constant,
        heads=reward_model.heads,
        dtype=str(model.dtype).removeprefix("torch."),
        pad_token=pad,
        pad_token_id=pad_id,
        bf16_step=_bf16_step(constant),
        bf16_changed=changed,
    )
    model.config.id2label, model.config.label2id = {0: "reward"}, {"reward": 0}
    model.config.problem_type = "regression"
    model.config.value_head_prefix = "score"
    model.config.lensmith = {
        "version": __version__,
        "heads": export.heads,
        "constant": constant,
        "head_dtype": "float32",
    }
    with _quiet():
        model.save_pretrained(out, **save)
    found.save_pretrained(out)
    hub.write_card(Path(out), _export_card(export, reward_model, name, card))
    if changed is not None and changed > TOLERATED:
        warn(
            f"in BF16 {100 * changed:.1f} % of the pairs change their order or become equal: load the folder "
            "with dtype=torch.float32, or use lensmith.rewards.reward_func, which computes the head in "
            "float32"
        )
    return export


def _base_config(base_model: Any, revision: str | None, model_kwargs: Mapping[str, Any] | None) -> Any:
    """The configuration of a language model, which the caller's model does not share."""
    if hasattr(base_model, "get_base_model"):
        raise ValueError(
            "base_model: expected a model without adapters, found PEFT's: use merge_and_unload() first"
        )
    if hasattr(base_model, "forward"):
        for what, value in (("revision", revision), ("model_kwargs", model_kwargs)):
            if value is not None:
                raise ValueError(f"{what}: expected None beside a loaded model, found {value!r}")
        config = copy.deepcopy(base_model.config)
    else:
        transformers = require("transformers", "to_sequence_classification()")
        trust = {k: v for k, v in (model_kwargs or {}).items() if k == "trust_remote_code"}
        config = transformers.AutoConfig.from_pretrained(
            str(base_model), revision=revision or "main", **trust
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("base_model: expected weights that are not quantised; load the original ones")
    return config


def _check_embedding(reward_model: RewardModel, config: Any) -> None:
    """Refuses embeddings that are not the last token's hidden state in the last layer."""
    text = config.get_text_config()
    if text.hidden_size != reward_model.dim:
        raise ValueError(
            f"base_model: expected hidden states of {reward_model.dim} values, as the reward model takes "
            f"them, found {text.hidden_size}: is it the model that made the embeddings?"
        )
    embedding = hub.known(reward_model).get("embedding", {})
    depth = text.num_hidden_layers
    expected = {
        "pooling": (["last"], "last", None),
        "layers": ([-1], [depth], None),
        "normalize": (False, None),
    }
    for key, allowed in expected.items():
        if embedding.get(key) not in allowed:
            raise ValueError(
                f"reward_model: expected embeddings with {key} {allowed[0]}, which is what sequence "
                f"classification reads, found {embedding[key]}: use lensmith.export.RewardPipeline"
            )


def choose_pad_token(tokenizer: Any, config: Any, wanted: str | None = None) -> tuple[str, bool]:
    """A pad token that no text ends with, and whether it is to be added to the tokenizer.

    Raises:
        ValueError: ``wanted`` is a token that texts end with.
    """
    taken = ending_tokens(tokenizer, config)
    known = tokenizer.get_vocab()
    if wanted is not None:
        if known.get(wanted) in taken:
            raise ValueError(
                "pad_token: expected a token that no text ends with, since the reward is read at the last "
                f"token that is not the pad token; found {wanted!r}, which marks the end or the beginning of "
                "a text"
            )
        return wanted, wanted not in known
    for token in (tokenizer.pad_token, *PAD_TOKENS):
        if token is not None and token in known and known[token] not in taken:
            return token, False
    return NEW_PAD_TOKEN, True


def ending_tokens(tokenizer: Any, config: Any) -> set[int]:
    """Numbers of the tokens that mark beginnings and ends, and of those in a written conversation."""
    text = config.get_text_config()
    found: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.sep_token_id,
        tokenizer.cls_token_id,
        getattr(text, "eos_token_id", None),
        getattr(text, "bos_token_id", None),
    ):
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = tokenizer.apply_chat_template(turns, tokenize=False)
        found.update(tokenizer(written, add_special_tokens=False)["input_ids"])
    return found


def _classifier(
    base_model: Any,
    config: Any,
    dtype: Any,
    revision: str | None,
    model_kwargs: Mapping[str, Any] | None,
    pad_id: int,
) -> Any:
    """The model for sequence classification on a language model; with room for its pad token."""
    import torch
    import transformers

    from .embed._model import body

    auto, config.num_labels = transformers.AutoModelForSequenceClassification, 1
    if type(config) not in auto._model_mapping:
        raise ValueError(
            "base_model: expected a model with a class for sequence classification, found "
            f"{type(config).__name__} without: use lensmith.export.RewardPipeline"
        )
    if hasattr(base_model, "forward"):
        if dtype is not None:
            raise ValueError(f"dtype: expected None beside a loaded model, found {dtype}: convert the model")
        with torch.device("meta"):
            model = auto.from_config(config)
        inner = body(base_model)
        if pad_id >= len(inner.get_input_embeddings().weight):
            inner = copy.deepcopy(inner)
        place = list(inner.parameters())[-1]
        head = getattr(model, "score", None)
        if isinstance(head, torch.nn.Linear):
            model.score = torch.nn.Linear(head.in_features, 1, bias=head.bias is not None).to(place)
        setattr(model, model.base_model_prefix, inner)
        model.config._name_or_path = base_model.config._name_or_path
    else:
        options = {**(model_kwargs or {}), "dtype": dtype or "auto", "num_labels": 1}
        with _quiet():
            model = auto.from_pretrained(str(base_model), revision=revision or "main", **options)
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
        raise ValueError(
            "base_model: expected a class for sequence classification with a linear layer `score`, as "
            f"decoders have it, found {type(model).__name__}: use lensmith.export.RewardPipeline"
        )
    rows = len(model.get_input_embeddings().weight)
    if pad_id >= rows:
        model.resize_token_embeddings(pad_id + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[rows:] = 0
    return model


def _check_last_token(model: Any, pad_id: int) -> None:
    """Refuses a model whose rewards of two padded texts are not the head on their last hidden states."""
    import torch

    rows = len(model.get_input_embeddings().weight)
    tokens = [i for i in range(min(rows, 64)) if i != pad_id]
    made = torch.Generator().manual_seed(0)
    ids = torch.tensor(tokens)[torch.randint(len(tokens), (2, 6), generator=made)]
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = pad_id, 0
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].float()
            states = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state
            expected = model.score(states[[0, 1], [5, 3]])[:, 0].float()
    finally:
        for module in training:
            module.training = True
    scale = float((states[[0, 1], [5, 3]].float() * model.score.weight.float()).norm()) + 1e-6
    if not torch.allclose(rewards, expected, rtol=0, atol=0.02 * scale):
        raise ValueError(
            "base_model: expected a class that judges the last token's hidden state, found "
            f"{type(model).__name__}, which does something else: use lensmith.export.RewardPipeline"
        )


def _bf16_step(size: float) -> float:
    """Distance of neighbouring BF16 numbers of that size: they have 8 significant bits."""
    return 0.0 if size == 0 else 2.0 ** (math.floor(math.log2(abs(size))) - 7)


def _changed_by_bf16(pairs: PairSet, weight: np.ndarray) -> float:
    """The share of pairs whose order changes, or is lost, when embeddings, weights and rewards are BF16."""
    import torch

    if pairs.dim != len(weight):
        raise ValueError(f"pairs: expected embeddings of {len(weight)} values, found {pairs.dim}")
    exact, rounded = torch.tensor(weight), torch.tensor(weight).bfloat16()
    changed, block = 0, 4096
    for start in range(0, len(pairs), block):
        part = pairs[start : start + block]
        chosen, rejected = part.chosen.torch(), part.rejected.torch()
        margin = (chosen.float() - rejected.float()) @ exact
        rewards = [torch.nn.functional.linear(x.bfloat16(), rounded[None])[:, 0] for x in (chosen, rejected)]
        changed += int((margin.sign() != (rewards[0] - rewards[1]).float().sign()).sum())
    return changed / len(pairs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the head is new, and without its bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _export_card(export: Export, reward_model: RewardModel, base: str, card: Mapping[str, Any] | None) -> str:
    record = hub.known(reward_model)
    embedding = {"model": base} if base else record.get("embedding", {})
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["lensmith", "reward-model", "preference"],
    }
    named = hub.base_model(embedding)
    if named:
        head["base_model"] = named
    name = export.folder.name
    of = f"`{named}`" if named else "a language model"
    heads = f"the mean of {export.heads} linear heads" if export.heads > 1 else "a linear head"
    constant = (
        f"RewardModel.score of lensmith is this reward plus {export.constant:.9g}: the head has no bias. "
        "Only differences of rewards mean something, and the constant is in none of them."
        if export.constant
        else "It is RewardModel.score of lensmith."
    )
    use = "\n".join(
        [
            "```python",
            "import torch",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'model = AutoModelForSequenceClassification.from_pretrained("{name}", dtype=torch.float32)',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            'batch = tokenizer(["a prompt and a response"], return_tensors="pt", padding=True)',
            "with torch.inference_mode():",
            "    rewards = model(**batch).logits[:, 0]",
            "```",
        ]
    )
    written = record.get("embedding", {}).get("template")
    limits = [
        f"Rewards are read at the last token that is not `{export.pad_token}`, the pad token. Another pad "
        "token, above all one that texts end with, gives other rewards.",
        f"The weights of the language model are {export.dtype}, those of the head float32. Loaded without "
        "`dtype=torch.float32`, the head becomes what the language model is; in BF16 rewards are rounded to "
        f"multiples of about {export.bf16_step:.2g}"
        + (
            "."
            if export.bf16_changed is None
            else f", which changes {100 * export.bf16_changed:.2g} % of the pairs that were tried."
        ),
        "Texts must be written as those that the head was trained on"
        + (f" (template: {written})." if written else "."),
        "Only differences of rewards of responses to one prompt mean something.",
    ]
    parts = [
        hub.yaml_head(head, card),
        hub.MARK,
        f"# {name}",
        f"A reward model: {heads} on the hidden state of the last token of {of}, after its final norm. "
        f"{constant}",
        "## Use",
        use,
        *hub.training_parts(record),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# Any head, with its language model


class RewardPipeline:
    """Rewards of texts or conversations: a language model, its tokenizer and a reward model of any head.

    Texts become embeddings as :func:`lensmith.embed` makes them, with the same options, which must be those
    that the reward model was trained with. Where the reward model has a record of them
    (``save_pretrained(embedding=...)``), they are compared.

    Args:
        base_model: Name or path of the language model, or a loaded transformers model.
        reward_model: The reward model, or its folder or repository.
        tokenizer: Name, path or tokenizer, where it is not the model's.
        pooling: As of :func:`lensmith.embed`.
        layers: As of :func:`lensmith.embed`.
        normalize: As of :func:`lensmith.embed`.
        dtype: As of :func:`lensmith.embed`.
        max_length: As of :func:`lensmith.embed`.
        truncation_side: As of :func:`lensmith.embed`.
        batch_tokens: Most tokens of a batch, padding included.
        device: Where a named model runs; by default the current GPU, else the CPU. A loaded one stays where
            it is.
        revision: Branch, tag or commit of a named model.
        template: As of :func:`lensmith.embed`.
        template_args: As of :func:`lensmith.embed`.
        model_kwargs: Further arguments of ``from_pretrained`` for a named model.
        engine: The device for the head.

    Raises:
        ValueError: Options out of range, or embeddings of another size than the reward model takes.
        ImportError: torch or transformers is missing.

    Warns:
        LensmithWarning: The reward model's record names other options.
    """

    def __init__(
        self,
        base_model: Any,
        reward_model: RewardModel | str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        pooling: str | Sequence[str] = "last",
        layers: Sequence[int] | str | None = None,
        normalize: bool = False,
        dtype: Any = None,
        max_length: int | None = None,
        truncation_side: str = "left",
        batch_tokens: int = 16384,
        device: Any = None,
        revision: str | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
    ) -> None:
        require("torch", "RewardPipeline")
        require("transformers", "RewardPipeline")
        from .embed import _model
        from .embed._render import Renderer

        if not isinstance(reward_model, RewardModel):
            reward_model = RewardModel.from_pretrained(reward_model)
        self.reward_model, self.engine = reward_model, engine
        self._name, self._revision = _model.model_name(base_model), revision
        self._own_tokenizer, self._template = tokenizer is not None, template
        found = _model.load_tokenizer(tokenizer, self._name, revision, model_kwargs)
        self._renderer = Renderer(found, template, template_args, self._name or "this model")
        poolings, which = _model.parse_pooling(pooling, layers)
        wanted = _model.parse_dtype(dtype)
        model = _model.load_model(
            base_model, "AutoModel", dtype=wanted, device=device, revision=revision, model_kwargs=model_kwargs
        )
        self._encoder = _model.Embedder(
            model,
            found,
            pooling=poolings,
            layers=which,
            normalize=normalize,
            dtype=wanted,
            max_length=max_length,
            truncation_side=truncation_side,
            batch_tokens=batch_tokens,
            padding_side="right",
        )
        if self._encoder.dim != reward_model.dim:
            raise ValueError(
                f"base_model: expected embeddings of {reward_model.dim} values, as the reward model takes "
                f"them, found {self._encoder.dim}: are model, pooling and layers those that it was trained "
                "with?"
            )
        self._compare()

    @property
    def base_model(self) -> Any:
        """The language model."""
        return self._encoder.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._encoder.tokenizer

    def __call__(self, responses: Any, prompts: Sequence[Any] | None = None) -> np.ndarray:
        """Rewards, float32 [n].

        Args:
            responses: n texts, or n conversations (lists of messages); a single text or conversation counts
                as one.
            prompts: n prompts, as texts or lists of messages, where ``responses`` do not begin with them.

        Raises:
            InvalidRow: A ValueError: an empty response, or turns that the chat template refuses.
            ValueError: Another number of prompts, or embeddings that are not finite.
        """
        rewards: np.ndarray = self.reward_model.score(self.embed(responses, prompts), engine=self.engine)
        return rewards

    def spread(self, responses: Any, prompts: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and their standard deviations over the heads, float32 [n] each; of one head 0."""
        return self.reward_model.spread(self.embed(responses, prompts), engine=self.engine)

    def embed(self, responses: Any, prompts: Sequence[Any] | None = None) -> torch.Tensor:
        """Embeddings [n, d], a tensor on the CPU, of what :meth:`__call__` takes."""
        return self.embed_written(self.written(responses, prompts))

    def written(self, responses: Any, prompts: Sequence[Any] | None = None) -> list[tuple[str, bool]]:
        """What :meth:`__call__` takes as the texts that are embedded, each with whether the tokenizer adds
        its special tokens.
        """
        from .embed._render import InvalidRow

        items = _several(responses)
        before: Sequence[Any] = [None] * len(items) if prompts is None else _several(prompts)
        if len(before) != len(items):
            raise ValueError(f"prompts: expected {len(items)}, one for each response, found {len(before)}")
        texts = []
        for i, (prompt, response) in enumerate(zip(before, items, strict=True)):
            try:
                texts.append(self._renderer.render(prompt, response))
            except InvalidRow as error:
                raise InvalidRow(f"response {i}: {error}") from None
        return texts

    def embed_written(self, texts: Sequence[tuple[str, bool]]) -> torch.Tensor:
        """Embeddings [n, d] of texts as they are, each with whether the tokenizer adds its special tokens."""
        import torch

        if not texts:
            return torch.empty((0, self._encoder.dim), dtype=self._encoder.dtype)
        vectors: torch.Tensor = self._encoder.vectors(list(texts), lambda _: None)[0]
        return vectors

    @property
    def settings(self) -> dict[str, Any]:
        """How texts become embeddings, under the names of ``embed.json``; what a saved folder keeps."""
        from .embed._model import DTYPES, tokenizer_digest, weights_digest

        e = self._encoder
        return {
            "model": self._name,
            "revision": self._revision,
            "commit": getattr(e.model.config, "_commit_hash", None),
            "pooling": list(e.pooling),
            "layers": list(e.layers),
            "normalize": e.normalize,
            "dtype": DTYPES[str(e.dtype).removeprefix("torch.")],
            "dim": e.dim,
            "max_length": e.max_length,
            "truncation_side": e.truncation_side,
            "template": self._renderer.identity(),
            "template_argument": self._template,
            "template_args": self._renderer.args,
            "tokenizer": tokenizer_digest(e.tokenizer),
            "own_tokenizer": self._own_tokenizer,
            "weights": weights_digest(e.body),
        }

    def _compare(self) -> None:
        """Warns of settings that are not those of the reward model's record."""
        recorded = hub.known(self.reward_model).get("embedding")
        if not recorded:
            return
        own = self.settings
        keys = ["pooling", "layers", "normalize", "truncation_side", "template", "tokenizer"]
        if recorded.get("dtype") == own["dtype"]:
            keys.append("weights")
        depth = self._encoder.depth + 1
        if isinstance(recorded.get("layers"), list) and all(isinstance(i, int) for i in recorded["layers"]):
            recorded = {**recorded, "layers": [i % depth for i in recorded["layers"]]}
        differ = [k for k in keys if recorded.get(k) is not None and recorded[k] != own[k]]
        if differ:
            what = "; ".join(f"{k}: {recorded[k]}, here {own[k]}" for k in differ)
            warn(f"the reward model was trained on other embeddings: {what}")

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        figures: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the reward model with the language model's name and all settings into a folder.

        The language model itself is not written. A tokenizer that is not its own is, into ``tokenizer/``.

        Args:
            folder: The folder.
            figures: As of ``RewardModel.save_pretrained``.
            card: As of ``RewardModel.save_pretrained``.

        Raises:
            ValueError: The language model was not loaded from a name or path.
        """
        self._save(Path(folder), Path(folder).name, figures, card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        figures: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        commit_message: str = "Upload lensmith reward model",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes; gives the address of the commit."""
        return hub.upload(
            lambda folder, name: self._save(folder, name, figures, card),
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
        )

    def _save(self, folder: Path, name: str, figures: Any, card: Any) -> None:
        if not self._name:
            raise ValueError(
                "base_model: expected one that was loaded from a name or path, so that it can be found "
                "again, found none: save it with its save_pretrained(), and make the pipeline of that folder"
            )
        self.reward_model._save_pretrained(
            folder, embedding=self.settings, figures=figures, card=card, name=name
        )
        if self._own_tokenizer:
            self.tokenizer.save_pretrained(folder / "tokenizer")

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        base_model: Any = None,
        tokenizer: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Self:
        """A pipeline of a folder or repository with a reward model that says which language model it needs.

        That is one that :meth:`save_pretrained` wrote, or ``RewardModel.save_pretrained(embedding=...)``.

        Args:
            name_or_folder: The folder, else the repository as "owner/name".
            base_model: The language model, where it is not found under the name that is recorded.
            tokenizer: Another tokenizer.
            revision: Branch, tag or commit of the repository.
            token: Access token of the Hub.
            **options: Options of the class; they win over those recorded.

        Raises:
            ValueError: No language model is recorded, or a template that is not.
        """
        reward_model = RewardModel.from_pretrained(name_or_folder, revision=revision, token=token)
        recorded = hub.known(reward_model).get("embedding")
        if not recorded:
            raise ValueError(
                f"{os.fspath(name_or_folder)}: expected a reward model that says which language model made "
                "its embeddings, found none: use RewardPipeline(base_model, reward_model), or save it with "
                "embedding="
            )
        kept: dict[str, Any] = {
            key: recorded[key]
            for key in ("pooling", "layers", "normalize", "max_length", "truncation_side", "template_args")
            if recorded.get(key) is not None
        }
        if not hasattr(base_model, "forward"):
            kept["dtype"] = NAMES.get(recorded.get("dtype", ""))
        kept["template"] = _template(recorded, options)
        if base_model is None:
            base_model = recorded["model"]
            commit = recorded.get("commit") or recorded.get("revision")
            kept["revision"] = None if Path(base_model).is_dir() else commit
        if tokenizer is None and recorded.get("own_tokenizer"):
            tokenizer = _own_tokenizer(name_or_folder, revision, token)
        return cls(base_model, reward_model, tokenizer, **{**kept, **options})


def _several(items: Any) -> list[Any]:
    """Texts or conversations as a list; one of either as a list of one."""
    if isinstance(items, str) or (isinstance(items, list) and items and isinstance(items[0], Mapping)):
        return [items]
    return list(items)


def _template(recorded: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The template of a record: as it was given, else by its mode."""
    if "template" in options:
        return None
    if "template_argument" in recorded:
        return recorded["template_argument"]  # type: ignore[no-any-return]
    mode = str(recorded.get("template", "plain")).split(" ")[0]
    if mode == "form":
        raise ValueError(
            "template: expected the text with {response} that embeddings were made with, found none"
        )
    return None if mode == "plain" else mode


def _own_tokenizer(name_or_folder: Any, revision: str | None, token: Any) -> Any:
    transformers = require("transformers", "RewardPipeline")
    path = Path(name_or_folder)
    if path.is_dir():
        return transformers.AutoTokenizer.from_pretrained(path / "tokenizer")
    return transformers.AutoTokenizer.from_pretrained(
        os.fspath(name_or_folder), subfolder="tokenizer", revision=revision or "main", token=token
    )
