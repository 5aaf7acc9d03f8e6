"""Make the embedded base model: tokenizer and weights of ``nano-mistral``, from text that the project generates.

It fine-tunes nothing: the tasks are left for the user's run. It needs torch, transformers and tokenizers, no network,
and about a quarter of an hour on two cores. The same seed, thread count, precision and library versions give the same
weights.

    python scripts/make_nano_mistral.py                 # writes src/tunesmith/assets/nano-mistral
    python scripts/make_nano_mistral.py --out /tmp/nano --steps 200 50
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from tunesmith.synthetic import corpus, nli, rag, reasoning

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / "src" / "tunesmith" / "assets" / "nano-mistral"

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")
"""In id order, so that <s> is 1 and </s> is 2 as in Mistral."""


@dataclass(frozen=True)
class Stage:
    """A part of pretraining: how long, how fast, and on what.

    ``dictation`` and ``recall`` are the parts of the documents that are random words said twice, and statements
    recalled after other text; the rest comes from ``mixture``.
    """

    steps: int
    learning_rate: float
    mixture: corpus.Mixture
    dictation: float
    recall: float


STAGES = (
    Stage(steps=1800, learning_rate=3e-3, mixture=corpus.MIXTURE, dictation=0.10, recall=0.20),
    Stage(steps=600, learning_rate=2e-3, mixture=corpus.COMPARING_MIXTURE, dictation=0.05, recall=0.15),
)

CHAT_TEMPLATE = """\
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('After an optional system message, roles must alternate user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

PROMPT_WORDING = (
    "Premise: Hypothesis: \n\nUse chain of thought reasoning to determine if the hypothesis is entailed by the "
    "premise. Provide your reasoning and the final label (0 or 1) in JSON format: "
    '{"thought_process": "...", "predicted_label": ...} {"thought_process": "step 1: ", "predicted_label": 0}',
    "You are a helpful question answerer who can provide an answer given a question and relevant context.\n"
    "Answer the question using the context. Question: Context: Answer: Documents: Instruction: Explanation:",
    "Solve the problem step by step. #### 12\n#### 7\nQuestion: Answer: Problem: Solution:",
)
"""Words of the usual instructions. Only the tokenizer sees them, so that prompts are short; the model does not."""


def make_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text goes in and comes back unchanged; digits stand alone."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(seed), trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(seed: int) -> Iterator[str]:
    """World text, the wording of the tasks and every word of the world in both positions of a sentence."""
    yield from itertools.islice(corpus.documents(seed), 40_000)
    for wording in PROMPT_WORDING:
        yield from itertools.repeat(wording, 4_000)
    for row in nli.make_nli(4_000, 0, seed)[0]:
        yield f"{row['premise']}\n{row['hypothesis']}\n {row['thought_process']}"
    for row in reasoning.make_reasoning(2_000, 0, seed)[0]:
        yield f"{row['prompt']} {row['response']}"
    for row in rag.make_rag(1_000, 0, seed)[0]:
        yield f"{row['query']}\n{row['positive_passages']}"


def pretraining_ids(tokenizer: PreTrainedTokenizerFast, length: int, seed: int, stage: Stage) -> Iterator[torch.Tensor]:
    """Token sequences of one length, without end: documents between <s> and </s>, one after the other."""
    backend = tokenizer.backend_tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = [tokenizer.decode([index]) for index in range(len(SPECIAL_TOKENS), len(tokenizer))]
    pieces = [piece for piece in pieces if piece.isascii()]
    rng = random.Random(f"dictation {seed}")
    world = corpus.documents(seed, stage.mixture)
    buffer: list[int] = []
    while True:
        texts = []
        for _ in range(256):
            draw = rng.random()
            if draw < stage.dictation:
                texts.append(corpus.dictation(pieces, rng))
            elif draw < stage.dictation + stage.recall:
                texts.append(corpus.recall(pieces, rng))
            else:
                texts.append(next(world))
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            buffer += [bos, *encoding.ids, eos]
        while len(buffer) >= length:
            yield torch.tensor(buffer[:length])
            del buffer[:length]


def make_config(tokenizer: PreTrainedTokenizerFast) -> MistralConfig:
    """The architecture: Mistral's, small; every matrix a multiple of 64 so that NF4 blocks fit."""
    return MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=None,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain(
    model: MistralForCausalLM,
    sequences: Iterator[torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    bf16: bool,
) -> float:
    """Next-token training with AdamW, a short warmup and a cosine decay; returns the mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = min(100, steps // 10 + 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses: list[float] = []
    start = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        input_ids = torch.stack(list(itertools.islice(sequences, batch_size)))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step}/{steps}  loss {recent:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def _name_tokenizer_class(path: Path) -> None:
    """Write the class name that transformers 4 and 5 both know; 5 alone knows the one that it writes itself."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only"):  # how this process loaded it, not what it is
        values.pop(key, None)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--first_stage", type=Path, help="folder of a finished first stage, to run only the second")
    parser.add_argument("--steps", type=int, nargs=2, default=[stage.steps for stage in STAGES], metavar="N")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast; faster on processors without AMX")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.first_stage:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.first_stage)
        model = MistralForCausalLM.from_pretrained(args.first_stage, dtype=torch.float32)
        stages = [(1, STAGES[1], args.steps[1])]
    else:
        tokenizer = make_tokenizer(args.vocab_size, args.seed)
        model = MistralForCausalLM(make_config(tokenizer))
        stages = list(zip((0, 1), STAGES, args.steps, strict=True))
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters, transformers {transformers.__version__}")
    for number, stage, steps in stages:
        loss = pretrain(
            model,
            pretraining_ids(tokenizer, args.sequence_length, args.seed + number, stage),
            steps=steps,
            batch_size=args.batch_size,
            learning_rate=stage.learning_rate,
            bf16=not args.fp32,
        )
        print(f"stage {number + 1}: loss {loss:.4f}")
        # Each stage ends as it is saved, so that a second stage from a folder equals one that follows directly.
        model.to(torch.bfloat16)
        folder = args.out if number == len(STAGES) - 1 else args.out.with_name(f"{args.out.name}-stage-1")
        save(model, tokenizer, folder)
        model.to(torch.float32)
        print(f"wrote {folder}")


def save(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, configurations and tokenizer as they are loaded by the usual classes."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
