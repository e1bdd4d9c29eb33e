"""A small Qwen3 as plain tensor algebra: prompts are read once, and all completions of a prompt continue from there.

Only what the league needs of the architecture, in float32 on a CPU; tests/unit/test_league.py holds it to transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

_JOINED = {
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "out": ("self_attn.o_proj.weight",),
    "down": ("mlp.down_proj.weight",),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "before_attention": ("input_layernorm.weight",),
    "before_mlp": ("post_attention_layernorm.weight",),
}
"""A layer's parameters, and the tensors of the file that are joined in each."""


@dataclass(slots=True)
class Past:
    """What later tokens of B prompts attend to: P places of the prompt, then the columns of its completions so far."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each layer, [B, kv heads, P + columns, d]."""
    lengths: torch.Tensor
    """[B] tokens of each prompt; the places behind them are padding."""
    columns: int = 0

    def rows(self, chosen: torch.Tensor) -> "Past":
        """Those of some prompts."""
        return Past(
            [(keys[chosen], values[chosen]) for keys, values in self.layers], self.lengths[chosen], self.columns
        )


class Policy(nn.Module):
    """Qwen3 without a cache class, a mask builder or a padding side of its own.

    Completions of a prompt lie side by side in one row, time first: column t * G + g holds token t of completion g.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "qwen3" or not config["tie_word_embeddings"]:
            raise ValueError(f"{directory} holds no Qwen3 with tied embeddings, which is all that the league runs")
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.width, self.eps = config["head_dim"], config["rms_norm_eps"]
        tensors = load_file(directory / "model.safetensors")
        self.embedding = nn.Parameter(tensors["model.embed_tokens.weight"])
        self.last_norm = nn.Parameter(tensors["model.norm.weight"])
        self.layers: list[dict[str, nn.Parameter]] = []
        for number in range(config["num_hidden_layers"]):
            layer = {
                name: nn.Parameter(torch.cat([tensors[f"model.layers.{number}.{part}"] for part in parts]))
                for name, parts in _JOINED.items()
            }
            for name, parameter in layer.items():
                self.register_parameter(f"{name}_{number}", parameter)
            self.layers.append(layer)
        theta = config["rope_parameters"]["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        angles = torch.outer(torch.arange(config["max_position_embeddings"], dtype=torch.float32), frequencies)
        self.cos, self.sin = (torch.cat([table, table], -1) for table in (angles.cos(), angles.sin()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the weights under the names of the file."""
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.last_norm}
        sizes = {"qkv": [self.heads * self.width, *2 * [self.kv_heads * self.width]]}
        for number, layer in enumerate(self.layers):
            for name, parts in _JOINED.items():
                joined = layer[name]
                pieces = joined.split(sizes.get(name, len(joined) // len(parts)))
                found |= {f"model.layers.{number}.{part}": piece for part, piece in zip(parts, pieces, strict=True)}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def read(self, tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Past]:
        """Prompts, padded on the right. tokens: [B, P].    lengths: [B]. Returns (hidden states [B, P, H], what to go on from)."""
        places = torch.arange(tokens.shape[1])
        hidden, layers = self._run(tokens, places[None, :], None, None)
        return hidden, Past(layers, lengths)

    def go_on(self, past: Past, tokens: torch.Tensor, group_size: int) -> tuple[torch.Tensor, Past]:
        """Completions after their prompts and what was said of them so far. tokens: [B, T * G], time first.

        Returns (hidden states [B, T * G, H], what to go on from).
        """
        before, new = past.columns, tokens.shape[1]
        columns = torch.arange(before + new)
        time, member = columns // group_size, columns % group_size
        own = (member[before:, None] == member) & (time[before:, None] >= time)
        width = past.layers[0][0].shape[2] - before
        prompt = torch.arange(width) < past.lengths[:, None]
        mask = torch.cat([prompt[:, None].expand(-1, new, -1), own.expand(len(tokens), -1, -1)], dim=-1)
        hidden, layers = self._run(tokens, past.lengths[:, None] + time[before:], past, mask[:, None])
        return hidden, Past(layers, past.lengths, before + new)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., V]."""
        return F.linear(hidden, self.embedding)

    def _run(
        self, tokens: torch.Tensor, places: torch.Tensor, past: Past | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """places: of each token in its sample.    mask: [B, 1, T, P + T], True where a query sees a key; None is causal."""
        states = F.embedding(tokens, self.embedding)
        rotation = self.cos[places][:, :, None], self.sin[places][:, :, None]
        kept = []
        for number, layer in enumerate(self.layers):
            queries, keys, values = self._project(layer, states, rotation)
            if past is not None:
                keys, values = (
                    torch.cat([old, new], 2) for old, new in zip(past.layers[number], (keys, values), strict=True)
                )
            kept.append((keys, values))
            states = self._finish(layer, states, queries, keys, values, mask)
        return self._norm(states, self.last_norm), kept

    def _project(
        self, layer: dict[str, nn.Parameter], states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, [B, heads, T, d]."""
        joined = F.linear(self._norm(states, layer["before_attention"]), layer["qkv"])
        joined = joined.view(*states.shape[:2], -1, self.width)
        turned = joined[:, :, : self.heads + self.kv_heads]
        queries, keys = turned.split([self.heads, self.kv_heads], 2)
        values = joined[:, :, self.heads + self.kv_heads :]
        queries = _rotated(self._norm(queries, layer["q_norm"]), *rotation)
        keys = _rotated(self._norm(keys, layer["k_norm"]), *rotation)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def _finish(
        self,
        layer: dict[str, nn.Parameter],
        states: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
        )
        states = states + F.linear(mixed.transpose(1, 2).flatten(2), layer["out"])
        gate, up = F.linear(self._norm(states, layer["before_mlp"]), layer["up"]).chunk(2, -1)
        return states + F.linear(F.silu(gate) * up, layer["down"])

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, weight.shape, weight, self.eps)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin
