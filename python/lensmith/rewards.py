"""Rewards for reinforcement learning: functions that TRL and OpenRLHF call with what a policy wrote.

- :func:`reward_func` makes one for ``reward_funcs`` of TRL's trainers, ``GRPOTrainer`` and ``RLOOTrainer``.
- :func:`openrlhf_reward_func` makes one for the Python file that OpenRLHF's ``--reward.remote_url`` names.

Both take a reward model of any head, load what they need at the first call, and can subtract the disagreement
of an ensemble's heads. They need torch and transformers. The language model must be the one that made the
embeddings, as it was then: not the policy, which training changes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ._engine import Engine
from ._models import RewardModel
from ._optional import require
from .export import RewardPipeline

__all__ = ["OpenRlhfReward", "RewardFunction", "openrlhf_reward_func", "reward_func"]

#: A text, and whether the tokenizer adds its special tokens.
Text = tuple[str, bool]
#: Rewards and their standard deviations over the heads.
Judged = tuple[np.ndarray, np.ndarray]
#: Stands for a response where only what a template writes behind it is wanted.
MARK = "lensmith-response"


class Judge:
    """Texts to rewards, with a language model and a reward model that are loaded when first needed."""

    def __init__(
        self,
        model: Any,
        reward_model: Any,
        tokenizer: Any,
        options: Mapping[str, Any],
        uncertainty_penalty: float,
    ) -> None:
        if not uncertainty_penalty >= 0:
            raise ValueError(f"uncertainty_penalty: expected 0 or more, found {uncertainty_penalty}")
        if isinstance(model, RewardPipeline) and (
            reward_model is not None or tokenizer is not None or options
        ):
            raise ValueError("model: expected a RewardPipeline alone, found other arguments beside it")
        self._asked = (model, reward_model, tokenizer, dict(options))
        self.uncertainty_penalty = uncertainty_penalty
        self._start()

    def _start(self) -> None:
        self._pipeline = self._asked[0] if isinstance(self._asked[0], RewardPipeline) else None
        self._loading = threading.Lock()
        self._together = Together(self._score)

    def __getstate__(self) -> dict[str, Any]:
        made = ("_pipeline", "_loading", "_together")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def pipeline(self) -> RewardPipeline:
        """The language model and the reward model; loaded when first asked for."""
        with self._loading:
            if self._pipeline is None:
                model, reward_model, tokenizer, options = self._asked
                # The head is small, and the GPU is the language models'.
                options = {"engine": Engine("cpu"), **options}
                if not any(hasattr(given, "forward") for given in (model, options.get("base_model"))):
                    options.setdefault("device", training_device())
                if reward_model is None:
                    found = RewardPipeline.from_pretrained(model, tokenizer=tokenizer, **options)
                else:
                    found = RewardPipeline(model, reward_model, tokenizer, **options)
                self._pipeline = found
            return self._pipeline

    def judge(self, texts: list[Text]) -> Judged:
        """Rewards less the penalty, and their standard deviations over the heads; for any thread."""
        mean, deviation = self._together(texts)
        return mean - np.float32(self.uncertainty_penalty) * deviation, deviation

    def _score(self, texts: list[Text]) -> Judged:
        pipeline = self.pipeline
        return pipeline.reward_model.spread(pipeline.embed_written(texts), engine=pipeline.engine)


def training_device() -> Any:
    """Where the trainer of this process has its policy, as accelerate tells; None where nothing trains."""
    # A trainer has imported it.
    accelerate = sys.modules.get("accelerate")
    if accelerate is None or not accelerate.state.is_initialized():
        return None
    return accelerate.PartialState().device


class Together:
    """Joins calls that come at the same time into one: while one thread works, those of the others gather."""

    def __init__(self, work: Callable[[list[Text]], Judged]) -> None:
        self._work = work
        self._gathering, self._working = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[list[Text], Future[Judged]]] = []

    def __call__(self, texts: list[Text]) -> Judged:
        own: Future[Judged] = Future()
        with self._gathering:
            self._waiting.append((texts, own))
        with self._working:
            if not own.done():
                with self._gathering:
                    calls, self._waiting = self._waiting, []
                self._run(calls)
        return own.result()

    def _run(self, calls: list[tuple[list[Text], Future[Judged]]]) -> None:
        try:
            mean, deviation = self._work([text for texts, _ in calls for text in texts])
        except BaseException as error:
            if len(calls) > 1 and isinstance(error, Exception):
                # The call whose text is at fault is told, and no other.
                for call in calls:
                    self._run([call])
                return
            for _, future in calls:
                future.set_exception(error)
            return
        at = 0
        for texts, future in calls:
            future.set_result((mean[at : at + len(texts)], deviation[at : at + len(texts)]))
            at += len(texts)


def reward_func(
    model: Any,
    reward_model: RewardModel | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    *,
    pooling: str | Sequence[str] | None = None,
    batch_tokens: int = 16384,
    device: Any = None,
    max_length: int | None = None,
    uncertainty_penalty: float = 0.0,
    empty_reward: float | None = None,
    name: str = "lensmith",
    **options: Any,
) -> RewardFunction:
    """A reward function for TRL::

        reward = reward_func("org/language-model", "runs/first/reward")
        trainer = GRPOTrainer(model=..., reward_funcs=reward, args=..., train_dataset=...)

    ``RLOOTrainer`` takes the same. Prompts and completions are written as :func:`lensmith.embed` writes them:
    texts are joined, messages go through the chat template of the reward model's tokenizer.

    Args:
        model: The language model that made the embeddings, by name or path, or loaded; or a
            :class:`lensmith.export.RewardPipeline`; or, without ``reward_model``, a folder or repository that
            one was saved in.
        reward_model: The reward model, or its folder or repository.
        tokenizer: Name, path or tokenizer, where it is not the language model's.
        pooling: As of :func:`lensmith.embed`; by default what is recorded, or "last".
        batch_tokens: Most tokens of a batch, padding included.
        device: Where a named model runs; by default where the trainer of this process has its policy, else on
            the current GPU, else on the CPU.
        max_length: Most tokens of a text; longer ones lose their beginning.
        uncertainty_penalty: So many standard deviations over the heads are subtracted from a reward.
        empty_reward: The reward of an empty completion, for which there is no embedding; None says that it
            has none, and TRL leaves it out.
        name: The function's name in TRL's logs.
        **options: Further options of :class:`lensmith.export.RewardPipeline`.

    Raises:
        ValueError: Options out of range. Models are loaded at the first call, which raises what loading
            raises.
    """
    judge = _judge(
        model,
        reward_model,
        tokenizer,
        uncertainty_penalty,
        {
            **options,
            "pooling": pooling,
            "batch_tokens": batch_tokens,
            "device": device,
            "max_length": max_length,
        },
    )
    return RewardFunction(judge, empty_reward, name)


class RewardFunction:
    """What :func:`reward_func` makes: ``function(prompts=..., completions=...)`` gives a list of rewards.

    With an ensemble, TRL's logs get the metric ``NAME/spread``, the mean standard deviation over the heads,
    and its table of completions a column ``NAME_spread``.
    """

    def __init__(self, judge: Judge, empty_reward: float | None, name: str) -> None:
        self._judge, self.empty_reward, self.__name__ = judge, empty_reward, name
        #: Standard deviations over the heads of the last call, float32 [n]; NaN for empty completions.
        self.last_spread = np.zeros(0, np.float32)

    @property
    def pipeline(self) -> RewardPipeline:
        """The language model and the reward model."""
        return self._judge.pipeline

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Rewards of n completions, texts or lists of messages, to n prompts.

        Args:
            prompts: Texts or lists of messages.
            completions: Texts or lists of messages.
            **columns: What TRL passes besides: columns of the data set, which are not used, and
                ``log_metric`` and ``log_extra``, which are.

        Raises:
            ValueError: Another number of prompts than of completions, or what cannot be embedded.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"prompts: expected {len(completions)}, as of completions, found {len(prompts)}")
        full = [i for i, completion in enumerate(completions) if not is_empty(completion)]
        texts = self.pipeline.written([completions[i] for i in full], [prompts[i] for i in full])
        found, deviation = self._judge.judge(texts)
        rewards: list[float | None] = [self.empty_reward] * len(completions)
        spread = np.full(len(completions), np.nan, np.float32)
        spread[full] = deviation
        for i, reward in zip(full, found.tolist(), strict=True):
            rewards[i] = reward
        self.last_spread = spread
        if self.pipeline.reward_model.heads > 1:
            if callable(columns.get("log_metric")):
                columns["log_metric"](f"{self.__name__}/spread", float(deviation.mean()) if full else 0.0)
            if callable(columns.get("log_extra")):
                columns["log_extra"](f"{self.__name__}_spread", spread.tolist())
        return rewards


def openrlhf_reward_func(
    model: Any,
    reward_model: RewardModel | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    *,
    chat: bool = False,
    pooling: str | Sequence[str] | None = None,
    batch_tokens: int = 16384,
    device: Any = None,
    max_length: int | None = None,
    uncertainty_penalty: float = 0.0,
    **options: Any,
) -> OpenRlhfReward:
    """A reward function for OpenRLHF; the file that ``--reward.remote_url`` names has it as ``reward_func``::

        from lensmith.rewards import openrlhf_reward_func

        reward_func = openrlhf_reward_func("org/language-model", "runs/first/reward", chat=True)

    OpenRLHF passes texts as the policy's tokenizer writes them, with special tokens. Those at the end are
    replaced by what ended the texts that the reward model was trained on, so that a response that was cut
    off, or whose end of turn lacks the template's line break, is judged at the same token.

    Args:
        model: As of :func:`reward_func`.
        reward_model: As of :func:`reward_func`.
        tokenizer: As of :func:`reward_func`.
        chat: Whether prompts go through a chat template (``--data.apply_chat_template``), which must be that
            of the reward model's tokenizer.
        pooling: As of :func:`reward_func`.
        batch_tokens: As of :func:`reward_func`.
        device: As of :func:`reward_func`.
        max_length: As of :func:`reward_func`.
        uncertainty_penalty: As of :func:`reward_func`.
        **options: Further options of :class:`lensmith.export.RewardPipeline`.

    Raises:
        ValueError: Options out of range. Models are loaded at the first call, which raises what loading
            raises.
    """
    judge = _judge(
        model,
        reward_model,
        tokenizer,
        uncertainty_penalty,
        {
            **options,
            "pooling": pooling,
            "batch_tokens": batch_tokens,
            "device": device,
            "max_length": max_length,
        },
    )
    return OpenRlhfReward(judge, chat)


class OpenRlhfReward:
    """What :func:`openrlhf_reward_func` makes. Calls of many threads at once are joined into one batch."""

    __name__ = "reward_func"

    def __init__(self, judge: Judge, chat: bool) -> None:
        self._judge, self.chat = judge, chat

    @property
    def pipeline(self) -> RewardPipeline:
        """The language model and the reward model."""
        return self._judge.pipeline

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **further: Any
    ) -> dict[str, Any]:
        """Rewards of n texts.

        Args:
            queries: Prompts with responses, special tokens included.
            prompts: The prompts alone; not used.
            labels: Not used.
            **further: Not used.

        Returns:
            "rewards" float32 [n]; "scores", their sigmoids, for filters that want 0 to 1; "extra_logs" with
            "reward_spread" [n], the standard deviations over the heads.

        Raises:
            ValueError: What cannot be embedded.
        """
        torch = require("torch", "openrlhf_reward_func()")
        found, deviation = self._judge.judge([self.written(query) for query in queries])
        rewards = torch.tensor(found)
        logs = {"reward_spread": torch.tensor(deviation)}
        return {"rewards": rewards, "scores": torch.sigmoid(rewards), "extra_logs": logs}

    def written(self, query: str) -> Text:
        """A query with the ending that embeddings were made with; whether special tokens are to be added."""
        tokenizer = self.pipeline.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)} - {""}
        while True:
            ending = next((token for token in special if query.endswith(token)), None)
            if ending is None:
                break
            query = query[: -len(ending)]
        if not self.chat:
            return query, True
        turns = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
        closing = self.pipeline.written([turns])[0][0].rpartition(MARK)[2]
        return query + closing, False


def _judge(
    model: Any, reward_model: Any, tokenizer: Any, penalty: float, options: Mapping[str, Any]
) -> Judge:
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(model, RewardPipeline) and given.get("batch_tokens") == 16384:
        del given["batch_tokens"]
    return Judge(model, reward_model, tokenizer, given, penalty)


def is_empty(completion: Any) -> bool:
    """Whether a completion has no text: nothing, or a last message without content and calls of tools."""
    if isinstance(completion, str):
        return not completion.strip()
    if isinstance(completion, Mapping):
        completion = [completion]
    if not completion:
        return True
    last = completion[-1]
    return isinstance(last, Mapping) and not last.get("content") and not last.get("tool_calls")
