"""A small Qwen3 as plain tensor algebra: texts that begin alike are read once, and what is said after them goes on from there.

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


@dataclass(frozen=True, slots=True)
class Past:
    """What later tokens attend to: R rows of P places, each row a trie of texts that begin alike.

    A token's context is what stands before it on the path from its trie's root: segments go on from their parents.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each layer, [R, kv heads, P, d]."""
    segments: torch.Tensor
    """[R, P] segment that each place belongs to; -1 is padding."""
    places: torch.Tensor
    """[R, P] how many tokens come before it on its path."""

    def detached(self) -> "Past":
        """The same without a gradient."""
        layers = [(keys.detach(), values.detach()) for keys, values in self.layers]
        return Past(layers, self.segments, self.places)


@dataclass(frozen=True, slots=True)
class Texts:
    """T tokens to read, flat, in any order."""

    tokens: torch.Tensor
    """[T]"""
    rows: torch.Tensor
    """[T]"""
    segments: torch.Tensor
    """[T]"""
    places: torch.Tensor
    """[T]"""
    parents: torch.Tensor
    """[S] segment that each segment goes on from; -1 for a root. Of all segments of these rows, so far."""


class Policy(nn.Module):
    """Qwen3 on tries. No token is computed twice and none is padding, but in attention."""

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
        # Half of a head is turned against the other: x cos + (x with its halves swapped) sin, the first half's sine negative.
        self.cos, self.sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)

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

    def read(self, texts: Texts, past: Past | None = None) -> tuple[torch.Tensor, Past]:
        """Hidden states [T, H] of texts that go on from `past`, and what comes after them can go on from."""
        sizes = torch.bincount(texts.rows, minlength=0 if past is None else len(past.segments))
        count, width = len(sizes), int(sizes.max())
        order = torch.argsort(texts.rows, stable=True)
        column = torch.empty_like(order)
        column[order] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[texts.rows[order]]
        # Where each token stands in the grid of rows, and which token stands there; padding repeats the first.
        slots = texts.rows * width + column
        tokens_at = torch.zeros(count * width, dtype=torch.int64).index_copy_(0, slots, torch.arange(len(slots)))
        grid = [
            torch.full((count * width,), -1).index_copy_(0, slots, each).view(count, width)
            for each in (texts.segments, texts.places)
        ]
        segments, places = grid
        all_segments = segments if past is None else torch.cat([past.segments, segments], 1)
        all_places = places if past is None else torch.cat([past.places, places], 1)
        mask = _visible(segments, places, all_segments, all_places, texts.parents)[:, None]
        states = F.embedding(texts.tokens, self.embedding)
        rotation = self.cos[texts.places][:, None], self.sin[texts.places][:, None]
        layers = []
        for number, layer in enumerate(self.layers):
            # [R, heads, W, d] each
            queries, keys, values = (
                part.index_select(0, tokens_at).view(count, width, -1, self.width).transpose(1, 2)
                for part in self._project(layer, states, rotation)
            )
            if past is not None:
                keys, values = (torch.cat(pair, 2) for pair in zip(past.layers[number], (keys, values), strict=True))
            layers.append((keys, values))
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=self.heads != self.kv_heads)
            states = self._finish(layer, states, mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, slots))
        return self._norm(states, self.last_norm), Past(layers, all_segments, all_places)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., V]."""
        return F.linear(hidden, self.embedding)

    def _project(
        self, layer: dict[str, nn.Parameter], states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, [T, heads, d]."""
        joined = F.linear(self._norm(states, layer["before_attention"]), layer["qkv"]).unflatten(-1, (-1, self.width))
        turned, values = joined.split([self.heads + self.kv_heads, self.kv_heads], 1)
        weights = [layer["q_norm"].expand(self.heads, -1), layer["k_norm"].expand(self.kv_heads, -1)]
        turned = F.rms_norm(turned, (self.width,), None, self.eps) * torch.cat(weights)
        cos, sin = rotation
        turned = turned * cos + turned.roll(self.width // 2, -1) * sin
        return *turned.split([self.heads, self.kv_heads], 1), values

    def _finish(self, layer: dict[str, nn.Parameter], states: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """mixed: [T, heads * d] what attention brought."""
        states = states + F.linear(mixed, layer["out"])
        gate, up = F.linear(self._norm(states, layer["before_mlp"]), layer["up"]).chunk(2, -1)
        return states + F.linear(F.silu(gate) * up, layer["down"])

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, weight.shape, weight, self.eps)


def _visible(
    segments: torch.Tensor,
    places: torch.Tensor,
    key_segments: torch.Tensor,
    key_places: torch.Tensor,
    parents: torch.Tensor,
) -> torch.Tensor:
    """[R, W, K] 0 where a query ([R, W]) sees a key ([R, K]), else -inf. Padding sees the first one: no softmax is empty."""
    seen = torch.zeros(*segments.shape, key_segments.shape[1], dtype=torch.bool)
    path = segments
    while (path >= 0).any():
        seen |= (path[..., None] == key_segments[:, None]) & (path >= 0)[..., None]
        path = torch.where(path >= 0, parents[path.clamp(min=0)], -1)
    seen &= key_places[:, None] <= places[..., None]
    seen[..., 0] |= segments < 0
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
