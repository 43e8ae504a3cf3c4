"""From preferences to a policy by rejection sampling: train a reward model, sample, embed, select, fine-tune.

    python examples/rejection_sampling.py --out rejection/
    python examples/rejection_sampling.py --model org/instruct-model --pairs pairs.jsonl --prompts prompts.jsonl \
        --out rejection/

Without `--model` everything is made up: a small Llama with random weights and preferences for politeness, which takes
about a minute on two cores and needs no network. `pairs.jsonl` has `prompt`, `chosen` and `rejected`, `prompts.jsonl`
`prompt`. Needs torch, transformers, datasets and trl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import lensmith as lm


def small_llama(folder: Path) -> str:
    """A Llama with random weights and a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), bos_token_id=0, eos_token_id=1, **sizes))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return str(folder)


def made_up(rows: int) -> list[dict[str, str]]:
    """Preferences for polite answers."""
    polite, rude = ["Certainly", "With pleasure", "Gladly", "Of course"], ["No", "Go away", "Never", "Why me?"]
    return [
        {
            "prompt": f"Please add {i} and {i % 7}. ",
            "chosen": f"{polite[i % 4]}: {i + i % 7}.",
            "rejected": f"{rude[i // 3 % 4]}! {i % 5}",
        }
        for i in range(rows)
    ]


def read(path: str) -> list[dict[str, str]]:
    """Rows of a file of JSON lines."""
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def sample(model: str, prompts: list[str], responses: int, tokens: int) -> list[dict[str, object]]:
    """Several responses of a language model to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model)
    rows: list[dict[str, object]] = []
    torch.manual_seed(1)
    for prompt in prompts:
        asked = tokenizer(prompt, return_tensors="pt")
        written = policy.generate(
            asked["input_ids"],
            attention_mask=asked["attention_mask"],
            do_sample=True,
            num_return_sequences=responses,
            min_new_tokens=2,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        said = tokenizer.batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "responses": said})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Rejection sampling with a reward model of lensmith.")
    parser.add_argument("--model", help="policy, and language model of the embeddings [default: a made-up one]")
    parser.add_argument("--pairs", help="preferences [default: made-up ones]")
    parser.add_argument("--prompts", help="prompts to sample for [default: made-up ones]")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--responses", type=int, default=8, help="responses to each prompt [8]")
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of a response [24]")
    parser.add_argument("--steps", type=int, default=1, help="steps of fine-tuning [1]")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    model = options.model or small_llama(out / "llama")

    # A reward model of few preferences and many synthetic ones.
    pairs = lm.embed(read(options.pairs) if options.pairs else made_up(240), model)
    split = lm.split(pairs, seeds=len(pairs) // 2, validation=len(pairs) // 4)
    vae = lm.Vae.fit(split.seeds, lr=1e-3, epochs=500)
    synthetic = lm.synthesize(vae, split.seeds, fold=4, sigma2=0.1)
    reward = lm.RewardModel.fit(synthetic, split.validation, ensemble=4, hidden=64, lr=1e-3, epochs=40)
    reward.save(out / "reward.safetensors")
    print(f"accuracy on test pairs: {reward.evaluate(split.test)['accuracy']:.3f}")

    # Responses of the policy, and their embeddings.
    asked = read(options.prompts) if options.prompts else made_up(280)[240:]
    rows = sample(model, [row["prompt"] for row in asked], options.responses, options.tokens)
    (out / "sampled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Prompts with an empty response, which has no embedding, are left out here and by `select`.
    candidates, _ = lm.embed_candidates(rows, model, skip_invalid=True, out=out / "candidates")

    # The best response to each prompt, and the best and the worst, without the half that the heads disagree on most.
    uncertainty = reward.spread(candidates.flatten(0, 1))[1]
    limits = {"max_uncertainty": float(np.median(uncertainty)), "max_length": 400}
    best = lm.select(rows, out / "candidates", reward, out=out / "sft.jsonl", **limits)
    print(best)
    print(lm.select(rows, out / "candidates", reward, form="dpo", out=out / "dpo.jsonl", **limits))

    # Fine-tuning on what was selected.
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=Dataset.from_list(best.rows),
        args=SFTConfig(
            output_dir=str(out / "sft"),
            max_steps=options.steps,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
        ),
    )
    trainer.train()
    trainer.save_model(str(out / "sft"))
    print(f"fine-tuned: {out / 'sft'}")


if __name__ == "__main__":
    main()
