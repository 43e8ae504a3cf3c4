"""Language models: texts to tokens, batches bounded by tokens, hidden states to one vector a text.

Batches are padded by this module and not by the tokenizer, and what is taken from hidden states goes by the
attention mask, so that neither the tokenizer's padding side nor a pad token that is also the end of text
plays a part. Positions on the right of a causal model's tokens cannot change them, and their position numbers
are right without help: padding is on the right unless `padding_side` says otherwise.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._optional import require
from ._render import Text

POOLINGS = ("last", "mean", "first")
#: Names for a pooling and layers together.
PRESETS: dict[str, tuple[tuple[str, ...], Any]] = {
    "paper": (("last",), (-1,)),
    "wide": (("last", "mean"), "quarters"),
}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPE_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"} | {name: name for name in DTYPES}


def parse_pooling(pooling: str | Sequence[str], layers: Any) -> tuple[tuple[str, ...], Any]:
    """Pooling and layers with presets resolved: ("last+mean", None) gives (("last", "mean"), (-1,))."""
    if isinstance(pooling, str) and pooling in PRESETS:
        names, preset = PRESETS[pooling]
        return names, preset if layers is None else layers
    names = tuple(pooling.replace(",", "+").split("+") if isinstance(pooling, str) else pooling)
    names = tuple("first" if name == "cls" else name for name in names)
    if not names or set(names) - set(POOLINGS):
        presets = " or ".join(map(repr, PRESETS))
        expected = f"'last', 'mean', 'first' (or 'cls'), some of them joined by '+', or {presets}"
        raise ValueError(f"pooling: expected {expected}; found {pooling!r}")
    return names, (-1,) if layers is None else layers


def resolve_layers(layers: Any, depth: int) -> list[int]:
    """Layers as numbers from 0 (the token embeddings) to `depth` (the last layer, after the final norm).

    Takes numbers, negative ones from the end, or "quarters": the last layer and those at 3/4, 1/2 and 1/4 of
    the depth.
    """
    if layers == "quarters":
        return list(dict.fromkeys(max(1, round(depth * share / 4)) for share in (4, 3, 2, 1)))
    if isinstance(layers, int):
        layers = [layers]
    if isinstance(layers, str) or not layers or not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"layers: expected numbers such as [-1, -9], or 'quarters', found {layers!r}")
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layers: expected {-depth - 1} to {depth} for a model of {depth} layers, found {layer}"
            )
    return [layer % (depth + 1) for layer in layers]


def parse_dtype(dtype: Any) -> Any:
    """A torch dtype, or None for "auto"."""
    torch = require("torch", "lm.embed()")
    if dtype is None or dtype == "auto":
        return None
    name = DTYPE_NAMES.get(str(dtype).removeprefix("torch."))
    if name is None:
        raise ValueError(f"dtype: expected f32, f16, bf16 or None (the model's), found {dtype!r}")
    return getattr(torch, name)


def best_device() -> str:
    """The first GPU, else the CPU."""
    torch = require("torch", "lm.embed()")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def model_name(model: Any) -> str:
    """The name or path of a model, or that a loaded one came from; empty where that is not known."""
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return str(model)
    if hasattr(model, "config") and hasattr(model, "forward"):
        return str(getattr(model.config, "_name_or_path", "") or "")
    raise TypeError(f"model: expected a name, a path or a transformers model, found {type(model).__name__}")


def load_model(
    model: Any,
    auto: str,
    *,
    dtype: Any,
    device: Any,
    revision: str | None,
    model_kwargs: Mapping[str, Any] | None,
) -> Any:
    """A model in evaluation mode. Loads names and paths through the `auto` class of transformers."""
    transformers = require("transformers", "lm.embed()")
    if hasattr(model, "forward"):
        for what, value in (("device", device), ("revision", revision), ("model_kwargs", model_kwargs)):
            if value is not None:
                raise ValueError(
                    f"{what}: expected None beside a loaded model, found {value!r}: load the model so"
                )
        return model
    options = dict(model_kwargs or {}) | {"dtype": dtype or "auto"}
    if device == "auto":
        options["device_map"] = "auto"
    loaded = getattr(transformers, auto).from_pretrained(str(model), revision=revision or "main", **options)
    if "device_map" not in options:
        loaded = loaded.to(device or best_device())
    return loaded.eval()


def load_tokenizer(
    tokenizer: Any, name: str, revision: str | None, model_kwargs: Mapping[str, Any] | None
) -> Any:
    """The tokenizer that was passed or named, else that of the model called `name`."""
    if tokenizer is not None and not isinstance(tokenizer, str) and not hasattr(tokenizer, "__fspath__"):
        return tokenizer
    if tokenizer is None and not name:
        raise ValueError(
            "tokenizer: expected one beside a model that was not loaded from a name or path, found None"
        )
    trust = {key: value for key, value in (model_kwargs or {}).items() if key == "trust_remote_code"}
    auto = require("transformers", "lm.embed()").AutoTokenizer
    if tokenizer is not None:
        return auto.from_pretrained(str(tokenizer), **trust)
    return auto.from_pretrained(name, revision=revision or "main", **trust)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over vocabulary, rules and special tokens, shortened. Padding and truncation are not in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    else:
        rules = [type(tokenizer).__name__, tokenizer.get_vocab()]
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()[:16]


def weights_digest(module: Any) -> str:
    """SHA-256 over names, shapes and up to 512 values of every tensor of a model, shortened.

    Tells two models of one name apart without reading all of them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)};".encode())
        if tensor.device.type == "meta" or tensor.numel() == 0:
            continue
        flat = tensor.detach().reshape(-1)
        digest.update(flat[:: max(1, flat.numel() // 512)][:512].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def body(model: Any) -> Any:
    """The part of a model that makes hidden states: all but its head, or the encoder of an encoder-decoder.

    Adapters of PEFT are within the layers and stay.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()
    return getattr(model, "base_model", model)


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Texts, longest first, in batches of at most `budget` tokens with padding; of one text at least."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class TextModel:
    """A model and its tokenizer; subclasses say what becomes of a batch's hidden states."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int | None,
        truncation_side: str,
        batch_tokens: int,
        padding_side: str,
    ) -> None:
        self.torch = require("torch", "lm.embed()")
        self.model, self.body, self.tokenizer = model, body(model), tokenizer
        self.parameters = inspect.signature(self.body.forward).parameters
        text_config = getattr(self.body.config, "get_text_config", lambda: self.body.config)()
        self.depth = int(text_config.num_hidden_layers)
        self.width = int(text_config.hidden_size)
        self.max_length = self._limit(text_config, max_length)
        if truncation_side not in ("left", "right"):
            raise ValueError(f"truncation_side: expected 'left' or 'right', found {truncation_side!r}")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected 1 or more, found {batch_tokens}")
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side: expected 'right' or 'left', found {padding_side!r}")
        if padding_side == "left" and ("position_ids" not in self.parameters or self._offset() is not None):
            why = f"{type(self.body).__name__} does not take plain position_ids"
            raise ValueError(f"padding_side: expected 'right', since {why}; found 'left'")
        self.truncation_side, self.padding_side = truncation_side, padding_side
        self.batch_tokens = batch_tokens
        self.vocabulary = int(self.body.get_input_embeddings().weight.shape[0])
        marks = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.pad = next((i for i in marks if i is not None and i < self.vocabulary), 0)

    def _offset(self) -> int | None:
        """The padding index from which RoBERTa and its kin count their positions."""
        return getattr(getattr(self.body, "embeddings", None), "padding_idx", None)

    def _limit(self, config: Any, max_length: int | None) -> int | None:
        positions, offset = getattr(config, "max_position_embeddings", None), self._offset()
        if positions is not None and offset is not None:
            positions -= offset + 1
        if max_length is not None:
            if max_length < 2 or (positions is not None and max_length > positions):
                expected = f"2 to {positions}, the model's positions" if positions else "2 or more"
                raise ValueError(f"max_length: expected {expected}, found {max_length}")
            return max_length
        stated = getattr(self.tokenizer, "model_max_length", None)
        limits = [n for n in (positions, stated) if n is not None and 0 < n < 10**9]
        return int(min(limits)) if limits else None

    def tokens(self, texts: Sequence[Text]) -> tuple[list[list[int]], int]:
        """Token numbers of texts, and how many texts were too long and were cut."""
        found: list[list[int]] = [[]] * len(texts)
        for special in (True, False):
            which = [i for i, text in enumerate(texts) if text[1] is special]
            if which:
                made = self.tokenizer(
                    [texts[i][0] for i in which],
                    add_special_tokens=special,
                    padding=False,
                    truncation=False,
                    verbose=False,
                )
                for i, row in zip(which, made["input_ids"], strict=True):
                    found[i] = list(row)
        start, truncated = self.tokenizer.bos_token_id, 0
        for i, row in enumerate(found):
            if start is not None and row[:2] == [start, start]:
                row = row[1:]
            if not row:
                raise ValueError(f"text {i}: expected tokens, found none for {texts[i][0][:40]!r}")
            if max(row) >= self.vocabulary:
                other = f"{max(row)}: the tokenizer is that of another model"
                raise ValueError(f"text {i}: expected tokens below {self.vocabulary}, found {other}")
            if self.max_length is not None and len(row) > self.max_length:
                row, truncated = self._cut(row, self.max_length), truncated + 1
            found[i] = row
        return found, truncated

    def _cut(self, row: list[int], length: int) -> list[int]:
        """The end of a text behind its BOS or CLS token, or its beginning before its SEP or EOS token."""
        t = self.tokenizer
        if self.truncation_side == "left":
            head = row[:1] if row[0] in (t.bos_token_id, t.cls_token_id) else []
            return head + row[len(row) - length + len(head) :]
        tail = row[-1:] if row[-1] in (t.sep_token_id, t.eos_token_id) else []
        return row[: length - len(tail)] + tail

    def vectors(self, texts: Sequence[Text], done: Callable[[int], None]) -> tuple[Any, int]:
        """One vector a text, `[n, width]` on the CPU in the order of `texts`, and how many texts were cut.

        `done` is told the number of texts of every batch. Raises ValueError for a vector that is not finite.
        """
        rows, truncated = self.tokens(texts)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            return self._all(rows, done), truncated
        finally:
            for module in training:
                module.training = True

    def _all(self, rows: list[list[int]], done: Callable[[int], None]) -> Any:
        """One vector of each row of tokens, `[n, width]` on the CPU in the order of `rows`."""
        out = None
        for batch in token_batches([len(row) for row in rows], self.batch_tokens):
            found = self._run([rows[i] for i in batch])
            if out is None:
                out = self.torch.empty((len(rows), found.shape[1]), dtype=found.dtype)
            finite = found.isfinite().all(dim=1)
            if not bool(finite.all()):
                text = batch[int(finite.logical_not().nonzero()[0])]
                half = found.dtype == self.torch.float16
                hint = ": float16 ends at 65,504, try dtype='bf16'" if half else ""
                raise ValueError(f"text {text}: expected finite values, found NaN or infinity{hint}")
            out[batch] = found
            done(len(batch))
        return out

    def _run(self, rows: list[list[int]]) -> Any:
        """The vectors of one batch; in halves where the device's memory does not hold it."""
        try:
            return self._batch(rows).cpu()
        except self.torch.OutOfMemoryError:
            if len(rows) == 1:
                hint = "lower max_length, or use a larger device"
                raise MemoryError(
                    f"one text of {len(rows[0])} tokens does not fit the device's memory: {hint}"
                ) from None
        if self.torch.cuda.is_available():
            self.torch.cuda.empty_cache()
        half = (len(rows) + 1) // 2
        return self.torch.cat([self._run(rows[:half]), self._run(rows[half:])])

    def _batch(self, rows: list[list[int]]) -> Any:
        torch = self.torch
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            at = slice(width - len(row), width) if self.padding_side == "left" else slice(0, len(row))
            ids[i, at] = torch.tensor(row)
            mask[i, at] = 1
        device = next(self.body.parameters()).device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self.padding_side == "left":
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            return self.take(inputs)

    def states(self, inputs: dict[str, Any], layers: Sequence[int]) -> list[Any]:
        """Hidden states `[b, t, width]` of layers; that of the last layer is after the model's final norm."""
        options: dict[str, Any] = {"return_dict": True}
        if "use_cache" in self.parameters:
            options["use_cache"] = False
        every = any(layer != self.depth for layer in layers)
        out = self.body(**inputs, **options, **({"output_hidden_states": True} if every else {}))
        if every and len(out.hidden_states) != self.depth + 1:
            found = f"{len(out.hidden_states)} of {type(self.body).__name__}"
            raise ValueError(
                f"layers: expected {self.depth + 1} hidden states, found {found}: use layers=[-1]"
            )
        return [
            out.last_hidden_state if layer == self.depth else out.hidden_states[layer] for layer in layers
        ]

    def take(self, inputs: dict[str, Any]) -> Any:
        """One vector a text, `[b, width]`, from a padded batch."""
        raise NotImplementedError


def pool(states: Any, mask: Any, how: str) -> Any:
    """One vector a text, float32 `[b, width]`, of hidden states `[b, t, width]` and attention mask `[b, t]`.

    "last" and "first" take the last and the first token of the mask, "mean" the mean over its tokens.
    """
    import torch

    if how == "mean":
        # `where` and not a product: hidden states at padding may be NaN.
        real = mask.bool().unsqueeze(-1)
        return torch.where(real, states.float(), 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    places = torch.arange(mask.shape[1], device=mask.device)
    weighted = mask * (places + 1) if how == "last" else mask * (mask.shape[1] - places)
    at = weighted.argmax(dim=1).to(states.device)
    return states[torch.arange(len(states), device=states.device), at].float()


class Embedder(TextModel):
    """Vectors of pooled hidden states."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: tuple[str, ...],
        layers: Any,
        normalize: bool,
        dtype: Any,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self.pooling, self.layers, self.normalize = pooling, resolve_layers(layers, self.depth), normalize
        own = getattr(self.body, "dtype", self.torch.float32)
        self.dtype = dtype or (own if str(own).removeprefix("torch.") in DTYPES else self.torch.float32)
        self.dim = self.width * len(self.pooling) * len(self.layers)

    def take(self, inputs: dict[str, Any]) -> Any:
        mask, states = inputs["attention_mask"], self.states(inputs, self.layers)
        pooled = [pool(layer, mask.to(layer.device), how) for how in self.pooling for layer in states]
        vectors = self.torch.cat([part.to(pooled[0].device) for part in pooled], dim=1)
        if self.normalize:
            vectors = self.torch.nn.functional.normalize(vectors, dim=1)
        return vectors.to(self.dtype)


class Scorer(TextModel):
    """The one number that a reward model gives a text, `[b, 1]` in float32."""

    def take(self, inputs: dict[str, Any]) -> Any:
        head = getattr(self.model, "score", None)
        if isinstance(head, self.torch.nn.Linear):
            # The model's own forward looks for the last token by the pad token, which may be a real one.
            last = pool(self.states(inputs, [self.depth])[0], inputs["attention_mask"], "last")
            return head(last.to(head.weight.dtype).to(head.weight.device)).float()
        return self.model(**inputs, return_dict=True).logits.float()
