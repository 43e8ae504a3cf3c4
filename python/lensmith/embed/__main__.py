"""`python -m lensmith.embed`: embeddings of a file of texts, from the shell."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import LensmithWarning
from .._optional import require
from ._folder import SETTINGS
from ._model import DTYPE_NAMES, parse_pooling
from ._rows import Candidates, Layout, Pairs, Texts, open_source
from ._run import Options, embed_rows

EXAMPLES = """\
examples:
  python -m lensmith.embed train.jsonl --model meta-llama/Llama-3.1-8B-Instruct --out pairs/
  python -m lensmith.embed hh.jsonl.gz --model meta-llama/Llama-3.1-8B-Instruct --template hh --out pairs/
  python -m lensmith.embed train.parquet --model org/model --pooling wide --max-length 2048 --out pairs/
  python -m lensmith.embed train.parquet --model org/model --layers -1,-9 --dtype bf16 --out pairs/
  python -m lensmith.embed pairs.jsonl --model org/encoder --pooling mean --chosen-column better \\
      --rejected-column worse --out pairs/
  python -m lensmith.embed best_of_16.jsonl --candidates --model org/model --out candidates/

The folder then goes into `lensmith run pairs/ --candidates candidates/`. A command that was killed goes on
when it is given again. Progress and warnings are on standard error. Exit codes: 0 done, 1 failed, 2 wrong
usage.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m lensmith.embed",
        description="A language model's embeddings of preference pairs, best-of-N sets or texts, in shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("data", help="a .jsonl, .jsonl.gz or .parquet file")
    made.add_argument("--model", required=True, metavar="NAME", help="model of the hub, or its folder")
    made.add_argument("--out", "-o", required=True, metavar="FOLDER", help="folder for the shards")
    made.add_argument(
        "--overwrite", action="store_true", help="replace what embeddings of other settings are there"
    )

    layout = made.add_argument_group(
        "rows [default: pairs, with columns chosen, rejected and perhaps prompt]"
    )
    kind = layout.add_mutually_exclusive_group()
    kind.add_argument(
        "--candidates", action="store_true", help="best-of-N sets: responses, perhaps scores and prompt"
    )
    kind.add_argument("--texts", action="store_true", help="texts or conversations: text, perhaps prompt")
    for name in ("chosen", "rejected", "prompt", "responses", "scores", "text"):
        layout.add_argument(f"--{name}-column", metavar="NAME", help=f"column called otherwise than {name}")
    layout.add_argument("--no-prompt", action="store_true", help="leave the column prompt out")
    layout.add_argument(
        "--group-column", metavar="NAME", help="column that says which pairs belong to one prompt"
    )
    layout.add_argument("--no-group", action="store_true", help="write no groups")
    layout.add_argument("--skip-invalid", action="store_true", help="leave out rows that cannot be embedded")

    text = made.add_argument_group("text")
    text.add_argument(
        "--template",
        metavar="TEXT",
        help="chat: plain texts become turns; hh: HH-RLHF dialogues become turns; a text with {prompt} and "
        "{response}; or a Jinja chat template, or the name of its file [default: texts as they are, messages "
        "by the tokenizer's template]",
    )
    text.add_argument(
        "--template-arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the template"
    )
    text.add_argument("--tokenizer", metavar="NAME", help="tokenizer that is not the model's")
    text.add_argument(
        "--max-length", type=positive, metavar="N", help="most tokens of a text [default: the model's]"
    )
    text.add_argument("--truncation-side", choices=("left", "right"), default="left", help="[default: left]")

    vectors = made.add_argument_group("embeddings")
    vectors.add_argument(
        "--pooling",
        default="last",
        metavar="HOW",
        help="last, mean, first, several joined by +, or a preset: paper, wide [default: last]",
    )
    vectors.add_argument(
        "--layers", metavar="LIST", help="as -1,-9, or quarters [default: -1, or the preset's]"
    )
    vectors.add_argument("--normalize", action="store_true", help="scale each to length 1")
    vectors.add_argument(
        "--dtype", choices=("auto", *DTYPE_NAMES), default="auto", help="[default: the model's]"
    )

    machine = made.add_argument_group("machine")
    machine.add_argument(
        "--device", metavar="NAME", help="as cuda:1; auto spreads the model [default: the first GPU]"
    )
    machine.add_argument(
        "--batch-tokens", type=positive, default=16384, metavar="N", help="tokens of a batch [16384]"
    )
    machine.add_argument(
        "--shard-rows", type=positive, metavar="N", help="rows of a shard [default: about 4096 texts]"
    )
    machine.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the model")
    machine.add_argument("--attention", metavar="NAME", help="implementation, as flash_attention_2")
    machine.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    machine.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return made


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def options_of(given: argparse.Namespace, usage: argparse.ArgumentParser) -> dict[str, Any]:
    """The arguments of `embed`; ends the program with code 2 where they are no use."""
    layers: Any = given.layers
    if layers is not None and layers != "quarters":
        try:
            layers = [int(layer) for layer in layers.split(",")]
        except ValueError:
            usage.error(f"--layers: expected numbers such as -1,-9, or quarters, found {layers!r}")
    try:
        parse_pooling(given.pooling, layers)
    except ValueError as error:
        usage.error(f"--{error}")
    pairs = [argument.partition("=") for argument in given.template_arg]
    if not all(sign for _, sign, _ in pairs):
        usage.error(f"--template-arg: expected KEY=VALUE, found {given.template_arg}")
    template = given.template
    if template is not None and "{" not in template and Path(template).is_file():
        template = Path(template).read_text(encoding="utf-8")
    kwargs: dict[str, Any] = {}
    if given.attention:
        kwargs["attn_implementation"] = given.attention
    if given.trust_remote_code:
        kwargs["trust_remote_code"] = True
    names = (
        "max_length",
        "truncation_side",
        "pooling",
        "normalize",
        "device",
        "batch_tokens",
        "shard_rows",
        "revision",
    )
    same = {name: getattr(given, name) for name in (*names, "tokenizer", "skip_invalid", "overwrite")}
    return same | {
        "layers": layers,
        "dtype": None if given.dtype == "auto" else given.dtype,
        "template": template,
        "template_args": {key: value for key, _, value in pairs},
        "model_kwargs": kwargs or None,
        "progress": not given.quiet,
        "columns": columns_of(given, usage),
    }


