"""Rows of several examples: every attention is asked whether they see each other, FlashAttention's layers included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from transformers.models.lfm2 import modeling_lfm2

import flash_stand_in
from tunesmith import notices
from tunesmith.errors import ModelError
from tunesmith.model.layout import settle_layout
from tunesmith.model.precision import Precision
from tunesmith.model.segments import keep_examples_apart
from tunesmith.model.stand_in import can_compute, small_twin

FLOAT32 = Precision("float32", "test")
BFLOAT16 = Precision("bfloat16", "test")

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD_SIZES: dict[str, Any] = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
JAMBA: dict[str, Any] = SIZES | {
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 8,
}  # fmt: skip
ZAMBA2: dict[str, Any] = SIZES | {
    "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "mamba_d_state": 8, "mamba_headdim": 16,
    "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 8,
}  # fmt: skip
GPT_NEO = OLD_SIZES | {
    "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]],
}  # fmt: skip

MODELS: dict[str, Callable[..., t.PreTrainedModel]] = {
    "llama": lambda **more: t.LlamaForCausalLM(t.LlamaConfig(**SIZES | more)),
    "mistral": lambda **more: t.MistralForCausalLM(t.MistralConfig(**SIZES | {"sliding_window": 8} | more)),
    "qwen2": lambda **more: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES | more)),
    "qwen3": lambda **more: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES | {"head_dim": 16} | more)),
    "gemma3": lambda **more: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**SIZES | {"head_dim": 16, "sliding_window": 8} | more)
    ),
    "stablelm": lambda **more: t.StableLmForCausalLM(t.StableLmConfig(**SIZES | more)),
    "phi": lambda **more: t.PhiForCausalLM(t.PhiConfig(**SIZES | more)),
    "falcon": lambda **more: t.FalconForCausalLM(
        t.FalconConfig(**OLD_SIZES, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **more)
    ),
    "gpt2": lambda **more: t.GPT2LMHeadModel(
        t.GPT2Config(**OLD_SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=128, **more)
    ),
    "gpt_neo": lambda **more: t.GPTNeoForCausalLM(t.GPTNeoConfig(**GPT_NEO, **more)),
    "gptj": lambda **more: t.GPTJForCausalLM(
        t.GPTJConfig(**OLD_SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=128, rotary_dim=8, **more)
    ),
    "jamba": lambda **more: t.JambaForCausalLM(t.JambaConfig(**JAMBA | more)),
    "doge": lambda **more: t.DogeForCausalLM(t.DogeConfig(**SIZES | more)),
    "lfm2": lambda **more: t.Lfm2ForCausalLM(
        t.Lfm2Config(**SIZES | {"layer_types": ["conv", "full_attention"]} | more)
    ),
    "zamba2": lambda **more: t.Zamba2ForCausalLM(t.Zamba2Config(**ZAMBA2 | more)),
}


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The setting of models whose FlashAttention layers compute with kernels in plain torch."""
    flash_stand_in.install(monkeypatch)
    return {"attn_implementation": "flash_attention_2"}


def built(kind: str, **more: Any) -> t.PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[kind](**more)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "stablelm", "phi", "falcon", "gpt2"])
def test_flash_layers_that_hand_on_the_offsets_pass(kind: str, flash: dict[str, str]) -> None:
    model = built(kind, **flash)
    assert keep_examples_apart(model, BFLOAT16) == "cu_seq_lens"
    assert model.config._attn_implementation == "flash_attention_2"
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["gpt_neo", "gptj", "jamba", "zamba2"])
def test_flash_layers_that_mix_the_examples_are_refused(kind: str, flash: dict[str, str]) -> None:
    """GPT-Neo and GPT-J do not hand on the offsets; the states of Jamba and Zamba2 run through the whole row."""
    with pytest.raises(ModelError, match=r"flash_attention_2.*padded or length_grouped"):
        keep_examples_apart(built(kind, **flash), BFLOAT16)


@pytest.mark.parametrize("kind", ["gpt_neo", "gptj"])
def test_the_same_architectures_pass_with_a_mask_of_the_row(kind: str) -> None:
    assert keep_examples_apart(built(kind, attn_implementation="eager"), FLOAT32) == "positions"


