"""Models in folders and on the Hugging Face Hub: save_pretrained, from_pretrained and push_to_hub.

A folder holds

- ``model.safetensors``: the checkpoint, as ``save`` writes it, whose metadata is the record of the training;
- ``config.json``: kind, sizes and that record, to be read without the weights;
- ``README.md``: the model card, which says what the record says and nothing else.

Folders need no other package. Downloads and uploads need ``huggingface_hub``.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from ._files import whole_file
from ._lensmith import __version__
from ._optional import require
from ._table import Table

__all__ = ["HubMixin", "embedding_record"]

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
#: A card with this line is ours to write again.
MARK = "<!-- Written by save_pretrained, which replaces this file as long as this line is in it. -->"
#: Epochs of the learning curve that a card shows.
CARD_EPOCHS = 8
PAPER = "[LENS](https://arxiv.org/abs/2509.26074)"


class HubMixin:
    """What models have for folders and the Hub. They bring ``save``, ``load`` and ``metadata``."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        embedding: Any = None,
        figures: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push: Any,
    ) -> str | None:
        """Writes checkpoint, configuration and model card into a folder, which is made if it is not there.

        A README.md that is there already is left alone if it is not one that this function wrote.

        Args:
            folder: The folder.
            embedding: Which language model made the embeddings, to be kept with the model: the folder that
                :func:`lensmith.embed` wrote, its ``embed.json``, or a dict such as ``{"model": "org/name",
                "pooling": ["last"]}``.
            figures: Results to keep and to show in the card by name, as ``{"test pairs":
                reward.evaluate(test)}`` or ``{"health": vae.health(validation)}``: dicts, or objects with
                ``to_dict()``.
            card: More fields for the card's YAML head, as ``{"license": "mit", "datasets": ["org/name"]}``.
            push_to_hub: Whether to upload it as well.
            repo_id: The repository for that; by default the folder's name.
            **push: Further arguments of :meth:`push_to_hub`.

        Returns:
            The address of the commit with ``push_to_hub``, else None.

        Raises:
            ValueError: ``embedding`` names another number of values than the model takes, or cannot be read.
            ImportError: ``push_to_hub`` without huggingface_hub.
        """
        if push and not push_to_hub:
            raise TypeError(f"save_pretrained: {sorted(push)[0]!r} needs push_to_hub=True")
        path = Path(folder)
        self._save_pretrained(path, embedding=embedding, figures=figures, card=card, name=repo_id)
        if not push_to_hub:
            return None
        options = {"embedding": embedding, "figures": figures, "card": card, **push}
        return self.push_to_hub(repo_id or path.resolve().name, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """A model of a folder that :meth:`save_pretrained` wrote, of a checkpoint file, or of a repository.

        Learning curve and end of training come back with it.

        Args:
            name_or_folder: The folder or file, else the repository as "owner/name".
            revision: Branch, tag or commit of a repository.
            token: Access token of the Hub; by default the one that ``hf auth login`` left.
            cache_dir: Where downloads are kept.
            force_download: Whether to download what is kept.
            local_files_only: Whether to use only what is kept.

        Raises:
            FileNotFoundError: No such folder, or no ``model.safetensors`` in it.
            ValueError: The folder holds another kind of model.
            LensmithError: The file is no checkpoint.
            ImportError: A repository without huggingface_hub.
        """
        path = find_file(
            name_or_folder,
            MODEL_FILE,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls._from_pretrained(path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        embedding: Any = None,
        figures: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        commit_message: str = "Upload lensmith model",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes; makes the repository if it is not there.

        A model card in the repository that was edited is left as it is.

        Args:
            repo_id: The repository as "owner/name".
            embedding: As of :meth:`save_pretrained`.
            figures: As of :meth:`save_pretrained`.
            card: As of :meth:`save_pretrained`.
            commit_message: First line of the commit.
            private: Whether a new repository is private; None leaves it to the owner's settings.
            token: Access token of the Hub; by default the one that ``hf auth login`` left.
            branch: The branch to commit to; "main" by default.
            create_pr: Whether to open a pull request instead.
            allow_patterns: Upload only files that match.
            ignore_patterns: Leave out files that match.
            delete_patterns: Delete files of the repository that match, in the same commit.

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub is missing.
        """

        def save(folder: Path, name: str) -> None:
            self._save_pretrained(folder, embedding=embedding, figures=figures, card=card, name=name)

        return upload(
            save,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
            delete_patterns=delete_patterns,
        )

    def _save_pretrained(
        self,
        folder: Path,
        *,
        embedding: Any = None,
        figures: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        model: Any = self
        record = known(model)
        if embedding is not None:
            record["embedding"] = embedding_record(embedding)
        made_of = record.get("embedding", {}).get("dim")
        if made_of is not None and made_of != model.dim:
            raise ValueError(f"embedding: expected one of {model.dim} values, found one of {made_of}")
        if figures:
            found = {key: plain(value) for key, value in figures.items()}
            record["figures"] = {**record.get("figures", {}), **found}
        folder.mkdir(parents=True, exist_ok=True)
        own = {"lensmith.kind", *record, *(f"lensmith.{key}" for key in record)}
        sums = "xxh3"  # checksums of the file that the model came from
        metadata = {k: v for k, v in model.metadata.items() if k not in own and k.split(".")[0] != sums}
        metadata |= {f"lensmith.{key}": json.dumps(value) for key, value in record.items()}
        metadata |= {"lensmith.version": metadata.get("lensmith.version", __version__)}
        type(model).from_state_dict(model.state_dict(), metadata).save(folder / MODEL_FILE)
        config = {
            "library_name": "lensmith",
            "lensmith_version": metadata["lensmith.version"],
            "kind": kind_of(model),
            "size": size_of(model),
            **{key: value for key, value in record.items() if key != "history"},
        }
        with whole_file(folder / CONFIG_FILE) as file:
            file.write((json.dumps(config, indent=2, allow_nan=False) + "\n").encode())
        write_card(folder, model_card(model, record, name or folder.name, card))

    @classmethod
    def _from_pretrained(cls, path: Path) -> Self:
        found = kind_in(path)
        expected = "VAE" if cls.__name__ == "Vae" else "reward model"
        if found is not None and found != expected:
            other = {"VAE": "lensmith.Vae", "reward model": "lensmith.RewardModel"}.get(found)
            hint = f": load it with {other}.from_pretrained" if other else ""
            raise ValueError(f"{path}: expected a {expected}, found a {found}{hint}")
        model: Any = cls.load(path)  # type: ignore[attr-defined]
        record = known(model)
        if record.get("history"):
            model.history = Table.of_rows(record["history"], model.history.columns)
        for name, value in record.get("end", {}).items():
            setattr(model, name, value)
        return model  # type: ignore[no-any-return]


# What is known of a model


#: What the metadata of a checkpoint may hold as JSON, with or without "lensmith." before it.
RECORD = (
    "training",
    "synthesis",
    "data",
    "sources",
    "result",
    "health",
    "history",
    "end",
    "figures",
    "embedding",
)
END = ("best_epoch", "best_step", "steps", "capped")


def known(model: Any) -> dict[str, Any]:
    """The record of a model: what its metadata holds as JSON, and its learning curve and end of training."""
    record = {}
    for key in RECORD:
        text = model.metadata.get(f"lensmith.{key}", model.metadata.get(key))
        if text is not None:
            try:
                record[key] = json.loads(text)
            except ValueError:
                continue
    if len(model.history):
        record["history"] = [plain(row) for row in model.history.rows()]
    end = {name: getattr(model, name, None) for name in END}
    if any(value is not None for value in end.values()):
        record["end"] = end
    return record


def plain(value: Any) -> Any:
    """A value as JSON has it; what is not finite becomes None."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"figures: expected numbers, text, lists and dicts of them, found {type(value).__name__}")


def embedding_record(embedding: Any) -> dict[str, Any]:
    """What made embeddings: the settings in a folder that :func:`lensmith.embed` wrote, or in a dict.

    Raises:
        ValueError: It names no model.
        FileNotFoundError: No ``embed.json`` there.
    """
    what = "embedding"
    if isinstance(embedding, str | os.PathLike):
        path = Path(embedding)
        path = path / "embed.json" if path.is_dir() else path
        if not path.is_file():
            hint = "expected a folder that lensmith.embed(out=...) wrote, its embed.json, or a dict"
            raise FileNotFoundError(f"embedding: {hint}; found no {path}")
        what = f"embedding: {path}"
        embedding = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(embedding, Mapping) and isinstance(embedding.get("settings"), Mapping):
        embedding = embedding["settings"]
    if not isinstance(embedding, Mapping) or not isinstance(embedding.get("model"), str):
        found = list(embedding) if isinstance(embedding, Mapping) else type(embedding).__name__
        raise ValueError(f"{what}: expected an entry 'model' with a name, found {found}")
    # What belongs to the data set and not to the embedding of a text.
    other = {"kind", "shard_rows", "rows", "skipped_rows", "dataset"}
    return {key: plain(value) for key, value in embedding.items() if key not in other}


def kind_of(model: Any) -> str:
    """ "VAE" or "reward model", as checkpoints say it."""
    return "VAE" if hasattr(model, "latent") else "reward model"


def size_of(model: Any) -> dict[str, Any]:
    """The sizes, as ``lensmith inspect`` names them."""
    names = ("dim", "hidden", "latent") if kind_of(model) == "VAE" else ("dim", "head", "hidden", "heads")
    return {name: getattr(model, name) for name in names}


def kind_in(path: Path) -> str | None:
    """What a safetensors file says that it holds; None where it says nothing, or is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100_000_000:
                return None
            header = json.loads(file.read(length))
    except (OSError, ValueError):
        return None
    kind = header.get("__metadata__", {}).get("lensmith.kind") if isinstance(header, dict) else None
    return kind if isinstance(kind, str) else None


# Files


def find_file(name_or_folder: str | os.PathLike[str], file: str, **download: Any) -> Path:
    """A file of a folder, or of a repository of the Hub; `name_or_folder` may be the file itself."""
    name = os.fspath(name_or_folder)
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / file).is_file():
            names = sorted(found.name for found in path.iterdir())
            there = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
            raise FileNotFoundError(f"{path}: expected a file {file}, found {there}")
        return path / file
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", name):
        raise FileNotFoundError(f"expected a folder, or a repository as 'owner/name'; found no folder {name}")
    hub = require("huggingface_hub", f"from_pretrained({name!r}), which is no folder here,")
    errors = require("huggingface_hub.errors", "from_pretrained()")
    try:
        return Path(hub.hf_hub_download(name, file, **download))
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise
        at = f" at {download['revision']}" if download.get("revision") else ""
        raise FileNotFoundError(
            f"{name}{at}: expected a repository with a file {file}, found none"
        ) from error


def upload(save: Any, repo_id: str, *, private: Any, token: Any, branch: Any, **options: Any) -> str:
    """Makes a repository and uploads what `save(folder, name)` writes; gives the address of the commit."""
    hub = require("huggingface_hub", "push_to_hub()")
    api = hub.HfApi(token=token)
    repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
    if branch is not None and branch != "main" and not options.get("create_pr"):
        api.create_branch(repo_id=repo_id, branch=branch, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if api.file_exists(repo_id, CARD_FILE, revision=branch):
            there = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=branch))
            (folder / CARD_FILE).write_text(there.read_text(encoding="utf-8"), encoding="utf-8")
        save(folder, repo_id)
        commit = api.upload_folder(
            repo_id=repo_id, repo_type="model", folder_path=folder, revision=branch, **options
        )
    return str(commit)


def write_card(folder: Path, text: str) -> None:
    """Writes a model card, unless one is there that is not ours."""
    path = folder / CARD_FILE
    if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
        return
    with whole_file(path) as file:
        file.write(text.encode())


# The model card


def model_card(
    model: Any, record: Mapping[str, Any], name: str, fields: Mapping[str, Any] | None = None
) -> str:
    """The model card of a model called `name`, from its record."""
    vae = kind_of(model) == "VAE"
    embedding = record.get("embedding", {})
    head: dict[str, Any] = {
        "library_name": "lensmith",
        "tags": ["lensmith", "vae" if vae else "reward-model", "preference", "embeddings"],
    }
    base = base_model(embedding)
    if base:
        head["base_model"] = base
    about = _about_vae(model) if vae else _about_reward(model)
    parts = [
        yaml_head(head, fields),
        MARK,
        f"# {name}",
        f"{about} It takes embeddings of {model.dim} values{_made_by(embedding)} as they are: the "
        f"standardisation is a part of its weights. Made with lensmith, after {PAPER} (Tao, Du and Li, "
        "NeurIPS 2025).",
        "## Use",
        _use(vae, name, embedding),
        *training_parts(record, vae),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(vae, record)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def yaml_head(head: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> str:
    """The YAML head of a card; `fields` win, but for tags, which are joined."""
    merged = dict(head)
    for key, value in (fields or {}).items():
        if key == "tags":
            value = [*head.get("tags", []), *(tag for tag in value if tag not in head.get("tags", []))]
        merged[key] = value
    lines = ["---"]
    for key, value in merged.items():
        if isinstance(value, list | tuple):
            lines += [f"{key}:", *(f"- {_scalar(item)}" for item in value)]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join([*lines, "---"])


def _scalar(value: Any) -> str:
    """A YAML value: plain where that is safe, else as JSON, which YAML reads."""
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and value.lower() not in words:
        return value
    return json.dumps(value)


def base_model(embedding: Mapping[str, Any]) -> str | None:
    """The language model behind embeddings, if its name is one of the Hub's."""
    name = embedding.get("model")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    return None if Path(name).exists() else name


def _about_vae(model: Any) -> str:
    return (
        f"A variational auto-encoder of embeddings: {model.dim} values, hidden layers of {model.hidden}, "
        f"{model.latent} latent units."
    )


def _about_reward(model: Any) -> str:
    if model.head == "linear":
        one, many = "A linear head", f"The mean of {model.heads} linear heads"
    else:
        width = f"one hidden layer of {model.hidden} units"
        one, many = f"A head of {width}", f"The mean of {model.heads} heads, each of {width}"
    return f"A reward model on embeddings. {one if model.heads == 1 else many}."


def _made_by(embedding: Mapping[str, Any]) -> str:
    if "model" not in embedding:
        return ""
    name = base_model(embedding) or Path(embedding["model"]).name
    pooling, layers = embedding.get("pooling"), embedding.get("layers")
    how = []
    if pooling:
        how.append(" + ".join(pooling if isinstance(pooling, list) else [str(pooling)]) + " pooling")
    if layers:
        how.append(f"layer {', '.join(map(str, layers))}" if isinstance(layers, list) else f"layers {layers}")
    return f" that `{name}` made" + (f" ({', '.join(how)})" if how else "") + ","


def _use(vae: bool, name: str, embedding: Mapping[str, Any]) -> str:
    if vae:
        lines = [
            "import lensmith as lm",
            "",
            f'vae = lm.Vae.from_pretrained("{name}")',
            "mu, logvar = vae.encode(embeddings)              # [n, d] -> [n, latent] each",
            "synthetic = lm.synthesize(vae, seeds, fold=4)    # of an lm.PairSet of such embeddings",
        ]
    elif "model" in embedding:
        lines = [
            "import lensmith as lm",
            "from lensmith.export import RewardPipeline",
            "",
            f'rewards = RewardPipeline.from_pretrained("{name}")(["a response"], prompts=["a prompt"])',
            "",
            f'reward = lm.RewardModel.from_pretrained("{name}")    # without the language model',
            "rewards = reward.score(embeddings)                   # [n, d] -> [n]",
        ]
    else:
        lines = [
            "import lensmith as lm",
            "",
            f'reward = lm.RewardModel.from_pretrained("{name}")',
            "rewards = reward.score(embeddings)               # [n, d] -> [n]",
        ]
    return "\n".join(["```python", *lines, "```"])


def training_parts(record: Mapping[str, Any], vae: bool = False) -> list[str]:
    """The parts of a card about the training and its figures; none where nothing is known."""
    return [*_training(record, vae), *_curve(record.get("history", [])), *_results(record)]


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {name} | {_text(value)} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---:|", *lines]) if lines else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _training(record: Mapping[str, Any], vae: bool) -> list[str]:
    """How it was trained, and what came of it."""
    training, end = record.get("training", {}), record.get("end", {})
    objective, updates = training.get("objective", {}), training.get("updates", {})
    adam = objective.get("adam", {})
    data: Mapping[str, Any] = record.get("data", {})
    sources = data.get("sources") or record.get("sources") or []
    rows: list[tuple[str, Any]] = [
        ("training pairs", data.get("pairs") or sum(source.get("rows", 0) for source in sources) or None),
        ("seed pairs", data.get("seeds")),
        ("epochs", training.get("epochs", updates.get("epochs"))),
        ("optimiser steps", updates.get("steps")),
        ("learning rate", adam.get("lr")),
        ("weight decay", adam.get("weight_decay") or None),
        ("pairs of a step", objective.get("batch")),
        ("patience, epochs", training.get("patience")),
        ("input noise", objective.get("input_noise") or None),
        ("pairs across prompts, share", training.get("across_prompts") or None),
        ("seed", objective.get("seed")),
    ]
    if vae:
        rows += [(name, objective.get(name)) for name in ("beta", "gamma", "reconstruction", "divergence")]
    synthesis = record.get("synthesis") or data.get("recipe")
    if isinstance(synthesis, Mapping):
        rows += [
            (f"synthetic pairs: {label}", synthesis.get(key))
            for key, label in (
                ("fold", "pairs per seed pair"),
                ("per_side", "samples per side"),
                ("pairing", "pairing"),
                ("sigma2", "sigma2"),
                ("mode", "decoding"),
                ("seed", "seed"),
            )
        ]
    rows += [
        ("best epoch", end.get("best_epoch")),
        ("step kept", end.get("best_step")),
        ("steps taken", end.get("steps")),
    ]
    table = _table(rows)
    if not table:
        return []
    capped = ""
    if end.get("capped"):
        capped = (
            "**Training ended too early:** the best evaluation was the last that was allowed, so that more "
            "epochs or steps may give a better model."
        )
    return ["## Training", table, capped]


def _curve(history: list[Mapping[str, Any]]) -> list[str]:
    if not history:
        return []
    columns = [name for name in history[0] if any(row.get(name) is not None for row in history)]
    shown = history[-CARD_EPOCHS:]
    title = "Learning curve" + (
        f", the last {len(shown)} of {len(history)} points" if len(history) > len(shown) else ""
    )
    lines = [
        "| " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|" + "---:|" * len(columns),
        *(
            "| " + " | ".join("" if row.get(n) is None else _text(row[n]) for n in columns) + " |"
            for row in shown
        ),
    ]
    note = ""
    if "accuracy" in columns:
        note = "`accuracy` and `loss` are those of the validation pairs, by which the step kept was chosen."
    return [f"{title}:", "\n".join(lines), note]


def _results(record: Mapping[str, Any]) -> list[str]:
    """Validation figures of the step kept, results that were handed over, and the VAE's health."""
    parts: list[str] = []
    end, history = record.get("end", {}), record.get("history", [])
    kept: Mapping[str, Any] = next(
        (row for row in history if row.get("step") == end.get("best_step", -1)), {}
    )
    groups: list[tuple[str, Any]] = []
    if kept.get("accuracy") is not None:
        found = {"pair accuracy": kept["accuracy"], "loss": kept.get("loss")}
        groups.append(("validation pairs, at the step kept", found))
    result = record.get("result")
    if isinstance(result, Mapping):
        groups.append(("run", {k: v for k, v in result.items() if k != "test"}))
        if isinstance(result.get("test"), Mapping):
            groups.append(("test pairs", result["test"]))
    if isinstance(record.get("health"), Mapping):
        groups.append(("health", record["health"]))
    groups += list(record.get("figures", {}).items())
    for name, found in groups:
        if not isinstance(found, Mapping):
            found = {name: found}
        rows = [
            (key.replace("_", " "), value)
            for key, value in found.items()
            if isinstance(value, int | float | str)
        ]
        interval = found.get("accuracy_interval")
        if isinstance(interval, Mapping) and "low" in interval:
            level = f"{100 * interval.get('level', 0.95):.0f} %"
            rows.append((f"accuracy, {level} interval", f"{interval['low']:.3f} to {interval['high']:.3f}"))
        table = _table(rows)
        warnings = found.get("warnings")
        if table:
            parts += [f"{name[:1].upper()}{name[1:]}:", table]
        if isinstance(warnings, list) and warnings:
            parts.append("\n".join(f"- warning: {warning}" for warning in warnings))
    return ["## Figures", *parts] if parts else []


def _limits(vae: bool, record: Mapping[str, Any]) -> list[str]:
    same = "It knows embeddings of one language model, made in one way, of texts such as it was trained on."
    if "model" not in record.get("embedding", {}):
        same += " Which language model that was is not recorded here."
    if vae:
        return [
            same,
            "It decodes to vectors, not to text.",
            "Whether synthetic pairs help is to be measured against as many updates on the seed pairs alone.",
        ]
    limits = [
        same,
        "Only differences of rewards of responses to one prompt mean something: the Bradley-Terry loss has "
        "no zero, and does not compare prompts.",
        "A policy that is trained on its rewards finds responses that only it likes: compare with another "
        "judge.",
    ]
    if record.get("figures") is None and not isinstance(record.get("result"), Mapping):
        limits.append("No figures on test pairs are recorded here.")
    return limits