def columns_of(given: argparse.Namespace, usage: argparse.ArgumentParser) -> dict[str, str | None]:
    """The columns that are called otherwise."""
    kind = "--candidates" if given.candidates else "--texts" if given.texts else "pairs"
    known = {"--candidates": ("responses", "scores", "prompt"), "--texts": ("text", "prompt")}
    columns: dict[str, str | None] = {}
    for name in ("chosen", "rejected", "prompt", "responses", "scores", "text"):
        column = getattr(given, f"{name}_column")
        if column is not None:
            if name not in known.get(kind, ("chosen", "rejected", "prompt")):
                usage.error(f"--{name}-column: {kind} have no such column")
            columns[name] = column
    if given.no_prompt:
        if given.prompt_column is not None:
            usage.error("--no-prompt: not together with --prompt-column")
        columns["prompt"] = None
    if (given.group_column is not None or given.no_group) and kind != "pairs":
        usage.error(f"--group-column, --no-group: {kind} have no groups")
    if given.group_column is not None and given.no_group:
        usage.error("--no-group: not together with --group-column")
    return columns


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    usage = parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # argparse takes "-1,-9" for an option of its own.
    for i in range(len(words) - 1):
        if words[i] == "--layers":
            words[i : i + 2] = [f"--layers={words[i + 1]}"]
            break
    given = usage.parse_args(words)
    options = options_of(given, usage)

    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, LensmithWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show_other(message, category, *rest, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", LensmithWarning)
        try:
            if given.quiet:
                require("transformers", "lensmith.embed").utils.logging.disable_progress_bar()
            print(run(given, options))
        except KeyboardInterrupt:
            print("error: interrupted; the same command goes on from here", file=sys.stderr)
            return 1
        except (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def run(given: argparse.Namespace, options: dict[str, Any]) -> str:
    """Embeds, and says in a line what is in the folder."""
    columns = options.pop("columns")
    layout: Layout
    if given.candidates:
        layout = Candidates(columns)
    elif given.texts:
        layout = Texts(columns)
    else:
        layout = Pairs(columns, False if given.no_group else given.group_column)
    folder = Path(given.out)
    embed_rows(layout, open_source(given.data), Options(model=given.model, **options), folder)
    stated = json.loads((folder / SETTINGS).read_bytes())
    made = stated["settings"]
    rows = {"pairs": "pairs", "candidates": "prompts", "embeddings": "embeddings"}[layout.kind]
    what = f"{made['rows']} {rows}, d = {made['dim']}, {made['dtype']}"
    return f"{given.out}: {what}, in {stated['shards']} shards"


if __name__ == "__main__":
    sys.exit(main())