@pytest.mark.parametrize("batching", ["unpadded", "packed", "prefix_tree"])
def test_a_model_whose_code_fails_on_such_rows_is_refused(batching: str) -> None:
    def fail(_layer: torch.nn.Module, _arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if keywords["hidden_states"].shape[1] > 12:
            raise IndexError("index 12 is out of range")

    model = built("llama")
    model.model.layers[1].self_attn.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot take .*IndexError: index 12.*length_grouped"):
        settle_layout(batching, model, FLOAT32, torch.device("cpu"))
    assert model.config._attn_implementation == "sdpa"


def test_where_nothing_was_written_such_a_model_is_padded() -> None:
    """Doge's layers calculate with the mask that others only hand on."""
    model = built("doge")
    layout = settle_layout("auto", model, FLOAT32, torch.device("cpu"))
    assert layout.batching == "padded"
    assert "cannot take several examples in one row" in layout.reason
    assert model.config._attn_implementation == "sdpa"


def test_more_in_a_mask_than_who_sees_whom_is_not_lost_in_silence() -> None:
    """A layer that weighs tokens by way of its mask computes something else where it is given none."""

    def weigh(_layer: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        given = keywords["attention_mask"]
        if given is not None and given.numel() == 0:
            return None
        states = keywords["hidden_states"]
        seen = torch.full((states.shape[1], states.shape[1]), float("-inf")).triu(1)
        return arguments, keywords | {"attention_mask": seen + states.norm(dim=-1)[:, None, None]}

    model = built("llama")
    assert keep_examples_apart(model, FLOAT32) == "lengths"
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(weigh, with_kwargs=True)
    with pytest.raises(ModelError, match="another loss"):
        keep_examples_apart(model, FLOAT32)


def test_a_faint_influence_is_one(flash: dict[str, str]) -> None:
    """What moves the logits by less than 1 % of the largest is attention across examples all the same."""
    model = built("gpt_neo", **flash).eval()
    ids = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).repeat(2)[None]
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.attention.out_proj.weight.mul_(1e-2)
        one, other = (
            model(input_ids=torch.cat([ids[first], ids[2]])[None], position_ids=positions).logits[0, 12:]
            for first in (0, 1)
        )
    assert 0 < float((one - other).abs().max()) < 0.01 * float(one.abs().max())
    with pytest.raises(ModelError, match="would see each other"):
        keep_examples_apart(model, BFLOAT16)


@pytest.fixture
def conv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short convolutions of LFM2 that begin anew with each example, as the kernel of the package causal-conv1d does."""
    plain = modeling_lfm2.causal_conv1d_fn

    def begin_anew(states: torch.Tensor, *arguments: Any, seq_idx: torch.Tensor | None = None, **more: Any) -> Any:
        if seq_idx is None:
            return plain(states, *arguments, **more)
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([plain(part, *arguments, **more) for part in states.split(lengths, dim=2)], dim=2)

    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", begin_anew)


def test_without_the_kernel_a_convolution_is_refused(flash: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="would see each other"):
        keep_examples_apart(built("lfm2", **flash), FLOAT32)


def test_a_convolution_with_the_kernel_is_told_the_number_of_each_tokens_example(
    flash: dict[str, str], conv: None, clean_notices: None
) -> None:
    assert keep_examples_apart(built("lfm2", **flash), FLOAT32) == "seq_idx"
    assert any("layers with a state are told" in text for text in notices.collected())
    assert_losses_of_padded_rows("lfm2", flash, "seq_idx")


def test_rows_of_flash_layers_have_the_losses_of_padded_ones(flash: dict[str, str]) -> None:
    """The stand-in kernels compute attention: the same losses as sdpa's, and the packed ones of each example."""
    assert_losses_of_padded_rows("mistral", flash, "cu_seq_lens")


def assert_losses_of_padded_rows(kind: str, flash: dict[str, str], expected: str) -> None:
    from tunesmith.data.batching import BatchRows
    from tunesmith.data.collate import Collator
    from tunesmith.data.masking import Example
    from tunesmith.evaluate.loss import token_losses

    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (9, 23, 2, 14)]
    examples = [Example(ids, ids, f"t:{index}", 1, 1, len(ids)) for index, ids in enumerate(rows)]
    found = {}
    for name, layout, setting in (("sdpa", "padded", {}), ("padded", "padded", flash), ("row", "unpadded", flash)):
        model = built(kind, **setting)
        told = keep_examples_apart(model, FLOAT32) if layout == "unpadded" else "positions"
        assert told == (expected if layout == "unpadded" else "positions")
        batch = Collator(layout, 0, boundaries=told)(BatchRows(examples, layout, 64))  # type: ignore[arg-type]
        labels = batch.pop("labels")
        batch.pop("origins")
        nll = token_losses(model, batch, labels, chosen_positions=False).nll
        found[name] = nll[nll > 0]
    assert len(found["sdpa"]) == sum(len(ids) - 1 for ids in rows)
    torch.testing.assert_close(found["padded"], found["sdpa"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["row"], found["sdpa"], rtol=1e-5, atol=1e-5)


# Models whose weights cannot be asked: spread over processes, without data, or on another device


@pytest.mark.parametrize(("kind", "mixes"), [("llama", False), ("gemma3", False), ("gpt_neo", True), ("jamba", True)])
def test_weights_without_data_are_answered_for_by_a_small_twin(kind: str, mixes: bool, flash: dict[str, str]) -> None:
    with torch.device("meta"):
        model = built(kind, **flash)
    assert not can_compute(model, torch.device("cpu"))
    before = torch.get_rng_state()
    for device in (torch.device("cpu"), None):
        if mixes:
            with pytest.raises(ModelError, match="would see each other"):
                keep_examples_apart(model, BFLOAT16, device)
        else:
            assert keep_examples_apart(model, BFLOAT16, device) == "cu_seq_lens"
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_the_twin_has_every_kind_of_layer_once() -> None:
    deep = built("llama", num_hidden_layers=12)
    assert small_twin(deep, FLOAT32, torch.device("cpu")).config.num_hidden_layers == 2
    hybrid = built("jamba", num_hidden_layers=8, attn_layer_period=8, attn_layer_offset=4)
    twin = small_twin(hybrid, BFLOAT16, torch.device("cpu"))
    assert twin.config.num_hidden_layers == 5
    assert twin.dtype == torch.bfloat16
    windows = built("gemma3", num_hidden_layers=12)
    kinds = windows.config.layer_types
    twin = small_twin(windows, FLOAT32, torch.device("cpu"))
    assert twin.config.layer_types == kinds[: kinds.index("full_attention") + 1]
    assert windows.config.layer_types == kinds
    assert len(kinds) == 12


def test_weights_spread_by_zero_3_are_answered_for_by_a_small_twin() -> None:
    from transformers.integrations import HfDeepSpeedConfig

    model = built("llama")
    assert can_compute(model, torch.device("cpu"))
    spread = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert not can_compute(model, torch.device("cpu"))
    assert keep_examples_apart(model, FLOAT32) == "lengths"
    with pytest.raises(ModelError, match="would see each other"):
        keep_examples_apart(built("jamba"), FLOAT32)
    del spread
