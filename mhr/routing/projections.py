"""HyperFormer's projections: what a task's context is turned into for each layer, by one network for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.method_settings.contexts import LEARNT_SIZE
from mhr.routing.contexts import Contexts
from mhr.routing.parameters import ParameterGroup


class Projections(Contexts):
    """The contexts c [T, C] of a bank's tasks and the network that turns them into vectors e [T, G, E] for G groups of layers.

        e[t, l] = LN(W2 relu(V c_t + b + V' [b_l; p_l]) + b2)        LN a layer norm over E, with a scale and a shift

    b_l, p_l [64] are vectors of the block that layer l stands in and of its place in it, learnt like V' [D, 128], W2 [E, D] and b2,
    where layers share a bank (`RoutingMethod.tied`); otherwise V' [b_l; p_l] is left out, and all layers have the e of their task.
    HyperFormer++ and HyperFormer (arXiv 2106.04489), E being `AdapterConfig.n_skills`.

    at      int64 [G, 2], which b and p are those of a group
    groups  names of the groups of layers. Those with the same numbers up to the first one stand in one block: encoder.block.3
    """

    at: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str] = ("",)):
        super().__init__(config, tasks)
        size = config.skills_for(len(tasks))
        self.second = nn.Linear(self.settings.hidden, size)
        self.norm = nn.LayerNorm(size)
        self.blocks: nn.Embedding | None = None
        self.places: nn.Embedding | None = None
        self.third: nn.Linear | None = None
        if config.routing.tied:
            split = [_split(group) for group in groups]
            found = [list(dict.fromkeys(part)) for part in zip(*split, strict=True)]
            self.blocks, self.places = (nn.Embedding(len(names), LEARNT_SIZE) for names in found)
            self.third = nn.Linear(2 * LEARNT_SIZE, self.settings.hidden, bias=False)
            at = [[names.index(part) for names, part in zip(found, parts, strict=True)] for parts in split]
            self.register_buffer("at", torch.tensor(at), persistent=False)

    def reset(self) -> None:
        super().reset()
        for module in (self.second, self.norm, self.blocks, self.places, self.third):
            if module is not None:
                module.reset_parameters()

    def project(self, tasks: Tensor, groups: slice) -> Tensor:
        """e [G, U, E] of the tasks int64 [U] for the groups of these numbers, zeros for a task of -1 and one whose context is not known."""
        with torch.autocast(tasks.device.type, enabled=False):  # e is summed with, so that it keeps its digits
            hidden = self.first(self.vectors[tasks.clamp(min=0)])[None]
            if self.blocks is not None and self.places is not None and self.third is not None:
                block, place = self.at[groups].unbind(1)
                hidden = hidden + self.third(torch.cat([self.blocks(block), self.places(place)], 1))[:, None]
            found = self.norm(self.second(torch.relu(hidden)))
        return torch.where(self.known(tasks)[:, None], found, 0.0).expand(groups.stop - groups.start, -1, -1)

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        network = [p for name, p in self.named_parameters() if name not in self.per_task]
        return [self.network_group(routing, network), self.row_group(routing)]


def _split(group: str) -> tuple[str, str]:
    """A name up to its first number, and the rest of it: the block, and the place in it. Without a number all is place."""
    parts = group.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[:end]), ".".join(parts[end:])
